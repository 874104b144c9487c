"""A connection's frames are answered for a limited time, then others have their turn."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import operator
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from event_loops import EVENT_LOOPS, agent_of_each_kind, serve_on
from haproxy import wait_until
from implementations import intake_class, route_class
from wire import hello

from spop import Agent, Client, Message, codec
from spop.connection import EngineConnection
from spop.constants import BYTES_PER_LOOK, FrameType
from spop.counters import Cell
from spop.errors import HandlerError
from spop.parameters import LEFT
from spop.server import loop


def opened(dispatch: ModuleType) -> Any:
    intake = intake_class(dispatch)(16380)
    intake.is_open = True
    return intake


def frames(count: int, name: str = "m") -> bytes:
    return b"".join(codec.encode_notify(n, 1, [Message(name)]) for n in range(1, count + 1))


def acks(data: bytes) -> list[int]:
    return [frame.stream_id for frame in codec.decode_frames(data)[0]]


def received_acks(sock: socket.socket, count: int) -> list[int]:
    found: list[int] = []
    data = bytearray()
    while len(found) < count:
        data += sock.recv(65536)
        whole, used = codec.decode_frames(data)
        del data[:used]
        found += [frame.stream_id for frame in whole]
    return found


def test_a_pass_ends_between_two_frames_and_the_next_goes_on(dispatch: ModuleType) -> None:
    route = route_class(dispatch)("m", lambda: time.sleep(0.001))
    dispatcher, intake = dispatch.Dispatcher([route], max_pass=1), opened(dispatch)
    answered = [acks(dispatcher.receive(intake, frames(3))[1])]
    assert intake.suspended
    assert dispatcher.receive(intake, b"") == ([], b"")
    while intake.suspended:
        intake.suspended = False
        dispatcher.new_pass()
        answered.append(acks(dispatcher.receive(intake, b"")[1]))
    assert answered == [[1], [2], [3]]
    assert intake.unread == 0


def test_a_pass_is_one_of_all_receives_until_the_next(dispatch: ModuleType) -> None:
    dispatcher, intake = dispatch.Dispatcher([], max_pass=1), opened(dispatch)
    unknown = codec.encode_raw_frame(77, 1, 1, 1, b"")
    left, _ = dispatcher.receive(intake, unknown * 3)
    assert len(left) == 1
    assert dispatcher.receive(intake, b"") == ([], b"")
    assert intake.suspended


def test_a_pass_ends_behind_a_frame_that_waits(dispatch: ModuleType) -> None:
    route = route_class(dispatch)("m", lambda: None, kind=LEFT)
    dispatcher, intake = dispatch.Dispatcher([route], max_pass=1), opened(dispatch)
    intake.max_in_flight = 10
    assert len(dispatcher.receive(intake, frames(3))[0]) == 1
    assert intake.suspended


FRAGMENT = bytes(codec.encode_raw_frame(FrameType.UNSET, 0, 1, 1, b""))
UNTIMED = {
    "frames without messages": bytes(codec.encode_raw_frame(FrameType.NOTIFY, 1, 1, 1, b"")) * 1000,
    "fragments": bytes(codec.encode_raw_frame(FrameType.NOTIFY, 0, 1, 1, b"")) + FRAGMENT * 1000,
    "cached answers": frames(1000),
}


@pytest.mark.parametrize("data", UNTIMED.values(), ids=list(UNTIMED))
def test_a_pass_ends_where_no_handler_takes_time(dispatch: ModuleType, data: bytes) -> None:
    cache = importlib.import_module(dispatch.__name__.replace("_dispatch", "_cache"))
    route = route_class(dispatch)("m", lambda: None)
    route.answers = cache.Answers(1)
    route.answers.keep(b"", b"", 2**62, 0)
    dispatcher, intake = dispatch.Dispatcher([route], max_pass=1), opened(dispatch)
    intake.takes_fragments = True
    dispatcher.receive(intake, data)
    assert intake.suspended
    assert intake.unread > len(data) - 2 * BYTES_PER_LOOK


def test_without_a_limit_a_pass_takes_all(dispatch: ModuleType) -> None:
    route = route_class(dispatch)("m", lambda: time.sleep(0.001))
    _, out = dispatch.Dispatcher([route]).receive(opened(dispatch), frames(20))
    assert acks(out) == list(range(1, 21))


def blocking(agent: Agent) -> None:
    agent.message("m", blocking=True)(lambda: {"sess.x": 1})


def inline(agent: Agent) -> None:
    agent.message("m")(lambda: {"sess.x": 1})


def large(agent: Agent) -> None:
    agent.message("m")(lambda: {"sess.x": bytes(15_000)})


def asynchronous(agent: Agent) -> None:
    async def handler() -> dict[str, int]:
        return {"sess.x": 1}

    agent.message("m")(handler)


@pytest.mark.parametrize("add", [inline, large, blocking, asynchronous])
@pytest.mark.parametrize("log_frames", [False, True])
def test_all_frames_are_answered_however_short_the_passes_are(
    add: Callable[[Agent], None], log_frames: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_PASS", 1)
    agent = Agent()
    add(agent)
    with agent.serve_in_background(log_frames=log_frames, max_unsent=20_000) as server:
        sock, _ = hello(server)
        with sock, Client(str(server.address)) as neighbour:
            sock.sendall(frames(500))
            assert sorted(received_acks(sock, 500)) == list(range(1, 501))
            assert neighbour.notify("m").actions
        assert server.totals().cells[Cell.PAUSED_IN_FLIGHT] == 0


@pytest.mark.parametrize("event_loop", EVENT_LOOPS)
def test_passes_follow_one_another_in_each_event_loop(
    event_loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_PASS", 1)
    serve = serve_on(event_loop, monkeypatch)
    with serve(agent_of_each_kind()) as server:
        sock, _ = hello(server)
        with sock:
            sock.sendall(frames(100, "inline"))
            assert received_acks(sock, 100) == [*range(1, 101)]


def test_max_in_flight_is_counted_where_a_pass_had_stopped_the_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "MAX_PASS", 1)
    agent, gate, begun = Agent(), threading.Event(), itertools.count()

    @agent.message("m")
    async def waits() -> None:
        if next(begun) == 0:  # More bytes come while the pass has left frames.
            sock.sendall(more)
        await asyncio.to_thread(gate.wait, 10)

    with agent.serve_in_background(max_in_flight=4) as server:
        sock, protocol = hello(server)
        with sock:
            for number in range(6):
                protocol.notify(number, 1, [Message("m")])
            sent = protocol.data_to_send()
            protocol.notify(6, 1, [Message("m")])
            more = protocol.data_to_send()
            sock.sendall(sent)
            paused = operator.itemgetter(Cell.PAUSED_IN_FLIGHT)
            wait_until(lambda: paused(server.totals().cells) == 1, "the pause")
            gate.set()
            while protocol.waiting:
                protocol.receive_data(sock.recv(4096))


def test_frames_that_a_pass_has_left_are_answered_before_the_server_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "MAX_PASS", 1)
    agent = Agent()
    inline(agent)
    with agent.serve_in_background() as server:
        sock, _ = hello(server)
        sock.sendall(frames(2000))
        assert sock.recv(1)
    data = bytearray(b"\0")
    with sock:
        while chunk := sock.recv(65536):
            data += chunk
    found, used = codec.decode_frames(data)
    assert used == len(data)
    assert [frame.stream_id for frame in found if hasattr(frame, "actions")] == [*range(1, 2001)]


def test_neighbours_have_their_turn_beside_frames_that_fail() -> None:
    agent = Agent()

    @agent.message("need")
    def need(a: int) -> None: ...

    inline(agent)
    many = codec.encode_notify(1, 1, [Message("need")] * 1000)
    with agent.serve_in_background() as server, Client(str(server.address)) as neighbour:
        sock, _ = hello(server)
        with sock:
            for _ in range(20):
                sock.sendall(many * 30)
                before = server.totals().routes["need"][0]
                assert neighbour.notify("m").actions
                # Of 30 000 failures before the neighbour's turn a pass has some hundreds.
                assert server.totals().routes["need"][0] - before < 30_000


@contextlib.contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    """Over a unix socket, where what is sent has come when `send` returns."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(EngineConnection().data_to_send())
        sock.recv(4096)
        yield sock


