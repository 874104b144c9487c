"""What HAProxy 2.6 and 3.4 do with each odd agent, and that the engine does the same.

`TABLE` has an outcome for each of two requests: ``+`` where the variable was set, ``-`` where
nothing was, else the value of ``set-on-error``. ``!`` is any error, ``?`` anything: they depend on
when HAProxy tries again.
"""

from __future__ import annotations

import functools
import http.client
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from haproxy import installed, version
from odd_agents import AGENTS, OddAgent

from spop.engine import Engine
from spop.testing.haproxy import Process

SPOE = """
[check]
spoe-agent check
    messages check
    option var-prefix odd
    option pipelining
    option set-on-error error
    option force-set-var
    register-var-names answered x more
    timeout hello 500ms
    timeout idle 30s
    timeout processing 500ms
    use-backend agents
spoe-message check
    event on-client-session
"""

READ = ("sess.odd.answered", "txn.odd.error", "sess.odd.x", "sess.odd.more")

SHOWN = "|".join(f"%[var({name})]" for name in READ)

CONFIG = """
frontend www
    bind fd@{fd}
    filter spoe engine check config {folder}/spoe.cfg
    tcp-request content accept
    http-request return status 200 content-type text/plain lf-string "{shown}"
backend agents
    mode {mode}
    server agent {agent}
"""

BRANCHES = ["2.6", "3.4"]
PAUSE = 0.05
"""Seconds between two requests, in which an agent closes where it does."""

# Where a row has four columns: HAProxy 2.6, HAProxy 3.4, and the engine as each.
TABLE: dict[str, str | tuple[str, str, str, str]] = {
    "good": "+ +",
    "no-goodbye": "+ +",
    "closes-as-goodbye": "+ +",
    "goodbye-with-error": "+ +",
    "silent": "1 1",
    "stops": ("+ ?", "+ ?", "+ 1", "+ 1"),
    "closes": ("! !", "! !", "257 257", "257 257"),
    "resets": ("257 257", "! !", "257 257", "257 257"),
    "disconnect": ("269 269", "! !", "269 269", "269 269"),
    "disconnect-unprintable": ("269 269", "! !", "269 269", "269 269"),
    "disconnect-open": ("269 269", "! !", "269 269", "269 269"),
    "empty-frame": ("! !", "! !", "260 260", "260 260"),
    "unknown-frame": "1 1",
    "garbage": ("259 259", "! !", "259 259", "259 259"),
    "garbage-closed": ("259 259", "! !", "259 259", "259 259"),
    "ack-without-fin": ("256 256", "! !", "266 266", "266 266"),
    "ack-cut": "1 1",
    "ack-cut-closed": ("257 257", "! !", "257 257", "257 257"),
    "ack-short": "- -",
    "ack-too-long": ("259 259", "! !", "259 259", "259 259"),
    "ack-for-others": "1 1",
    "no-actions": "- -",
    "abort": "+ +",
    "reserved-flags": "+ +",
    "hello-again": "+ +",
    "notify-before": "+ +",
    "unknown-frame-before": "+ +",
    "unknown-action": "+ +",
    "unknown-action-between": "+ +",
    "unknown-scope": "+ +",
    "wrong-count": "+ +",
    "wrong-count-of-unset": "+ +",
    "reserved-type": "+(,7) +(,7)",
    "action-cut": "+ +",
    "name-cut": "+ +",
    "head-cut": "+ +",
    "int32-unsigned": "+(4294967295,7) +(4294967295,7)",
    "uint32-negative": "+(-5,7) +(-5,7)",
    "ack-twice": "+ +",
    "ack-for-others-before": ("+ +", "! !", "+ +", "+ +"),
    "empty-frame-before": ("! !", "! !", "260 260", "260 260"),
    "empty-frame-behind": ("+ ?", "+ ?", "+ +", "+ +"),
    "garbage-behind": "+ +",
    "disconnect-behind": "+ +",
    "error-behind": "+ +",
    "closes-behind": "+ +",
    "silent-hello": "! !",
    "closes-hello": ("! !", "! !", "257 257", "257 257"),
    "refuses": ("! !", "! !", "269 269", "269 269"),
    "refuses-open": ("! !", "! !", "269 269", "269 269"),
    "http": ("! !", "! !", "259 259", "259 259"),
    "tls": ("! !", "! !", "259 259", "259 259"),
    "half-a-hello": "! !",
    "half-a-hello-closed": ("! !", "! !", "257 257", "257 257"),
    "hello-and-closes": ("! !", "! !", "257 257", "257 257"),
    "version-1.0": ("! !", "! !", "264 264", "264 264"),
    "version-2": ("! !", "! !", "264 264", "264 264"),
    "version-2.00": "+ +",
    "version-2.1": ("! !", "! !", "264 264", "264 264"),
    "version-3.0": ("! !", "! !", "264 264", "264 264"),
    "size-100": ("! !", "! !", "265 265", "265 265"),
    "size-99999": ("! !", "! !", "265 265", "265 265"),
    "size-int32": "+ +",
    "version-and-size": ("! !", "! !", "264 264", "264 264"),
    "version-and-no-size": ("! !", "! !", "264 264", "264 264"),
    "odd-items": "+ +",
    "no-capabilities": "+ +",
    "in-lock-step": "+ +",
    "unknown-items": "+ +",
    "unknown-capabilities": "+ +",
    "hello-in-pieces": "+ +",
    "single-bytes": "+ +",
}


