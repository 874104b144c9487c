"""HAProxy itself is reloaded, or killed and started again, under load.

No request waits for the processing timeout. HAProxy up to 3.0 loses one or the other by itself,
with any agent: there the agent's counts show that it has answered every frame that it received.
"""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from haproxy import HAProxy, Load, MasterWorker, version, wait_until
from serving import Served, served, wait_until_serving

AGENT = """
from ipaddress import IPv4Address
from spop import Agent

agent = Agent("tested")

@agent.message("inline")
def inline(ip: IPv4Address):
    return {"txn.score": ip.packed[-1]}

@agent.message("suspends")
async def suspends(ip: IPv4Address):
    import asyncio
    await asyncio.sleep(0.005)
    return {"txn.score": ip.packed[-1]}
"""

SPOE = """
spoe-agent test-agent
    messages inline suspends
    option var-prefix test
    {options}
    timeout hello 5s
    timeout idle 1m
    timeout processing {timeout}s

spoe-message inline
    args ip=src
    event on-frontend-http-request

spoe-message suspends
    args ip=src
    event on-frontend-http-request
"""
TIMEOUT = 10
THREADS = 8
MAX_LOST = THREADS
"""Number of requests that HAProxy up to 3.0 may lose in three restarts: one a thread."""

MODES = {
    "lock-step": "no option pipelining\n    no option async",
    "pipelined": "option pipelining\n    no option async",
    "async": "option pipelining\n    option async",
}


def reload(proxy: HAProxy) -> None:
    proxy.reload()


def kill(proxy: HAProxy) -> None:
    proxy.kill()


WAYS: dict[str, tuple[type[HAProxy], Callable[[HAProxy], None]]] = {
    "sf": (HAProxy, reload),
    "master-worker": (MasterWorker, reload),
    "kill": (HAProxy, kill),
}


@contextlib.contextmanager
def serving(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "tested_agent.py"
    path.write_text(AGENT)
    bind = f"unix:{tmp_path}/agent.sock"
    options = "--processes", "2", "--admin", "127.0.0.1:0"
    with served("--bind", bind, *options, target=f"{path}:agent") as process:
        wait_until_serving(process)
        yield process


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_no_request_waits_for_its_timeout(
    haproxy_binary: str, tmp_path: Path, mode: str, way: str
) -> None:
    if mode == "async" and version(haproxy_binary) >= (3, 1):
        pytest.skip("HAProxy has no async any more")
    kind, act = WAYS[way]
    spoe = SPOE.format(options=MODES[mode], timeout=TIMEOUT)
    with (
        serving(tmp_path) as agent,
        kind(
            haproxy_binary,
            tmp_path,
            agent=f"unix@{tmp_path}/agent.sock",
            spoe=spoe,
            rules="http-request redirect location /%[var(txn.test.score)]",
            global_options="hard-stop-after 1s",
        ) as proxy,
    ):
        proxy.wait_until_up()
        with Load(proxy, THREADS) as load:
            for _ in range(3):
                load.wait_for(50)
                act(proxy)
            load.wait_until_right()
        wait_until(lambda: not frames_in_hand(agent), "every ACK")
    late = [answer for answer in load.answers if answer.seconds >= TIMEOUT]
    assert len(late) <= (MAX_LOST if version(haproxy_binary) < (3, 1) else 0)
    assert "Traceback" not in agent.log, agent.log


def frames_in_hand(agent: Served) -> int:
    (admin,) = re.findall(r"admin on (\S+)", agent.log)
    with urllib.request.urlopen(f"http://{admin}/status.json", timeout=10) as status:
        return int(json.load(status)["counts"]["frames_in_hand"])
