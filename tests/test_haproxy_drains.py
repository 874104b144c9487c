"""Two agents behind a HAProxy under load are stopped, restarted, reloaded, added and taken away.

Every request gets the right answer from HAProxy 3.1 on, and in lock step up to 3.0. With pipelining
HAProxy up to 3.0 fails those that cross a DISCONNECT. HAProxy before 2.6.14 and 2.8.1 leaves requests
in its queue in lock step, also where no connection ends, and 2.2 fails those that cross a DISCONNECT.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from haproxy import HAProxy, Load, Version, version, wait_until
from serving import Served, served, wait_until_serving

AGENT = """
from ipaddress import IPv4Address
from spop import Agent

agent = Agent("tested")

@agent.message("score")
def score(ip: IPv4Address):
    return {"txn.score": ip.packed[-1]}
"""
SPOE = """
spoe-agent test-agent
    messages score
    option var-prefix test
    option set-on-error error
    {options}
    timeout hello 5s
    timeout idle 1m
    timeout processing 10s

spoe-message score
    args ip=src
    event on-frontend-http-request
"""
RULES = """
    http-request redirect location /error-%[var(txn.test.error)] if { var(txn.test.error) -m found }
    http-request redirect location /%[var(txn.test.score)]
"""
SERVERS = (
    "unix@{folder}/one.sock check inter 100ms {more}\n    server two unix@{folder}/two.sock {more}"
)
MODES = {"lock-step": "no option pipelining", "pipelined": "option pipelining"}
CROSSED, QUEUED = "/error-256", "/error-1"
LAME_DUCK = "2"
"""Seconds, ten times what HAProxy needs to find out that an agent is not ready."""


@contextlib.contextmanager
def agent(folder: Path, name: str) -> Iterator[Served]:
    path = folder / "tested_agent.py"
    path.write_text(AGENT)
    options = (
        "--bind", f"unix:{folder}/{name}.sock", "--processes", "2", "--lame-duck", LAME_DUCK,
        "--max-connection-age", "3",
    )  # fmt: skip
    with served(*options, target=f"{path}:agent") as process:
        wait_until_serving(process)
        yield process


def stop(process: Served) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def is_up(proxy: HAProxy, name: str) -> bool:
    lines = proxy.command("show stat").splitlines()
    return any(f"agents,{name}," in line and ",UP," in line for line in lines)


def may_lose(haproxy: Version, mode: str) -> set[str]:
    """What HAProxy may answer in place of the agent's answer."""
    if haproxy >= (3, 1):
        return set()
    if mode == "pipelined":
        return {CROSSED}
    leaves_in_queue = haproxy < (2, 6, 14) or (2, 7) <= haproxy < (2, 8, 1)
    # 2.2 may write a NOTIFY right behind an ACK that it has read, without a look at what follows.
    return ({QUEUED} if leaves_in_queue else set()) | ({CROSSED} if haproxy < (2, 3) else set())


@pytest.mark.parametrize("mode", MODES)
def test_rolling_over_two_agents_loses_no_request(
    haproxy_binary: str, tmp_path: Path, mode: str
) -> None:
    servers = SERVERS.format(folder=tmp_path, more="fall 2 rise 1")
    spoe = SPOE.format(options=MODES[mode])
    proxy = HAProxy(haproxy_binary, tmp_path, agent=servers, spoe=spoe, rules=RULES)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(agent(tmp_path, "one"))
        second = stack.enter_context(agent(tmp_path, "two"))
        stack.enter_context(proxy)
        wait_until(lambda: is_up(proxy, "agent") and is_up(proxy, "two"), "two agents")
        with Load(proxy, 8) as load:
            load.wait_for(200)
            for process, name in ((first, "agent"), (second, "two")):
                process.send_signal(signal.SIGHUP)
                process.wait_for_log("reload done")
                load.wait_for(200)
                stop(process)  # Scaled down to one agent.
                load.wait_for(200)
                stack.enter_context(agent(tmp_path, name.replace("agent", "one")))  # And up again.
                wait_until(lambda name=name: is_up(proxy, name), "the restarted agent")
                load.wait_for(200)
    assert load.broken == 0
    lost = {each.location for each in load.wrong}
    assert lost <= may_lose(version(haproxy_binary), mode)
    assert len(load.wrong) < len(load.answers) / 100
