"""Four agents, as on four machines: the files of docs/machines.md, under load.

Addresses of 127/8 stand for the machines. One agent is drained and added again, one is killed. Each
request gets the right answer, or HAProxy counts an error.
"""

from __future__ import annotations

import contextlib
import csv
import http.client
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import haproxy
import pytest
from haproxy import Answer, Load, wait_until
from pages import Page
from services import Service
from serving import Served, served

from spop.agents import ratelimit
from spop.cli.settings import give_settings
from spop.testing.haproxy import Process

PAGE = Page("machines.md")
AGENT = """
from ipaddress import IPv4Address
from spop import Agent

agent = Agent()

@agent.message("check-client-ip")
def check(ip: IPv4Address):
    return {"txn.ip_score": 10 if ip.packed[-1] % 2 else 90}
"""
HOSTS = {f"agent{number}": f"127.0.0.{number + 1}" for number in range(1, 5)}
LAME_DUCK = "2"
"""Seconds, ten times what HAProxy needs to find out that an agent is not ready."""


def free_port() -> int:
    """A port that is free at each of the addresses. It is below those that the system gives to
    clients, which other tests have at these addresses."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for host in HOSTS.values():
                stack.enter_context(socket.create_server((host, port)))
            return port


@contextlib.contextmanager
def agent(folder: Path, name: str, port: int) -> Iterator[Served]:
    options = (
        "--bind",
        f"{HOSTS[name]}:{port}",
        "--lame-duck",
        LAME_DUCK,
        "--max-connection-age",
        "3",
    )
    with served(*options, target=f"{folder}/scoring.py:agent") as process:
        yield process


def wait_until_serving(process: Served) -> None:
    """As four of them start at once, for longer than elsewhere."""
    wait_until(lambda: "serves on" in process.log, "serving", timeout=60)


def running(binary: str, folder: Path, port: int, web: Service) -> Process:
    """HAProxy with the page's files, in which addresses are replaced, and the checks are faster."""
    replace = {f"192.0.2.{10 + n}:9000": f"127.0.0.{n + 1}:{port}" for n in range(1, 5)}
    replace["inter 1s"] = "inter 100ms"
    return PAGE.run(binary, folder, "many", web=web.server_port, replace=replace)


def stats(proxy: Process, name: str, server: str) -> dict[str, str]:
    rows = csv.DictReader(proxy.command("show stat").lstrip("# ").splitlines())
    return next(row for row in rows if (row["pxname"], row["svname"]) == (name, server))


def status_of(proxy: Process, name: str) -> str:
    return stats(proxy, "agents", name)["status"]


def used(proxy: Process, name: str) -> int:
    """Number of sessions that HAProxy has given to a server."""
    return int(stats(proxy, "agents", name)["stot"])


