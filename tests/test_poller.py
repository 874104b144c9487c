"""The pollers: the compiled one, epoll from Python, and the standard library's selectors."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from spop import codec
from spop.counters import Cell, new_row
from spop.poller import READ, WRITE, EpollPoller, Poller, SelectorPoller, new_poller
from spop.port import Sleeper

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=dict.fromkeys([EpollPoller, SelectorPoller, new_poller]))
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    poller: Poller = request.param()
    yield poller
    poller.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def noting(found: list[Any], name: str = "") -> Callable[[int], object]:
    return lambda events: found.append((name, events) if name else events)


def test_the_best_is_compiled_where_the_codec_is() -> None:
    module = "spop._port" if codec.IMPLEMENTATION == "c" else "spop.poller"
    assert type(new_poller()).__module__ == module


def test_it_tells_what_a_socket_is_ready_for(poller: Poller, pair: Pair) -> None:
    found: list[int] = []
    poller.register(pair[0].fileno(), READ, noting(found))
    poller.run(0)
    assert found == []
    pair[1].send(b"x")
    poller.run(None)
    poller.modify(pair[0].fileno(), READ | WRITE)
    poller.run(None)
    pair[0].recv(1)
    assert found == [READ, READ | WRITE]
    poller.unregister(pair[0].fileno())
    pair[1].send(b"x")
    poller.run(0)
    assert len(found) == 2


def test_an_end_is_something_to_read(poller: Poller, pair: Pair) -> None:
    found: list[int] = []
    poller.register(pair[0].fileno(), READ, noting(found))
    pair[1].close()
    poller.run(None)
    assert found == [READ]


def test_one_that_was_unregistered_in_the_round_is_left_out(poller: Poller, pair: Pair) -> None:
    found: list[int] = []

    def forget(number: int) -> Callable[[int], object]:
        def call(_: int) -> None:
            found.append(number)
            poller.unregister(pair[1 - number].fileno())

        return call

    for number, sock in enumerate(pair):
        poller.register(sock.fileno(), READ, forget(number))
        pair[1 - number].send(b"x")
    poller.run(None)
    assert len(found) == 1


def test_whoever_was_not_registered_cannot_be_unregistered(poller: Poller, pair: Pair) -> None:
    with pytest.raises(KeyError):
        poller.unregister(pair[0].fileno())


def test_errors_come_out(poller: Poller, pair: Pair) -> None:
    def fail(_: int) -> None:
        raise LookupError("told")

    poller.register(pair[0].fileno(), READ, fail)
    pair[1].send(b"x")
    with pytest.raises(LookupError, match="told"):
        poller.run(None)


@pytest.mark.parametrize("seconds", [0.001, 1e6, 1e9, float("inf")])
def test_waits_may_be_of_any_length(poller: Poller, pair: Pair, seconds: float) -> None:
    found: list[int] = []
    poller.register(pair[0].fileno(), READ, noting(found))
    pair[1].send(b"x")
    poller.run(seconds)
    assert found == [READ]
    assert [events for _, events in poller.poll(seconds)] == [READ]


def test_waiting_and_calling_can_be_apart(poller: Poller, pair: Pair) -> None:
    found: list[int] = []
    ready = noting(found)
    poller.register(pair[0].fileno(), READ, ready)
    assert poller.poll(0) == []
    pair[1].send(b"x")
    assert poller.poll(None) == [(ready, READ)]
    assert found == []


@pytest.mark.parametrize("way", ["run", "poll"])
def test_whoever_waits_is_woken(poller: Poller, way: str) -> None:
    wait = getattr(poller, way)
    timer = threading.Timer(0.05, poller.wake)
    timer.start()
    assert not wait(None)
    timer.join()
    poller.wake()
    poller.wake()
    assert not wait(None)
    started = time.monotonic()
    assert not wait(0.05)
    assert time.monotonic() - started > 0.04


def test_a_closed_one_may_be_woken_and_closed(poller: Poller) -> None:
    poller.close()
    poller.wake()
    poller.close()


@pytest.mark.parametrize("poller", dict.fromkeys([EpollPoller, new_poller]), indirect=True)
def test_a_closed_one_waits_for_nothing(poller: Poller) -> None:
    poller.close()
    with pytest.raises(ValueError, match="closed"):
        poller.poll(0)


@pytest.mark.parametrize("new", dict.fromkeys([EpollPoller, SelectorPoller, new_poller]))
def test_it_writes_when_the_present_round_began(new: Callable[..., Poller], pair: Pair) -> None:
    cells, seen = new_row(0), []
    poller = new(cells)
    before = time.monotonic_ns()
    poller.register(pair[0].fileno(), READ, lambda events: seen.append(cells[Cell.ROUND_BEGAN]))
    waiting = threading.Timer(0.05, lambda: (seen.append(cells[Cell.ROUND_BEGAN]), poller.wake()))
    waiting.start()
    poller.run(None)
    pair[1].send(b"x")
    poller.run(None)
    waiting.join()
    assert seen[0] == 0
    assert before <= seen[1] <= time.monotonic_ns()
    poller.close()


@pytest.mark.parametrize("timeout", [0, None])
def test_it_wakes_another_thread_in_its_next_wait(poller: Poller, timeout: float | None) -> None:
    sleepers = Sleeper(), Sleeper()
    threads = [threading.Thread(target=sleeper.sleep) for sleeper in sleepers]
    threads += [threading.Thread(target=lambda: (threads[1].join(), poller.wake()))]
    for thread in threads:
        thread.start()
    for sleeper in sleepers:
        poller.wake_in_wait(sleeper)
    poller.run(timeout)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(params=dict.fromkeys([EpollPoller, SelectorPoller, new_poller]))
def busy_poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    """One that looks for a second before it sleeps."""
    poller: Poller = request.param(None, 1.0)
    yield poller
    poller.close()


def test_a_busy_one_looks_before_it_sleeps(busy_poller: Poller) -> None:
    for timeout, least in [(1.5, 0.01), (0.0, 0.0)]:
        before, began = time.thread_time(), time.monotonic()
        assert busy_poller.poll(timeout) == []
        assert time.thread_time() - before >= least
        assert time.monotonic() - began >= timeout


def test_a_busy_one_finds_what_comes_meanwhile(busy_poller: Poller, pair: Pair) -> None:
    ready = noting([])
    busy_poller.register(pair[0].fileno(), READ, ready)
    for timeout in (None, 10.0):
        timer = threading.Timer(0.01, pair[1].send, [b"x"])
        timer.start()
        assert busy_poller.poll(timeout) == [(ready, READ)]
        pair[0].recv(1)
    timer = threading.Timer(0.01, busy_poller.wake)
    timer.start()
    assert busy_poller.poll(None) == []
