"""Connections are spread over workers and loops, and moved when they are not; ranges of ports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from haproxy import wait_until
from serving import Served, served, wait_until_serving

from spop import Agent, Client

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
                    self.ask(client, number)
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
        assert "ERROR" not in process.log, process.log
