"""Health in every state that a service can be in: /healthz, /readyz, `spop check`, the watchdog."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from haproxy import wait_until
from serving import Served, served, wait_until_serving
from test_admin import get

from spop import Agent, Client, Message, SpopError
from spop.connection import Disconnect, EngineConnection, Hello
from spop.constants import Status
from spop.server.board import Board
from spop.server.channel import Channel
from spop.server.children import WorkerProcess, Workers
from spop.server.stuck import StuckWorkers
from spop.server.timers import Timers

AGENT = """
import ctypes, os, re, select, threading, time
from pathlib import Path
from spop import Agent

while Path({wait!r}).exists():
    time.sleep(0.01)
if Path({broken!r}).exists():
    os.abort()

agent = Agent("ill")

@agent.message("pid")
def pid():
    return {{"txn.pid": os.getpid()}}

@agent.message("work", blocking=True)
def work():
    time.sleep(2)

@agent.message("hang")
def hang():
    time.sleep(600)

@agent.message("deafen")
def deafen():
    "Whatever wakes the loop from now on, it waits at an empty epoll."
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    loops = [int(link.name) for link in links if "eventpoll" in os.readlink(link)]
    empty = select.epoll()
    for fd in loops:
        os.dup2(empty.fileno(), fd)

@agent.message("match")
def match():
    "It holds the GIL, for years."
    re.match("(a+)+$", "a" * 60 + "b")

class Death(BaseException):
    pass

@agent.message("kill", blocking=True)
def kill():
    "Ends the thread of the loop."
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "spop-loop-0")
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Death)
    )