def test_others_have_their_turn_between_the_passes_of_two_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loop, "MAX_PASS", 1)
    agent, all_have_come = Agent(), threading.Event()
    order: list[str] = []
    path = f"{tmp_path}/sock"

    @agent.message("m")
    def handler() -> None:
        all_have_come.wait(15)
        if not order or order[-1] == "ask":
            neighbour.send(frames(1, "ask"))
        order.append("m")

    @agent.message("ask")
    def ask() -> None:
        order.append("ask")

    with agent.serve_in_background(f"unix:{path}"), contextlib.ExitStack() as stack:
        neighbour, *others = (stack.enter_context(connected(path)) for _ in range(9))
        for sock in others:
            sock.sendall(frames(50))
        all_have_come.set()
        wait_until(lambda: order.count("m") == 8 * 50, "all frames")
    between = [len(list(group)) for name, group in itertools.groupby(order) if name == "m"]
    assert statistics.median(between) <= 2


def test_both_twins_of_the_port_leave_a_suspended_intake_to_the_loop(
    implementation: str,
) -> None:
    suffix = "" if implementation == "c" else "_py"
    port = importlib.import_module(f"spop._port{suffix}")
    dispatch = importlib.import_module(f"spop._dispatch{suffix}")
    told: list[Any] = []
    route = route_class(dispatch)("m", lambda: time.sleep(0.001))
    dispatcher, intake = dispatch.Dispatcher([route], max_pass=1), opened(dispatch)
    shared = port.FastPaths(
        dispatcher, bytearray(65536), lambda *args: None, lambda *args: told.append(args), None
    )
    engine, ours = socket.socketpair()
    with engine, ours:
        path = port.FastPath(shared, intake, ours.fileno(), "connection")
        path.enabled = True
        engine.sendall(frames(3))
        path(1)
        assert told == [("connection", [], b"", None)]
        assert acks(engine.recv(4096)) == [1]
        path(1)  # It does not answer while the intake is suspended.
        assert intake.suspended


def test_a_failing_message_takes_few_calls() -> None:
    """A frame may have a thousand of them, and others wait until all have failed."""
    agent = Agent()
    agent.message("need")(lambda number: None)
    error = HandlerError("message need: no argument number")
    counts = []
    for _ in range(50):  # Most of their lines are left out.
        calls: list[str] = []
        sys.setprofile(lambda frame, event, argument, calls=calls: calls.append(event))
        try:
            agent.failed("need", error)
        finally:
            sys.setprofile(None)
        counts.append(calls.count("call") + calls.count("c_call"))
    assert min(counts) < 50