def through(port: int, source: str) -> Answer:
    """A request from an address."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, 20, source_address=(source, 0))
    with contextlib.closing(connection):
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
    return Answer(source, response.status, "", time.monotonic() - began)


def is_right(answer: Answer) -> bool:
    odd = int(answer.source.rpartition(".")[2]) % 2
    return answer.status == (403 if odd else 200)


def leaves_in_queue(version: haproxy.Version) -> bool:
    """Whether it leaves a request in its queue now and then, also where no connection ends."""
    return version < (2, 6, 14) or (2, 7) <= version < (2, 8, 1)


def test_four_machines_of_which_one_is_drained_one_added_and_one_dies(
    haproxy_binary: str, tmp_path: Path
) -> None:
    (tmp_path / "scoring.py").write_text(AGENT)
    port = free_port()
    with contextlib.ExitStack() as stack:
        start = lambda name: stack.enter_context(agent(tmp_path, name, port))  # noqa: E731
        processes = {name: start(name) for name in HOSTS}
        for process in processes.values():
            wait_until_serving(process)
        web = stack.enter_context(Service())
        proxy = stack.enter_context(running(haproxy_binary, tmp_path, port, web))
        for name in HOSTS:
            wait_until(lambda name=name: status_of(proxy, name) == "UP", name)
        client = SimpleNamespace(request=lambda source: through(proxy.port, source))
        load = stack.enter_context(Load(client, 8))  # type: ignore[arg-type]
        load.wait_for(100)
        assert all(used(proxy, name) for name in HOSTS), "each machine is used"

        processes["agent1"].send_signal(signal.SIGTERM)
        assert processes["agent1"].wait(30) == 0
        wait_until(lambda: status_of(proxy, "agent1") == "DOWN", "the drained machine")
        before = used(proxy, "agent1")
        load.wait_for(100)
        wait_until_serving(start("agent1"))
        wait_until(lambda: used(proxy, "agent1") > before, "use of the machine that was added")
        load.wait_for(100)
        lost = [each for each in load.answers if not is_right(each)]
        assert {each.status for each in lost} <= {503}
        assert len(lost) <= (len(load.answers) / 100 if leaves_in_queue(proxy.version) else 0)

        processes["agent2"].end()
        wait_until(lambda: status_of(proxy, "agent2") == "DOWN", "the machine that died")
        load.wait_for(8)  # Those that were on their way.
        since = len(load.answers)
        load.wait_for(100)
        lost = [each for each in load.answers[since:] if not is_right(each)]
        assert len(lost) <= (len(load.answers) / 100 if leaves_in_queue(proxy.version) else 0)
        load.__exit__()
        counted = int(stats(proxy, "www", "FRONTEND")["hrsp_5xx"])
    errors = [each for each in load.answers if each.status == 503]
    assert load.broken == 0
    assert len(load.answers) == sum(map(is_right, load.answers)) + len(errors)
    assert len(errors) == counted


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a Redis."""
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server")
    path = folder / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(path.exists, "redis-server")
        yield f"unix://{path}?db=0"
    finally:
        process.kill()
        process.wait()


def test_four_machines_share_a_rate_limit(haproxy_binary: str, tmp_path: Path) -> None:
    port, limit = free_port(), 100
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(redis_server(tmp_path))
        (tmp_path / "spop.toml").write_text(
            f'[settings]\nstore = "{store}"\ntimeout = 5.0\n\n[settings.limits.address]\n'
            f'rate = "{limit}/d"\nalgorithm = "fixed"\nby = ["address"]\n'
        )
        give_settings(ratelimit.agent, tmp_path / "spop.toml")
        stack.callback(setattr, ratelimit.agent, "config", None)
        for host in HOSTS.values():
            stack.enter_context(ratelimit.agent.serve_in_background(f"{host}:{port}"))
        web = stack.enter_context(Service())
        lines = (f"{host}:{port} check" for host in HOSTS.values())
        servers = "".join(f"\n    server machine{n} {line}" for n, line in enumerate(lines))
        replace = {"server agent1 127.0.0.1:9 check": f"balance roundrobin{servers}"}
        page = Page("agents/ratelimit.md")
        proxy = page.run(
            haproxy_binary, tmp_path, "ratelimit", web=web.server_port, replace=replace
        )
        spoe = tmp_path / "spoe.cfg"  # A busy machine of the tests may need more than 50 ms.
        spoe.write_text(spoe.read_text().replace("processing 50ms", "processing 10s"))
        stack.enter_context(proxy)
        with ThreadPoolExecutor(8) as pool:
            sources = ["127.0.0.1"] * 3 * limit
            answers = list(pool.map(partial(through, proxy.port), sources))
    statuses = [answer.status for answer in answers]
    assert {*statuses} == {200, 429}
    # A machine may have taken 1 % of the limit that it did not give away.
    assert limit * 0.96 <= statuses.count(200) <= limit * 1.02


def test_validate_finds_nothing_wrong_with_the_page(haproxy_binary: str, tmp_path: Path) -> None:
    assert PAGE.objections(tmp_path, "many", haproxy.version(haproxy_binary)) == []