"""
STUCK_TIMEOUT = 3


class Service(NamedTuple):
    """A running service. `manager` is the socket at which systemd would listen."""

    process: Served
    address: str
    admin: str
    folder: Path
    manager: socket.socket

    def health(self) -> tuple[int, int]:
        """What /healthz and /readyz say."""
        return get(self.admin, "/healthz")[0], get(self.admin, "/readyz")[0]

    def status(self) -> dict[str, Any]:
        return dict(json.loads(get(self.admin, "/status.json")[1]))

    def states(self) -> list[str]:
        return sorted(worker["state"] for worker in self.status()["workers"])

    def check(self) -> int:
        """The exit status of ``spop check``."""
        return subprocess.run(
            [sys.executable, "-m", "spop", "check", self.address], capture_output=True, timeout=30
        ).returncode

    def workers(self) -> set[int]:
        return {worker["pid"] for worker in self.status()["workers"]}

    def told(self) -> list[str]:
        """What systemd was told since the last time."""
        found: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found += self.manager.recv(4096, socket.MSG_DONTWAIT).decode().split("\n")
        return found

    def wait_for_watchdog(self) -> None:
        self.told()
        wait_until(lambda: "WATCHDOG=1" in self.told(), "the watchdog")

    @contextlib.contextmanager
    def handling(self, *messages: str) -> Iterator[None]:
        """While the handlers of messages are at work, each for a client of its own."""
        with contextlib.ExitStack() as stack:
            for message in messages:
                client = stack.enter_context(contextlib.closing(Client(self.address)))
                client.connect()
                client.send([Message(message)])
            yield


@contextlib.contextmanager
def serving(tmp_path: Path, *options: str, starts: bool = True) -> Iterator[Service]:
    path, address = tmp_path / "ill_agent.py", f"unix:{tmp_path}/agent.sock"
    path.write_text(AGENT.format(wait=f"{tmp_path}/wait", broken=f"{tmp_path}/broken"))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        contextlib.ExitStack() as stack,
    ):
        manager.bind(str(tmp_path / "notify"))
        process = stack.enter_context(
            served(
                "--bind", address, "--admin", "127.0.0.1:0", "--stuck-timeout", str(STUCK_TIMEOUT),
                *options, target=f"{path}:agent",
                NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="300000",
            )
        )  # fmt: skip
        process.wait_for_log("admin on")
        if starts:
            wait_until_serving(process)
        admin = re.findall(r"admin on (\S+)", process.log)[0]
        yield Service(process, address, admin, tmp_path, manager)


# --- a supervisor and its workers ---


def test_an_idle_service_is_healthy(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2", "--threads", "2") as service:
        assert service.health() == (200, 200)
        assert service.check() == 0
        assert service.states() == ["ready", "ready"]
        service.wait_for_watchdog()


def test_a_service_of_which_all_blocking_handlers_are_busy_is_healthy(tmp_path: Path) -> None:
    with serving(tmp_path, "--pool-size", "4") as service, service.handling(*["work"] * 12):
        wait_until(lambda: service.status()["counts"]["running"] == 4, "the handlers")
        wait_until(lambda: service.status()["counts"]["oldest_job"] > 1, "a long wait")
        assert service.status()["counts"]["queued"] > 0
        assert service.health() == (200, 200)
        assert service.check() == 0
        assert service.states() == ["ready"]
        service.wait_for_watchdog()


def test_a_service_with_a_stuck_loop_is_first_not_ready_then_ill_then_replaced(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as service, service.handling("hang"):
        (stuck,) = service.workers()
        wait_until(lambda: service.health() == (200, 503), "not being ready")
        assert service.states() == ["busy"]
        wait_until(lambda: service.health() == (503, 503), "illness")
        assert service.states() == ["stuck"]
        assert not service.status()["alive"]
        service.told()
        service.process.wait_for_log("is stuck: a loop has not come round for 3 s")
        assert service.told().count("WATCHDOG=1") <= 1, "one may have been on its way"
        service.process.wait_for_log(f"worker {stuck} died: killed by SIGABRT; 1 frames lost")
        assert re.search(r'File ".*ill_agent.py", line \d+ in hang', service.process.log)
        wait_until(lambda: service.health() == (200, 200), "the new worker")
        assert service.check() == 0
        service.wait_for_watchdog()


def test_a_service_is_healthy_while_one_worker_is(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2") as service, service.handling("match"):
        while service.states() == ["ready", "ready"]:
            assert service.health() == (200, 200)
        service.process.wait_for_log("killed by SIGABRT")
        assert service.health() == (200, 200)
        assert "ready" in service.states()
        service.wait_for_watchdog()


def test_a_worker_with_a_loop_that_nothing_wakes_is_replaced(tmp_path: Path) -> None:
    """It waits, and so looks as healthy as an idle one does."""
    with serving(tmp_path) as service, Client(service.address, timeout=10) as client:
        (deaf,) = service.workers()
        with contextlib.suppress(SpopError):
            client.notify("deafen")
        service.process.wait_for_log(f"worker {deaf} died: killed by SIGABRT")
        wait_until(lambda: service.states() == ["ready"], "the new worker")
        assert service.workers() != {deaf}


def test_a_service_with_a_dead_loop_is_well_again_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as service, Client(service.address, timeout=10) as client:
        (dead,) = service.workers()
        with contextlib.suppress(SpopError):
            client.notify("kill")
            client.notify("pid")
        service.process.wait_for_log(f"worker {dead} died: exit status 1")
        wait_until(lambda: service.health() == (200, 200), "the new worker")
        assert service.check() == 0
        service.wait_for_watchdog()


def test_a_stopped_worker_is_not_healthy_and_not_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2") as service:
        with Client(service.address) as client:
            stopped = client.notify("pid").variables["txn.pid"]
            assert isinstance(stopped, int)
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: service.states() == ["ready", "stopped"], "the stop")
        assert service.health() == (200, 200)
        with service.handling("hang"):  # In the other, so that we see the time go by.
            wait_until(lambda: service.health() == (503, 503), "illness")
            service.process.wait_for_log("killed by SIGABRT")
            with service.handling("hang"):
                service.process.wait_for_log("killed by SIGABRT", 2)
        assert stopped in service.workers()
        os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: service.states() == ["ready", "ready"], "its going on")
        assert f"worker {stopped}" not in service.process.log


def test_a_service_that_drains_is_alive_but_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain-timeout", "30") as service, service.handling("work"):
        wait_until(lambda: service.status()["counts"]["running"] == 1, "the handler")
        os.kill(service.process.pid, signal.SIGSTOP)  # So that it still drains when we look.
        service.process.terminate()
        os.kill(service.process.pid, signal.SIGCONT)
        wait_until(lambda: service.health() == (200, 503), "the drain")
        service.wait_for_watchdog()


def test_a_service_is_ready_all_through_a_reload(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2") as service:
        old = service.workers()
        service.process.send_signal(signal.SIGHUP)
        while service.workers() & old:
            assert service.health() == (200, 200)
        assert service.health() == (200, 200)
        service.wait_for_watchdog()


def test_a_service_that_starts_is_alive_but_not_ready(tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    with serving(tmp_path, starts=False) as service:
        wait_until(lambda: service.states() == ["starting"], "the worker")
        assert service.health() == (200, 503)
        wait_until(lambda: "WATCHDOG=1" in service.told(), "the watchdog")
        (tmp_path / "wait").unlink()
        wait_until(lambda: service.health() == (200, 200), "readiness")
        wait_until(lambda: "READY=1" in service.told(), "READY")


def test_a_service_without_any_worker_is_ill(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        (tmp_path / "broken").touch()
        (worker,) = service.workers()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: service.health() == (503, 503), "illness")
        (tmp_path / "broken").unlink()
        wait_until(lambda: service.health() == (200, 200), "the new worker")


def test_nothing_is_asked_for_health(tmp_path: Path) -> None:
    """Not even the supervisor, which is stopped here."""
    with serving(tmp_path) as service:
        os.kill(service.process.pid, signal.SIGSTOP)
        assert service.health() == (200, 200)
        os.kill(service.process.pid, signal.SIGCONT)


@pytest.mark.parametrize("options", [("--stuck-timeout", "0"), ("--reload",)])
def test_stuck_workers_are_left_where_nobody_wants_them_replaced(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """With --reload on a terminal somebody may be debugging a handler."""
    ours, theirs = os.openpty()
    path = tmp_path / "ill_agent.py"
    path.write_text(AGENT.format(wait="/nowhere", broken="/nowhere"))
    arguments = ["serve", f"{path}:agent", "--bind", f"unix:{tmp_path}/s", "--stuck-timeout", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spop", *arguments, *options],
        stdin=theirs, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        os.close(theirs)
        with socket.socket(socket.AF_UNIX) as sock:
            wait_until(lambda: sock.connect_ex(f"{tmp_path}/s") == 0, "the socket")
        with Client(f"unix:{tmp_path}/s", timeout=4) as client, pytest.raises(SpopError):
            client.notify("hang")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert "is stuck" not in log
        assert "SIGABRT" not in log
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture
def workers() -> Iterator[Workers]:
    """One worker that never answers."""
    board = Board(1, 1)
    ours, theirs = Channel.pair()
    with subprocess.Popen(["sleep", "600"]) as process:
        worker = WorkerProcess(process.pid, ours, 0, board.take(), 0)
        workers = Workers(board)
        workers.add(worker)
        workers.is_ready(worker, [])
        try:
            yield workers
        finally:
            process.kill()
            ours.close()
            theirs.close()


def is_over(worker: WorkerProcess) -> bool:
    return os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_time_does_not_pass_for_a_worker_while_the_supervisor_is_stopped(workers: Workers) -> None:
    """As on a machine that slept, where the worker had no time either."""
    (worker,) = workers
    timers = Timers()
    stuck = StuckWorkers(workers, timers, 1.0)
    stuck.start()
    for _ in range(3):
        threading.Event().wait(1.1)
        timers.run_due()
    assert not is_over(worker)
    while not is_over(worker):
        threading.Event().wait(timers.run_due())
    assert os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT).si_status == signal.SIGABRT


def test_time_does_not_pass_for_a_worker_that_a_signal_stops(workers: Workers) -> None:
    (worker,) = workers
    timers = Timers()
    stuck = StuckWorkers(workers, timers, 0.05)
    stuck.start()
    timers.run_due()
    workers.is_stopped(worker, True)
    ended = time.monotonic() + 1
    while time.monotonic() < ended:
        threading.Event().wait(timers.run_due())
    assert not is_over(worker)
    workers.is_stopped(worker, False)
    while not is_over(worker):
        threading.Event().wait(timers.run_due())


# --- a server inside of a program ---


def test_a_server_in_a_program_tells_of_a_stuck_loop_and_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent, end = Agent(), threading.Event()
    agent.message("hang")(lambda: end.wait(60) and None)
    options: dict[str, Any] = {"admin": "127.0.0.1:0", "stuck_timeout": 2.0, "threads": 2}
    with agent.serve_in_background(**options) as server, Client(str(server.address)) as client:
        admin = str(server.admin_address)
        assert server.is_ready()
        client.send([Message("hang")])
        wait_until(lambda: not server.is_ready(), "not being ready")
        assert get(admin, "/healthz")[0] == 200
        assert get(admin, "/readyz")[0] == 503
        wait_until(lambda: get(admin, "/healthz")[0] == 503, "illness")
        wait_until(lambda: "is stuck for" in caplog.text, "the log line")
        end.set()
        wait_until(lambda: get(admin, "/readyz")[0] == 200, "readiness")
        assert get(admin, "/healthz")[0] == 200
        assert server.is_ready()
    lines = [record.getMessage() for record in caplog.records if "stuck" in record.getMessage()]
    assert len(lines) == 1
    assert re.fullmatch(
        r"spop-loop-\d is stuck for \d+ s, in wait \(.*threading.py:\d+\)", lines[0]
    )


def answer_to_a_check(server: Any) -> Any:
    """What a health check by HELLO is answered with."""
    protocol = EngineConnection(healthcheck=True)
    with socket.create_connection((server.address.host, server.address.port), 10) as sock:
        sock.sendall(protocol.data_to_send())
        events: list[Any] = []
        while not events:
            events += protocol.receive_data(sock.recv(4096))
    return events[0]


def test_a_worker_with_a_loop_that_is_not_ready_refuses_health_checks() -> None:
    agent, released = Agent(), threading.Event()

    @agent.message("where")
    def where() -> dict[str, Any]:
        return {"txn.loop": threading.current_thread().name}

    @agent.message("hold")
    def hold() -> None:
        released.wait(30)

    with agent.serve_in_background(threads=2) as server:
        address = str(server.address)
        with Client(address, timeout=30) as first, Client(address, timeout=30) as second:
            clients = {each.notify("where").variables["txn.loop"]: each for each in (first, second)}
            assert len(clients) == 2
            assert isinstance(answer_to_a_check(server), Hello)
            # The first loop accepts, and so answers the check, as both have a connection.
            waiting = clients["spop-loop-1"].send([Message("hold")])
            wait_until(lambda: not server.health().ready, "the end of readiness")
            answer = answer_to_a_check(server)
            assert isinstance(answer, Disconnect)
            assert (answer.code, answer.remote) == (Status.RESOURCE, True)
            released.set()
            clients["spop-loop-1"].wait(waiting)
            wait_until(lambda: server.health().ready, "readiness")
            assert isinstance(answer_to_a_check(server), Hello)
