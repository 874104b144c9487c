"""Counts balance at rest, whatever has ended: a NOTIFY is answered, dropped, lost, or in hand."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from serving import served, wait_until_serving
from wire import hello

from spop import Agent, Client, Message
from spop.counters import Cell, Totals, new_row
from spop.errors import DisconnectedError, UnreachableError
from spop.logs import RateLimitedLog, SafeLogger
from spop.server import Server
from spop.server.channel import Channel
from spop.server.children import WorkerProcess

SLEEPS = """
import time
from spop import Agent

agent = Agent()

@agent.message("sleeps", blocking=True)
def sleeps():
    time.sleep(60)
"""


def no_memory(*_: object, **__: object) -> Any:
    raise MemoryError


def test_frames_in_the_hands_of_a_worker_that_died_are_lost_and_no_longer_in_hand() -> None:
    row = new_row(0)
    row[Cell.NOTIFIES], row[Cell.ACKS], row[Cell.ACKS_DROPPED] = 10, 6, 1
    totals = Totals()
    totals.add(row, [])
    totals.end()
    assert (totals.in_hand, totals.cells[Cell.FRAMES_LOST]) == (0, 3)
    service = Totals()
    service.merge(totals)
    assert service.counts().frames_in_hand == 0


def test_a_killed_worker_leaves_no_frame_in_hand(tmp_path: Path) -> None:
    path = tmp_path / "sleeping_agent.py"
    path.write_text(SLEEPS)
    options = "--bind", f"unix:{tmp_path}/agent.sock", "--log-level", "info"
    with served(*options, target=f"{path}:agent") as process:
        wait_until_serving(process)
        (worker,) = process.workers()
        with Client(f"unix:{tmp_path}/agent.sock") as client:
            calls = [threading.Thread(target=_fails, args=[client]) for _ in range(3)]
            for call in calls:
                call.start()
            wait_until(lambda: _in_hand(process) == 3, "frames in hand")
            os.kill(worker, signal.SIGKILL)
            for call in calls:
                call.join()
        process.wait_for_log("3 frames lost")
        wait_until(lambda: _in_hand(process) == 0, "the end of the frames")


def _fails(client: Client) -> None:
    with pytest.raises(DisconnectedError):
        client.notify("sleeps")


def _in_hand(process: Any) -> int:
    """As the log tells on SIGUSR1."""
    before = process.log.count(" in hand")
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: process.log.count(" in hand") > before, "the status")
    line = next(each for each in reversed(process.lines) if " in hand" in each)
    return int(line.partition(" in hand")[0].rsplit(" ", 1)[1])


def test_an_error_of_our_own_drops_all_frames_of_its_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, released = Agent(), threading.Event()

    @agent.message("fails")
    def fails() -> None:
        raise ValueError

    @agent.message("waits", blocking=True, timeout=30)
    def waits() -> None:
        released.wait(30)

    # Whatever raises where an error is counted and logged, as with no memory left.
    monkeypatch.setattr(agent, "failed", no_memory)
    with agent.serve_in_background() as server:
        sock, protocol = hello(server)
        with sock:
            protocol.notify(1, 1, [Message("waits")])
            protocol.notify(2, 1, [Message("fails")])
            sock.sendall(protocol.data_to_send())
            assert not sock.recv(4096)
        wait_until(lambda: server.totals().counts().frames_received == 2, "the frames")
        wait_until(lambda: server.totals().in_hand == 0, "no frame in hand")
        assert server.totals().cells[Cell.ACKS_DROPPED] == 2
        released.set()


# --- the system has no thread ---


def no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_calls_wait_until_the_system_has_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, tried = Agent(), threading.Event()

    @agent.message("blocks", blocking=True)
    def blocks() -> dict[str, int]:
        return {"sess.n": 1}

    start = threading.Thread.start

    def refuse_once(thread: threading.Thread) -> None:
        if thread.name.startswith("spop-pool-") and not tried.is_set():
            tried.set()
            no_thread(thread)
        start(thread)

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        monkeypatch.setattr(threading.Thread, "start", refuse_once)
        assert client.notify("blocks", timeout=10).variables == {"sess.n": 1}
        assert tried.is_set()
        assert client.notify("blocks", timeout=10).variables == {"sess.n": 1}


def test_a_line_that_is_left_out_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    log = RateLimitedLog(SafeLogger("tests"), per_second=1)
    monkeypatch.setattr("time.monotonic", lambda: 1.0)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert log.allows(40, "first")
    assert not log.allows(40, "second")
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    assert not log.allows(40, "third")
    assert len(started) == 1


# --- there is no memory ---


def test_the_death_of_a_thread_ends_the_process_though_it_cannot_be_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    server = Server(Agent())
    server.ends_process = True
    monkeypatch.setattr("spop.server.server.fields", no_memory)
    monkeypatch.setattr(os, "_exit", lambda status: ended.append(status))
    with pytest.raises(MemoryError):
        server.thread_died(MemoryError())
    assert ended == [1]


# --- the wall clock is set ---


def test_how_long_a_worker_lived_does_not_depend_on_the_wall_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = Channel.pair()
    worker = WorkerProcess(1, ours, 1, 0)
    monkeypatch.setattr(time, "time", lambda: worker.started + 86400)
    assert 0 <= worker.lived < 60
    ours.close()
    theirs.close()


def test_how_long_a_connection_lasted_does_not_depend_on_the_wall_clock(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent()
    caplog.set_level("INFO")
    with agent.serve_in_background() as server:
        sock, _ = hello(server)
        before = time.time()
        monkeypatch.setattr(time, "time", lambda: before - 86400)
        sock.close()
        wait_until(lambda: "disconnected by" in caplog.text, "the end of the connection")
    (record,) = (each for each in caplog.records if "disconnected by" in each.getMessage())
    assert 0 <= record.spop_fields["duration"] < 60  # type: ignore[attr-defined]


def test_an_age_does_not_depend_on_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent()
    with agent.serve_in_background(max_connection_age=3600.0) as server:
        before = time.time()
        monkeypatch.setattr(time, "time", lambda: before + 86400)
        (loop,) = server._loops  # type: ignore[attr-defined]
        sock, _ = hello(server)
        with sock:
            (connection,) = loop.connections
            state = {"host": None, "port": None, "began": connection.began}
            state.update(connection.protocol.negotiated())
            monkeypatch.setattr(time, "time", lambda: before + 3 * 86400)
            mine, theirs = socket.socketpair()
            with mine:
                server.adopt(theirs, state, lambda _: None)  # type: ignore[attr-defined]
                wait_until(lambda: len(loop.connections) == 2, "the connection that moved")
                ends = loop._leaving.ages._ends
                assert min(ends.values()) > time.monotonic() + 3000


def test_a_client_says_that_it_has_no_thread_and_goes_on_once_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent()
    agent.message("m")(lambda: {"sess.n": 1})
    with agent.serve_in_background() as server:
        client = Client(str(server.address), timeout=15)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_thread)
            for _ in range(2):
                with pytest.raises(UnreachableError, match="can't start new thread"):
                    client.notify("m")
        assert client.notify("m").variables == {"sess.n": 1}
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        client.close()
        ended = Cell.DISCONNECTS_RECEIVED
        wait_until(lambda: server.totals().cells[ended] == 1, "its DISCONNECT")
