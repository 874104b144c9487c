"""Agents that break the protocol, use a corner of it, or stop: what an engine may meet.

Each speaks over a plain socket and knows nothing of `AgentConnection`, so that it can say
anything. `AGENTS` has them by name; all but their oddity is what a good agent does.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from spop import codec
from spop.constants import FrameFlag, FrameType
from spop.values import Int32, UInt32

Ids = tuple[int, int]
"""Stream-id and frame-id."""

VARIABLE = "sess.answered"
"""What a good answer sets, to true."""

SET = bytes(codec.encode_actions({VARIABLE: True}))
MORE = bytes(codec.encode_actions({"sess.more": 7}))
"""A second action, which shows whether an engine reads on behind an odd one."""
EMPTY_FRAME = bytes(4)
GARBAGE = b"\xa5" * 40
UNKNOWN_FRAME = bytes(codec.encode_raw_frame(200, FrameFlag.FIN, 1, 1, b"?"))
TLS_ALERT = bytes.fromhex("15 0301 0002 02 46")
"""What OpenSSL's servers say to a peer that does not speak TLS."""


class Wire:
    """A connection, from the agent's end: whole frames in, any bytes out."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = sock.makefile("rb")

    def read(self) -> bytes:
        """The next frame, without its length. Raises EOFError: there is none."""
        length = int.from_bytes(self._read(4), "big")
        return self._read(length)

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def send(self, *pieces: bytes) -> None:
        """Each piece in a send of its own."""
        for piece in pieces:
            self.sock.sendall(piece)

    def wait_for_end(self) -> None:
        """Hear the peer until it closes, and say nothing."""
        while self._file.read1():
            pass

    def close(self) -> None:
        self._file.close()
        self.sock.close()


def hello(request: bytes = b"", **items: Any) -> bytes:
    """The AGENT-HELLO of a good agent, or with other items; None leaves one out."""
    capabilities = "" if b"healthcheck\x11" in request else "pipelining"
    told = {"version": "2.0", "max-frame-size": UInt32(16380), "capabilities": capabilities}
    told |= {name.replace("_", "-"): value for name, value in items.items()}
    left = {name: value for name, value in told.items() if value is not None}
    return bytes(codec.encode_control(FrameType.AGENT_HELLO, left))


def disconnect(code: int, message: str) -> bytes:
    told = {"status-code": UInt32(code), "message": message}
    return bytes(codec.encode_control(FrameType.AGENT_DISCONNECT, told))


def ack(ids: Ids, actions: bytes = SET, flags: int = FrameFlag.FIN) -> bytes:
    return bytes(codec.encode_raw_frame(FrameType.ACK, flags, *ids, actions))


def set_x(start: str, value: str) -> bytes:
    """A SET-VAR whose bytes are written by hand, in hex, around the name "x"."""
    return bytes.fromhex(start) + b"\x01x" + bytes.fromhex(value)


def single_bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# --- what they do with a HELLO, and with a NOTIFY ---

Greeting = Callable[[Wire, bytes], object]
Answer = Callable[[Wire, Ids], object]


def greets(wire: Wire, request: bytes) -> None:
    wire.send(hello(request))


def answers(wire: Wire, ids: Ids) -> None:
    wire.send(ack(ids))


def closes(wire: Wire, _: object) -> None:
    """Close as a FIN: to close with frames unread, as of a pool's other calls, is a reset."""
    wire.sock.shutdown(socket.SHUT_WR)
    wire.wait_for_end()
    raise EOFError


def resets(wire: Wire, _: object) -> None:
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wire.close()
    raise EOFError


def is_silent(wire: Wire, _: object) -> None:
    wire.wait_for_end()
    raise EOFError


def says(*pieces: bytes, then: Callable[[Wire, object], object] = is_silent) -> Callable[..., None]:
    """The same bytes, whatever came; then close, or be silent."""

    def say(wire: Wire, came: object) -> None:
        wire.send(*pieces)
        then(wire, came)

    return say


parts = says(disconnect(0, "normal"), then=closes)


def hello_with(**items: Any) -> Greeting:
    return lambda wire, request: wire.send(hello(request, **items))


def replies(
    *make: Callable[[Ids], bytes], then: Callable[[Wire, object], object] | None = None
) -> Answer:
    """Frames made of the ids of the NOTIFY, in one send."""

    def reply(wire: Wire, ids: Ids) -> None:
        wire.send(b"".join(frame(ids) for frame in make))
        if then is not None:
            then(wire, ids)

    return reply


def acts(*actions: bytes) -> Answer:
    """An ACK with these actions behind the good one."""
    return replies(lambda ids: ack(ids, SET + b"".join(actions)))


def fixed(data: bytes) -> Callable[[Ids], bytes]:
    return lambda ids: data


