"""Connections are spread over workers and loops, and moved when they are not; ranges of ports."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import ssl
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import trustme
from haproxy import HAProxy, Load, wait_until
from serving import Served, served, wait_until_serving

from spop import Agent, Client, Message, SpopError
from spop.address import Address
from spop.options import Options
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

    def __init__(self, address: str, message: str = "echo", **options: Any) -> None:
        self._address = address
        self._options = options
        self._message = message
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self.clients: list[Client] = []

    def open(self, count: int, pause: float = 0.0) -> None:
        for _ in range(count):
            client = Client(self._address, timeout=20, **self._options)
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
def talk(address: str, message: str = "echo", **options: Any) -> Iterator[Talk]:
    clients = Talk(address, message, **options)
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
            wait_until(lambda: clients.is_even(4), "an even spread")
            replace_workers(process)
            wait_until(lambda: clients.is_even(4), "an even spread")
            assert "disconnected" not in process.log, process.log
        assert "ERROR" not in process.log, process.log


def test_a_connection_with_frames_always_in_flight_is_moved(tmp_path: Path, address: str) -> None:
    """Two that pipeline are on one of two workers, until one of them has come to rest."""
    with serving(tmp_path, "--processes", "2"), talk(address, "wait") as clients:
        clients.open(4)
        wait_until(lambda: clients.is_even(2), "an even spread")
        place = clients.ask(clients.clients[0], 0)
        clients.clients.sort(key=lambda client: clients.ask(client, 0) != place)
        kept = clients.clients[:2]
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(Stream(client)) for client in kept]
            clients.close(2)
            wait_until(lambda: streams[0].pid != streams[1].pid, "different workers")


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


SPOE = """
spoe-agent test-agent
    messages {message}
    option var-prefix test
    timeout hello 5s
    timeout idle 1m
    timeout processing 10s

spoe-message {message}
    args number=src,field(4,.),add(0)
    event on-frontend-http-request
"""


@pytest.mark.parametrize("message", ["echo", "wait"])
def test_haproxy_loses_no_answer_while_connections_move(
    haproxy_binary: str, tmp_path: Path, address: str, message: str
) -> None:
    """Connections of others come and go, so that those of HAProxy are moved, too."""
    spoe = SPOE.format(message=message)
    with (
        serving(tmp_path, "--processes", "2", "--admin", "127.0.0.1:0") as process,
        HAProxy(
            haproxy_binary,
            tmp_path,
            agent=f"unix@{tmp_path}/agent.sock",
            spoe=spoe,
            rules="http-request redirect location /%[var(txn.test.number)]",
        ) as proxy,
        talk(address, message) as clients,
    ):
        proxy.wait_until_up()
        with Load(proxy) as load:
            for _ in range(5):
                clients.open(12)
                load.wait_for(50)
                place = clients.ask(clients.clients[0], 0)
                clients.clients.sort(key=lambda client: clients.ask(client, 0) == place)
                before = moved(process)
                clients.close(6)
                wait_until(lambda before=before: moved(process) > before, "a move")  # type: ignore[misc]
                load.wait_for(50)
                clients.close(len(clients.clients))
                load.wait_for(50)
    assert not load.wrong
    assert max(answer.seconds for answer in load.answers) < 10


def moved(process: Served) -> int:
    (admin,) = re.findall(r"admin on (\S+)", process.log)
    with urllib.request.urlopen(f"http://{admin}/status.json", timeout=10) as status:
        return int(json.load(status)["counts"]["connections_handed_over"])


def test_a_restarted_worker_gets_its_share(tmp_path: Path, address: str) -> None:
    with serving(tmp_path, "--processes", "4") as process, talk(address) as clients:
        clients.open(40)
        wait_until(lambda: clients.is_even(4), "an even spread")
        os.kill(process.workers()[0], signal.SIGKILL)
        process.wait_for_log("died: killed by SIGKILL")
        alive = []
        for client in clients.clients:
            with contextlib.suppress(SpopError, OSError):
                clients.ask(client, 0)
                alive.append(client)
        clients.clients = alive
        assert len(alive) >= 30
        wait_until(lambda: clients.is_even(4), "an even spread")


def test_health_checks_and_connections_without_hello_move_nothing(
    tmp_path: Path, address: str
) -> None:
    with (
        serving(tmp_path, "--processes", "2"),
        talk(address) as clients,
        contextlib.ExitStack() as stack,
    ):
        clients.open(4)
        wait_until(lambda: clients.is_even(2), "an even spread")
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


@pytest.fixture
def threaded() -> Agent:
    """It answers with the name of the loop's thread."""
    agent = Agent()

    @agent.message("echo")
    def echo(number: int) -> dict[str, object]:
        return {"txn.number": number, "txn.pid": threading.current_thread().name}

    return agent