AGAIN = 3
"""How often an outcome must be another than that in the table, after the first time. Timeouts are
of half a second, so a machine that stands still for as long makes an agent late."""


def binary_of(branch: str) -> str:
    for path in installed():
        if ".".join(map(str, version(path)[:2])) == branch:
            return path
    pytest.skip(f"needs HAProxy {branch}")


def shown(values: str) -> str:
    """An outcome, with the further variables where there are some."""
    answered, error, x, more = values.split("|")
    first = error or ("+" if answered == "1" else "-")
    return first + (f"({x},{more})" if x or more else "")


def ask(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/")
    body = connection.getresponse().read().decode()
    connection.close()
    return shown(body)


def in_haproxy(branch: str, name: str, folder: Path) -> str:
    with (
        OddAgent(AGENTS[name]) as agent,
        Process(
            binary_of(branch), folder, config=CONFIG, spoe=SPOE, agent=agent.address, shown=SHOWN
        ) as proxy,
    ):
        first = ask(proxy.port)
        time.sleep(PAUSE)
        return f"{first} {ask(proxy.port)}"


def in_engine(branch: str, name: str, folder: Path) -> str:
    (folder / "ours.cfg").write_text(SPOE)
    with (
        OddAgent(AGENTS[name]) as agent,
        Engine.from_file(
            folder / "ours.cfg", backends={"agents": agent.address}, haproxy_version=branch
        ) as engine,
    ):
        outcomes = []
        for _ in range(2):
            stream = engine.stream()
            stream.event("on-client-session")
            values = [stream.vars.get(variable) for variable in READ]
            outcomes.append(shown("|".join("" if v is None else f"{v:d}" for v in values)))
            time.sleep(PAUSE)
        return " ".join(outcomes)


@functools.cache
def outcomes(branch: str) -> dict[str, tuple[str, str]]:
    """What HAProxy and the engine do with each agent, several at a time."""
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(functools.partial(outcome, branch), TABLE)
        return dict(zip(TABLE, found, strict=True))


def outcome(branch: str, name: str) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        return in_haproxy(branch, name, Path(folder)), in_engine(branch, name, Path(folder))


def is_as(outcome: str, expected: str) -> bool:
    pattern = re.escape(expected).replace("!", r"\d+").replace(r"\?", ".*")
    return re.fullmatch(pattern, outcome) is not None


@pytest.mark.haproxy
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", TABLE)
def test_haproxy_and_the_engine_do_as_the_table_says(name: str, branch: str) -> None:
    binary_of(branch)
    row = TABLE[name]
    cells = row if isinstance(row, tuple) else (row,) * 4
    column = BRANCHES.index(branch)
    expected = cells[column], cells[2 + column]
    found = outcomes(branch)[name]
    for _ in range(AGAIN):
        if not all(map(is_as, found, expected)):
            found = outcome(branch, name)
    assert all(map(is_as, found, expected)), (found, "HAProxy, engine")


@pytest.mark.parametrize(
    ("name", "count"), [("reserved-type", 1), ("unknown-action-between", 1), ("good", 0)]
)
def test_the_engine_counts_the_actions_that_it_passes_over(
    name: str, count: int, tmp_path: Path
) -> None:
    (tmp_path / "ours.cfg").write_text(SPOE)
    with OddAgent(AGENTS[name]) as agent:
        backends = {"agents": agent.address}
        with Engine.from_file(tmp_path / "ours.cfg", backends=backends) as engine:
            for number in range(1, 4):
                engine.stream().event("on-client-session")
                assert engine.ignored_actions == number * count
    assert agent.accepted == 1


def test_every_odd_agent_is_in_the_table() -> None:
    assert set(TABLE) == {name for name, odd in AGENTS.items() if not odd.dies}