def stops_after(count: int, then: Callable[[Wire, Ids], object] = is_silent) -> Answer:
    """Answers so many on each connection; to the next it says nothing, or what `then` does."""
    answered: dict[Wire, int] = {}

    def answer(wire: Wire, ids: Ids) -> None:
        answered[wire] = answered.get(wire, 0) + 1
        (answers if answered[wire] <= count else then)(wire, ids)

    return answer


@dataclass(frozen=True)
class Odd:
    """What an agent does.

    Attributes:
        greet: with a HELLO.
        answer: with a NOTIFY.
        part: with a DISCONNECT.
        dies: it is a process that its handler kills.
    """

    greet: Greeting = greets
    answer: Answer = answers
    part: Callable[[Wire, bytes], object] = parts
    dies: bool = False


FIRST_HALF, HALF = hello()[:20], 12
A_NOTIFY = bytes(codec.encode_raw_frame(FrameType.NOTIFY, FrameFlag.FIN, 1, 1, b""))
ODD_HELLO = bytes(
    codec.encode_raw_frame(
        FrameType.AGENT_HELLO,
        FrameFlag.FIN,
        0,
        0,
        # Behind the good items: a UINT32 of 2**40, a reserved type.
        hello()[11:] + b"\x01n\x03" + codec.encode_varint(2**40) + b"\x01r\x0c",
    )
)
"""A HELLO with unknown items that no encoder would write."""

