"""Connections are spread over workers and loops, and moved when they are not; ranges of ports."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from haproxy import wait_until
from serving import Served, served, wait_until_serving

from spop import Agent, Client, Message, SpopError
from spop.server.balance import SETTLE, is_uneven, surplus

AGENT = """
import os
from spop import Agent

agent = Agent("spread")

@agent.message("echo")
def echo(number: int):
    return {"txn.number": number, "txn.pid": os.getpid()}

@agent.message("wait")
async def wait(number: int):
    import asyncio
    await asyncio.sleep(0.001)
    return {"txn.number": number, "txn.pid": os.getpid()}
"""


class Talk:
    """Clients with a connection each. While it is busy, each asks again and again."""

    def __init__(self, address: str, message: str = "echo") -> None:
        self._address = address
        self._message = message
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self.clients: list[Client] = []

    def open(self, count: int, pause: float = 0.0) -> None:
        for _ in range(count):
            client = Client(self._address, timeout=20)
            client.connect()
            self.clients.append(client)
            time.sleep(pause)

    def ask(self, client: Client, number: int) -> object:
        variables = client.notify(self._message, number=number).variables
        assert variables["txn.number"] == number
        return variables["txn.pid"]

    @property
    def counts(self) -> list[int]:
        """How many of the connections each worker has that has any."""
        return sorted(Counter(self.ask(client, 0) for client in self.clients).values())

    def is_even(self, workers: int) -> bool:
        share, rest = divmod(len(self.clients), workers)
        expected = [share] * (workers - rest) + [share + 1] * rest
        return self.counts == expected

    def close(self, number: int) -> None:
        """Close so many of them."""
        for _ in range(number):
            self.clients.pop().close()

    def _ask_if_open(self, client: Client, number: int) -> None:
        try:
            self.ask(client, number)
        except SpopError:
            if client in self.clients:
                raise

    @contextlib.contextmanager
    def busy(self, threads: int = 4) -> Iterator[None]:
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        assert not self._failures, self._failures[0]

    def _run(self) -> None:
        try:
            number = 0
            while not self._stop.is_set():
                for client in list(self.clients):
                    number += 1
                    self._ask_if_open(client, number)
        except BaseException as error:
            self._failures.append(error)


@contextlib.contextmanager
def talk(address: str, message: str = "echo") -> Iterator[Talk]:
    clients = Talk(address, message)
    try:
        yield clients
    finally:
        clients.close(len(clients.clients))


@contextlib.contextmanager
def serving(tmp_path: Path, *options: str, bind: str = "") -> Iterator[Served]:
    path = tmp_path / "spread_agent.py"
    path.write_text(AGENT)
    bind = bind or f"unix:{tmp_path}/agent.sock"
    with served("--bind", bind, *options, target=f"{path}:agent") as process:
        wait_until_serving(process)
        yield process


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/agent.sock"


def replace_workers(process: Served) -> None:
    old = set(process.workers())
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: not old & set(process.workers()), "the old workers' end")


@pytest.mark.parametrize("message", ["echo", "wait"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("pause", [0.005, 0.1])
def test_connections_are_moved_until_workers_have_as_many(
    tmp_path: Path, address: str, pause: float, busy: bool, message: str
) -> None:
    """After they are opened, after a reload, and after the death of a worker."""
    with serving(tmp_path, "--processes", "4") as process, talk(address, message) as clients:
        with clients.busy() if busy else contextlib.nullcontext():
            clients.open(40, pause)
            wait_until(lambda: clients.is_even(4), "an even spread", timeout=10)
            replace_workers(process)
            wait_until(lambda: clients.is_even(4), "an even spread", timeout=10)
            assert "disconnected" not in process.log, process.log
        assert "ERROR" not in process.log, process.log


def test_a_connection_with_frames_always_in_flight_is_moved(tmp_path: Path, address: str) -> None:
    """Two that pipeline are on one of two workers, until one of them has come to rest."""
    with serving(tmp_path, "--processes", "2"), talk(address, "wait") as clients:
        clients.open(4)
        wait_until(lambda: clients.is_even(2), "an even spread", timeout=10)
        place = clients.ask(clients.clients[0], 0)
        clients.clients.sort(key=lambda client: clients.ask(client, 0) != place)
        kept = clients.clients[:2]
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(Stream(client)) for client in kept]
            clients.close(2)
            wait_until(lambda: streams[0].pid != streams[1].pid, "different workers", timeout=10)


class Stream:
    """A client in a thread that always has 20 messages in flight."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self.pid: object = None

    def _run(self) -> None:
        waiting: deque[tuple[int, Any]] = deque()
        try:
            for number in itertools.count():
                message = Message("wait", number=number)
                waiting.append((number, self._client.send([message])))
                if len(waiting) == 20:
                    self._take(*waiting.popleft())
                if self._stop.is_set():
                    break
            while waiting:
                self._take(*waiting.popleft())
        except BaseException as error:
            self._failure = error

    def _take(self, number: int, sent: Any) -> None:
        variables = self._client.wait(sent).variables
        assert variables["txn.number"] == number
        self.pid = variables["txn.pid"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._failure is None, self._failure


def test_a_restarted_worker_gets_its_share(tmp_path: Path, address: str) -> None:
    with serving(tmp_path, "--processes", "4") as process, talk(address) as clients:
        clients.open(40)
        wait_until(lambda: clients.is_even(4), "an even spread", timeout=10)
        os.kill(process.workers()[0], signal.SIGKILL)
        process.wait_for_log("died: killed by SIGKILL")
        alive = []
        for client in clients.clients:
            with contextlib.suppress(SpopError, OSError):
                clients.ask(client, 0)
                alive.append(client)
        clients.clients = alive
        assert len(alive) >= 30
        wait_until(lambda: clients.is_even(4), "an even spread", timeout=10)


def test_health_checks_and_connections_without_hello_move_nothing(
    tmp_path: Path, address: str
) -> None:
    with (
        serving(tmp_path, "--processes", "2"),
        talk(address) as clients,
        contextlib.ExitStack() as stack,
    ):
        clients.open(4)
        wait_until(lambda: clients.is_even(2), "an even spread", timeout=10)
        for _ in range(30):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(address.removeprefix("unix:"))
            check_health(address)
        places = [clients.ask(client, 0) for client in clients.clients]
        for _ in range(5):
            time.sleep(SETTLE / 2)
            check_health(address)
            assert [clients.ask(client, 0) for client in clients.clients] == places


def check_health(address: str) -> None:
    with Client(address, healthcheck=True) as client:
        client.connect()


def test_loops_of_a_process_have_as_many_connections() -> None:
    """After a burst, and after those of one loop were closed."""
    agent = Agent()

    @agent.message("echo")
    def echo(number: int) -> dict[str, object]:
        return {"txn.number": number, "txn.pid": threading.current_thread().name}

    with (
        agent.serve_in_background(threads=4) as server,
        talk(str(server.address)) as clients,
        clients.busy(),
    ):
        clients.open(40)
        wait_until(lambda: clients.is_even(4), "an even spread", timeout=10)
        clients.clients.sort(key=lambda client: str(clients.ask(client, 0)))
        clients.close(15)
        wait_until(lambda: clients.is_even(4), "an even spread", timeout=10)
        assert clients.counts == [6, 6, 6, 7]


@pytest.mark.parametrize(
    ("counts", "given"),
    [
        ([17, 13, 5, 5], [7, 3, 0, 0]),
        ([1, 39, 0, 0], [0, 29, 0, 0]),
        ([2, 0, 0, 0], [1, 0, 0, 0]),
        ([1, 1, 0, 0], [0, 0, 0, 0]),
        ([4, 3, 3, 3], [0, 0, 0, 0]),
        ([3, 6, 3, 4], [0, 2, 0, 0]),
    ],
)
def test_the_fewest_connections_are_moved(counts: list[int], given: list[int]) -> None:
    assert surplus(counts) == given
    assert is_uneven(counts) == any(given)
