"""Messages between the supervisor and its processes."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from spop.server.channel import SEND_TIMEOUT, Channel, Received

Pair = tuple[socket.socket, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A raw end, and the channel at the other."""
    raw, other = socket.socketpair()
    channel = Channel(other)
    yield raw, channel
    raw.close()
    channel.close()


def bytes_of(message: dict[str, Any]) -> bytes:
    """A message as it is sent."""
    raw, other = socket.socketpair()
    channel = Channel(other)
    with raw:
        assert channel.send(message)
        channel.close()
        return raw.recv(65536)


def test_the_receiver_does_not_wait_for_the_rest_of_a_message(pair: Pair) -> None:
    """A process may stop in the middle of one."""
    raw, channel = pair
    data = bytes_of({"number": 1}) + bytes_of({"number": 2})
    found: list[Received] | None = []
    for byte in data:
        raw.send(bytes([byte]))
        received = channel.receive()
        assert received is not None
        found += received
    assert found == [Received({"number": 1}, []), Received({"number": 2}, [])]
    raw.send(data[:-1])
    assert channel.receive() == [Received({"number": 1}, [])]
    raw.close()
    assert channel.receive() is None


def test_each_message_has_its_own_descriptors() -> None:
    ours, theirs = Channel.pair()
    files = [os.pipe() for _ in range(3)]
    for number, (read_end, write_end) in enumerate(files):
        assert ours.send({"number": number, "fds": False})
        assert ours.send({"number": number, "fds": True}, [read_end, write_end])
        os.close(read_end)
        os.close(write_end)
    found: list[Received] = []
    while len(found) < 6:
        found += theirs.receive() or []
    for message, fds in found:
        assert len(fds) == (2 if message["fds"] else 0)
        if fds:
            assert not any(map(os.get_inheritable, fds))
            os.write(fds[1], bytes([message["number"]]))
            assert os.read(fds[0], 2) == bytes([message["number"]])
            for fd in fds:
                os.close(fd)
    ours.close()
    theirs.close()


def test_a_receiver_without_descriptors_gets_the_messages_without_them() -> None:
    """And each later message its own."""
    ours, theirs = Channel.pair()
    read_end, write_end = os.pipe()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert ours.send({"number": 1}, [read_end])
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert theirs.receive() == [Received({"number": 1}, [])]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert ours.send({"number": 2}, [write_end])
    ((message, (fd,)),) = theirs.receive() or []
    assert message == {"number": 2}
    os.write(fd, b"x")
    assert os.read(read_end, 2) == b"x"
    for each in (read_end, write_end, fd):
        os.close(each)
    ours.close()
    theirs.close()


def test_a_message_larger_than_the_sockets_buffer(pair: Pair) -> None:
    ours, theirs = Channel.pair()
    large = {"text": "x" * 3_000_000}
    sender = threading.Thread(target=theirs.send, args=(large,))
    sender.start()
    assert next(iter(ours)).message == large
    sender.join()
    ours.close()
    theirs.close()


def test_descriptors_of_a_message_that_never_came_whole_are_closed() -> None:
    raw, other = socket.socketpair()
    channel = Channel(other)
    read_end, write_end = os.pipe()
    with raw:
        socket.send_fds(raw, [bytes_of({"number": 1})[:-1]], [write_end])
        os.close(write_end)
        assert channel.receive() == []
        channel.close()
    assert os.read(read_end, 1) == b"", "nobody has the other end any more"
    os.close(read_end)


def test_a_channel_on_which_a_message_could_not_be_sent_whole_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spop.server.channel.SEND_TIMEOUT", 1)
    ours, theirs = Channel.pair()
    assert not theirs.send({"text": "x" * 3_000_000})
    assert not theirs.send({})
    assert ours.receive() == []
    theirs.close()
    assert next(iter(ours), None) is None
    ours.close()


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_the_supervisor_does_not_wait_for_a_process_that_does_not_read(size: int) -> None:
    """What it could not send is not sent. What comes after it may be."""
    ours, theirs = Channel.pair()
    text, sent = "x" * size, 0
    started = time.monotonic()
    while ours.send({"number": sent, "text": text if sent < 3 else ""}):
        sent += 1
        assert sent < 100_000
    assert time.monotonic() - started < SEND_TIMEOUT
    found: list[Received] = []
    while len(found) < sent:
        found += theirs.receive() or []
    assert ours.send({"number": "after"})
    found += theirs.receive() or []
    assert [received.message["number"] for received in found] == [*range(sent), "after"]
    assert [len(received.message.get("text", "")) for received in found[:4]] == [size] * 3 + [0]
    ours.close()
    theirs.close()