AGENTS = {
    "good": Odd(),
    # The goodbye.
    "no-goodbye": Odd(part=is_silent),
    "closes-as-goodbye": Odd(part=closes),
    "goodbye-with-error": Odd(part=says(disconnect(13, "no memory"), then=closes)),
    # In place of an ACK.
    "silent": Odd(answer=is_silent),
    "stops": Odd(answer=stops_after(1)),
    "closes": Odd(answer=closes),
    "resets": Odd(answer=resets),
    "dies": Odd(dies=True),
    "disconnect": Odd(answer=says(disconnect(13, "no memory"), then=closes)),
    "disconnect-unprintable": Odd(answer=says(disconnect(13, "no\udcff\x1b[31m"), then=closes)),
    "disconnect-open": Odd(answer=says(disconnect(13, "no memory"))),
    "empty-frame": Odd(answer=says(EMPTY_FRAME)),
    "unknown-frame": Odd(answer=says(UNKNOWN_FRAME)),
    "garbage": Odd(answer=says(GARBAGE)),
    "garbage-closed": Odd(answer=says(GARBAGE, then=closes)),
    "ack-without-fin": Odd(answer=replies(lambda ids: ack(ids, flags=0))),
    "ack-cut": Odd(answer=replies(lambda ids: ack(ids)[:HALF], then=is_silent)),
    "ack-cut-closed": Odd(answer=replies(lambda ids: ack(ids)[:HALF], then=closes)),
    "ack-short": Odd(answer=replies(lambda ids: ack(ids, SET[:-3]))),
    "ack-too-long": Odd(answer=replies(lambda ids: ack(ids, SET * 2000))),
    "ack-for-others": Odd(answer=replies(lambda ids: ack((ids[0] + 10**6, ids[1])))),
    # Around an ACK.
    "no-actions": Odd(answer=replies(lambda ids: ack(ids, b""))),
    "abort": Odd(answer=replies(lambda ids: ack(ids, flags=FrameFlag.FIN | FrameFlag.ABORT))),
    "reserved-flags": Odd(answer=replies(lambda ids: ack(ids, flags=0xFF00 | FrameFlag.FIN))),
    "hello-again": Odd(answer=replies(fixed(hello()), ack)),
    "notify-before": Odd(answer=replies(fixed(A_NOTIFY), ack)),
    "unknown-frame-before": Odd(answer=replies(fixed(UNKNOWN_FRAME), ack)),
    # Actions: malformed ones, and integers out of the range of their type.
    "unknown-action": Odd(answer=acts(b"\x09\x01x")),
    "unknown-action-between": Odd(answer=acts(b"\x09\x01x", MORE)),
    "unknown-scope": Odd(answer=acts(set_x("01 03 09", "11"), MORE)),
    "wrong-count": Odd(answer=acts(set_x("01 04 01", "11"), MORE)),
    "wrong-count-of-unset": Odd(answer=acts(set_x("02 03 01", "11"), MORE)),
    "reserved-type": Odd(answer=acts(set_x("01 03 01", "0b"), MORE)),
    "action-cut": Odd(answer=acts(MORE[:-1])),
    "name-cut": Odd(answer=acts(MORE[:5])),
    "head-cut": Odd(answer=acts(MORE[:2])),
    "int32-unsigned": Odd(answer=acts(set_x("01 03 01", "02 fff0fefe7e"), MORE)),
    "uint32-negative": Odd(answer=acts(set_x("01 03 01", "03 fbf0fefefefefefefe0e"), MORE)),
    "ack-twice": Odd(answer=replies(ack, ack)),
    "ack-for-others-before": Odd(answer=replies(lambda ids: ack((ids[0] + 10**6, ids[1])), ack)),
    "empty-frame-before": Odd(answer=replies(fixed(EMPTY_FRAME), ack)),
    "empty-frame-behind": Odd(answer=replies(ack, fixed(EMPTY_FRAME))),
    "garbage-behind": Odd(answer=replies(ack, fixed(GARBAGE))),
    "disconnect-behind": Odd(answer=replies(ack, fixed(disconnect(0, "normal")), then=closes)),
    "error-behind": Odd(answer=replies(ack, fixed(disconnect(13, "no memory")), then=closes)),
    "closes-behind": Odd(answer=replies(ack, then=closes)),
    # In place of a HELLO.
    "silent-hello": Odd(greet=is_silent),
    "closes-hello": Odd(greet=closes),
    "refuses": Odd(greet=says(disconnect(13, "no memory"), then=closes)),
    "refuses-open": Odd(greet=says(disconnect(13, "no memory"))),
    "http": Odd(greet=says(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", then=closes)),
    "tls": Odd(greet=says(TLS_ALERT, then=closes)),
    "half-a-hello": Odd(greet=says(FIRST_HALF)),
    "half-a-hello-closed": Odd(greet=says(FIRST_HALF, then=closes)),
    "hello-and-closes": Odd(greet=says(hello(), then=closes)),
    # HELLO.
    **{f"version-{v}": Odd(greet=hello_with(version=v)) for v in ("1.0", "2", "2.00", "2.1", "3.0")},
    "size-100": Odd(greet=hello_with(max_frame_size=UInt32(100))),
    "size-99999": Odd(greet=hello_with(max_frame_size=UInt32(99999))),
    "size-int32": Odd(greet=hello_with(max_frame_size=Int32(16380))),
    "version-and-size": Odd(greet=hello_with(version="3.0", max_frame_size=UInt32(99999))),
    "version-and-no-size": Odd(greet=hello_with(version="3.0", max_frame_size=None)),
    "odd-items": Odd(greet=lambda wire, came: wire.send(ODD_HELLO)),
    "no-capabilities": Odd(greet=hello_with(capabilities=None)),
    "in-lock-step": Odd(greet=hello_with(capabilities="")),
    "unknown-items": Odd(greet=hello_with(engine_id="mine", colour="blue", number=5)),
    "unknown-capabilities": Odd(greet=hello_with(capabilities="pipelining,telepathy , ,x")),
    "hello-in-pieces": Odd(greet=lambda wire, came: wire.send(hello(came)[:9], hello(came)[9:])),
    "single-bytes": Odd(
        greet=lambda wire, request: wire.send(*single_bytes(hello(request))),
        answer=lambda wire, ids: wire.send(*single_bytes(ack(ids))),
        part=says(*single_bytes(disconnect(0, "normal")), then=closes),
    ),
}  # fmt: skip


# --- running one ---


class OddAgent:
    """One that listens, for a ``with`` statement; each connection has a thread.

    Attributes:
        reached_at: when the first connection came, in the time of `time.monotonic`.
        accepted: number of connections so far.
    """

    def __init__(self, odd: Odd) -> None:
        self._odd = odd
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.reached_at: float | None = None
        self.accepted = 0
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.reached_at = self.reached_at or time.monotonic()
            self.accepted += 1
            self._open.add(sock)
            threading.Thread(target=self._converse, args=(sock,), daemon=True).start()

    def _converse(self, sock: socket.socket) -> None:
        odd, wire = self._odd, Wire(sock)
        with contextlib.suppress(EOFError, OSError):
            odd.greet(wire, wire.read())
            while True:
                frame = wire.read()
                if frame[0] == FrameType.HAPROXY_DISCONNECT:
                    odd.part(wire, frame)
                elif frame[4] & FrameFlag.FIN:
                    stream_id, offset = codec.decode_varint(frame, 5)
                    odd.answer(wire, (stream_id, codec.decode_varint(frame, offset)[0]))
        self._open.discard(sock)
        wire.close()


DEADLY = """
import os, signal, time, spop
agent = spop.Agent()
@agent.on_connect
def reached(peer):
    print(time.monotonic(), flush=True)
@agent.message("check")
def check():
    os.kill(os.getpid(), signal.SIGKILL)
with agent.serve_in_background() as server:
    print(server.address, flush=True)
    signal.pause()
"""


class DyingAgent:
    """A process that its handler kills, for a ``with`` statement.

    Attributes:
        reached_at: as that of `OddAgent`.
    """

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", DEADLY], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        return self

    @functools.cached_property
    def reached_at(self) -> float:
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def odd_agent(name: str) -> Iterator[OddAgent | DyingAgent]:
    """The agent of that name, running."""
    odd = AGENTS[name]
    with DyingAgent() if odd.dies else OddAgent(odd) as agent:
        yield agent