def test_tls_connections_stay_where_they_are(threaded: Agent, tmp_path: Path) -> None:
    """They can't move, and none is ended because of that."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tls = {"tls": context, "server_name": "localhost"}
    with (
        threaded.serve_in_background(threads=2, tls_cert=f"{tmp_path}/both.pem") as server,
        talk(str(server.address), **tls) as clients,
    ):
        clients.open(8)
        place = clients.ask(clients.clients[0], 0)
        clients.clients.sort(key=lambda client: clients.ask(client, 0) != place)
        clients.close(4)
        opened = server.totals().counts().connections_opened
        time.sleep(3 * SETTLE)
        assert clients.counts == [4]
        assert server.totals().counts().connections_opened == opened


def test_loops_of_a_process_have_as_many_connections(threaded: Agent) -> None:
    """After a burst, and after those of one loop were closed."""
    with (
        threaded.serve_in_background(threads=4) as server,
        talk(str(server.address)) as clients,
        clients.busy(),
    ):
        clients.open(40)
        wait_until(lambda: clients.is_even(4), "an even spread")
        clients.clients.sort(key=lambda client: str(clients.ask(client, 0)))
        clients.close(15)
        wait_until(lambda: clients.is_even(4), "an even spread")
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


# --- ranges of ports ---


def free_ports(count: int, host: str = "127.0.0.1") -> str:
    """``HOST:PORT-PORT`` of ports that nobody uses."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            first = stack.enter_context(socket.create_server((host, 0), family=family))
            low = first.getsockname()[1]
            for port in range(low + 1, low + count):
                stack.enter_context(socket.create_server((host, port), family=family))
            shown = f"[{host}]" if ":" in host else host
            return f"{shown}:{low}-{low + count - 1}"
    raise AssertionError("no range of ports is free")


def addresses(bind: str) -> list[str]:
    host, _, ports = bind.rpartition(":")
    low, high = map(int, ports.split("-"))
    return [f"{host}:{port}" for port in range(low, high + 1)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_each_worker_has_a_port_of_a_range(tmp_path: Path, host: str) -> None:
    """A port's connections stay with its worker, and go to its successor."""
    bind = free_ports(3, host)
    with (
        serving(tmp_path, "--processes", "3", bind=bind) as process,
        contextlib.ExitStack() as stack,
    ):
        first, second, third = (stack.enter_context(talk(each)) for each in addresses(bind))
        first.open(9)
        second.open(1)
        third.open(1)
        for _ in range(2):
            pids = [pids_of(each) for each in (first, second, third)]
            assert [len(each) for each in pids] == [1, 1, 1]
            assert set.union(*pids) == set(process.workers())
            time.sleep(2 * SETTLE)
            assert [pids_of(each) for each in (first, second, third)] == pids
            replace_workers(process)
            for each in (first, second, third):
                each.open(1)
        assert "disconnected" not in process.log


def pids_of(talk: Talk) -> set[object]:
    return {talk.ask(client, 0) for client in talk.clients}


def test_another_worker_accepts_for_a_missing_one(tmp_path: Path) -> None:
    """Until its successor is there, which takes over what has come to its port."""
    bind = free_ports(2)
    with (
        serving(tmp_path, "--processes", "2", bind=bind) as process,
        talk(addresses(bind)[0]) as first,
        talk(addresses(bind)[1]) as second,
    ):
        first.open(1)
        second.open(1)
        (victim,), (other,) = pids_of(first), pids_of(second)
        (tmp_path / "spread_agent.py").write_text(f"import time; time.sleep(3)\n{AGENT}")
        assert isinstance(victim, int)
        os.kill(victim, signal.SIGKILL)
        process.wait_for_log(f"worker {victim} died")
        first.close(1)
        first.open(1)
        assert pids_of(first) == {other}
        wait_until(lambda: pids_of(first) != {other}, "the port's own worker", timeout=30)
        assert pids_of(first) | {other} == set(process.workers())
        assert pids_of(second) == {other}


def test_other_addresses_are_shared_beside_a_range(tmp_path: Path, address: str) -> None:
    bind = free_ports(2)
    options = "--processes", "2", "--bind", address
    with (
        serving(tmp_path, *options, bind=bind) as process,
        talk(address) as shared,
        talk(addresses(bind)[0]) as first,
    ):
        first.open(5)
        shared.open(8)
        wait_until(lambda: shared.is_even(2), "an even spread")
        assert len(pids_of(first)) == 1
        assert "disconnected" not in process.log


def test_a_range_has_a_port_for_each_process() -> None:
    options = Options.of("[::1]:9000-9002", processes=3)
    assert list(map(str, options.addresses)) == ["[::1]:9000", "[::1]:9001", "[::1]:9002"]
    assert options.port_numbers == [0, 1, 2]
    more = Options.of(["unix:/run/a:1-2", "127.0.0.1:9000-9001"], processes=2)
    assert more.addresses[0] == Address("", 0, "/run/a:1-2")
    assert more.port_numbers == [None, 0, 1]
    wrong = "bind 127.0.0.1:9000-9003 has 4 ports, but processes is {}: each worker has a port"
    for processes in (1, 3, 5):
        with pytest.raises(ValueError, match=wrong.format(processes)):
            Options.of("127.0.0.1:9000-9003", processes=processes)


@pytest.mark.parametrize("bind", ["127.0.0.1:9001-9000", ":0-1", "a:65535-65536", "::1:1-2"])
def test_a_range_that_is_none_is_refused(bind: str) -> None:
    with pytest.raises(ValueError, match=re.escape(bind.rpartition("-")[0])):
        Options.of(bind, processes=2)


def test_ranges_are_for_bind_alone() -> None:
    with pytest.raises(ValueError, match="neither HOST:PORT nor unix:PATH"):
        Client("127.0.0.1:9000-9001")
    with pytest.raises(ValueError, match="neither HOST:PORT nor unix:PATH"):
        Options.of("127.0.0.1:9000", admin="127.0.0.1:9001-9002")


def test_a_server_of_one_process_takes_a_range_of_one_port() -> None:
    agent = Agent()
    (address,) = addresses(bind := free_ports(1))
    with agent.serve_in_background(bind) as server:
        assert str(server.address) == address
        Client(address).connect()
    with pytest.raises(ValueError, match="has 2 ports, but processes is 1"):
        agent.serve(free_ports(2))
    with pytest.raises(ValueError, match="has 2 ports, but processes is 1"):
        agent.serve_in_background(free_ports(2))
