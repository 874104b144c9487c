"""Agents in any language, with the same loads, and behind HAProxy.

    python benchmarks/rivals [--agent 'NAME, VERSION, FLAGS: COMMAND {port}']... [--python PATH]...
                             [--spopload PATH] [--haproxy PATH]... [--seconds 2] [--rounds 3] [--keep]

The agent in C and ours are always measured, ours with each CPython that has it; so are haproxyspoa
and spoe-forge where they are installed. docs/benchmarks.md says what another agent must answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import in_front
from frames import AGENTS, EXCHANGES, NEEDS, Agent, Exchange, compile_c, is_installed
from running import (
    BUILD,
    PROCESSORS,
    Running,
    children,
    cpu_of,
    free_port,
    interpreter_name,
    pin,
    pinned,
    running,
    spop_command,
)  # fmt: skip

from spop.testing.haproxy import Process

RESULTS = Path(__file__).parent.parent / "results"
CLIENTS = (1, 32)
SINK = AGENTS["C sink"]
WARMING = 2000


class Front(NamedTuple):
    """Of requests through HAProxy: microseconds but for the rate."""

    rate: float
    p50: float
    p99: float
    p999: float
    agent: float
    haproxy: float


def agents(given: list[str], pythons: list[str]) -> Iterator[Agent]:
    yield SINK
    for path in pythons:
        yield Agent(f"spop, CPython {interpreter_name(path)}", partial(ours, path), {}, 1)
    for name, module in NEEDS.items():
        if name == module.replace("_", "-") and is_installed(AGENTS[name]):
            yield AGENTS[name]
    for text in given:
        name, _, command = text.partition(": ")
        yield Agent(name, partial(words, command), {}, 1)


def ours(python: str, port: int) -> list[str]:
    return spop_command(port, python=python)


def words(command: str, port: int) -> list[str]:
    return [word.replace("{port}", str(port)) for word in shlex.split(command)]


@contextlib.contextmanager
def started(agent: Agent) -> Iterator[Running]:
    port = free_port()
    with running(agent.command(port), port, agent.environment, subprocess.DEVNULL) as it:
        yield it


def said(command: list[object]) -> dict[str, Any]:
    """What a load prints, from the other processor; raises CalledProcessError where it is not answered."""
    shown = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120,
        check=True, preexec_fn=lambda: pin(1),
    )  # fmt: skip
    found: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
    return found


# --- over sockets ---


def own_load(it: Running, exchange: Exchange, seconds: float) -> float:
    """µs of the agent's CPU for a frame; of as many frames as fill the time."""
    command = [BUILD / "load", "127.0.0.1", it.port, exchange.connections, exchange.depth]
    rate = said([*command, WARMING, exchange.payload])["rate"]
    frames = max(WARMING, int(rate * seconds))
    before = it.cpu_seconds()
    said([*command, frames, exchange.payload])
    return (it.cpu_seconds() - before) / frames * 1e6


def spopload(path: str, it: Running, exchange: Exchange, seconds: float) -> float:
    command = [path, "-p", it.port, "-c", exchange.connections, "-d", exchange.depth, "-t", seconds]
    before = it.cpu_seconds()
    found = said([*command, "-P", exchange.payload])
    return float((it.cpu_seconds() - before) / found["frames"] * 1e6)


def over_sockets(
    all_agents: list[Agent], load: str | None, seconds: float, rounds: int
) -> dict[tuple[str, str, str], list[float]]:
    """By agent, exchange and load, with all agents in turn."""
    found: dict[tuple[str, str, str], list[float]] = {}
    loads = {"load.c": own_load} | ({"spopload": partial(spopload, load)} if load else {})
    with contextlib.ExitStack() as stack:
        those = [(agent.name, stack.enter_context(started(agent))) for agent in all_agents]
        for exchange in EXCHANGES[:4]:
            for _ in range(rounds):
                for name, it in those:
                    for kind, by in loads.items():
                        cost = math.nan
                        with contextlib.suppress(subprocess.CalledProcessError):
                            cost = by(it, exchange, seconds)
                        found.setdefault((name, exchange.name, kind), []).append(cost)
    return found


def sockets_table(found: dict[tuple[str, str, str], list[float]]) -> Iterator[str]:
    """Few columns, so that a narrow window has them all."""
    exchanges = list(dict.fromkeys(exchange for _, exchange, _ in found))
    yield f"| agent | load | {' | '.join(exchanges)} |\n|---|---|{'---|' * len(exchanges)}"
    for name, load in dict.fromkeys((name, load) for name, _, load in found):
        cells = []
        for exchange in exchanges:
            costs, yardstick = found[name, exchange, load], found[SINK.name, exchange, load]
            ratio = statistics.median(a / b for a, b in zip(costs, yardstick, strict=True))
            cost = f"{statistics.median(costs):.3g} µs, {ratio:.3g} ×"
            cells.append("fails" if math.isnan(sum(costs)) else cost)
        yield f"| {name} | {load} | {' | '.join(cells)} |"


# --- behind HAProxy ---


def behind(
    binary: str, all_agents: list[Agent], seconds: float, rounds: int
) -> Iterator[tuple[str, int, str, Front]]:
    """HAProxy's version, clients, agent, medians. HAProxy and clients have the other processor."""
    for clients in CLIENTS:
        found: dict[str, list[Front]] = {}
        for _ in range(rounds):
            for agent in all_agents:
                with started(agent) as it, proxy(binary, it.port) as (version, port, pid):
                    front = Front(*[math.nan] * len(Front._fields))
                    with contextlib.suppress(subprocess.CalledProcessError):
                        front = one_front(it, port, pid, clients, seconds)
                    found.setdefault(agent.name, []).append(front)
        for name, fronts in found.items():
            medians = Front(*(statistics.median(each) for each in zip(*fronts, strict=True)))
            yield version, clients, name, medians


@contextlib.contextmanager
def proxy(binary: str, agent_port: int) -> Iterator[tuple[str, int, int]]:
    """Its version, port and process."""
    ports = {"agent_port": agent_port, "without_port": free_port()}
    with tempfile.TemporaryDirectory() as folder:
        process = Process(
            binary, Path(folder), config=in_front.HAPROXY, spoe=in_front.SPOE,
            global_options="    nbthread 1", **ports,
        )  # fmt: skip
        before = children()
        with pinned(1), process:
            (pid,) = children() - before
            yield str(process.version), process.port, pid


def one_front(it: Running, port: int, pid: int, clients: int, seconds: float) -> Front:
    rate = said([BUILD / "requests", port, clients, WARMING])["rate"]
    count = max(WARMING, int(rate * seconds))
    before = it.cpu_seconds(), cpu_of(pid)
    shown = said([BUILD / "requests", port, clients, count])
    used = it.cpu_seconds() - before[0], cpu_of(pid) - before[1]
    quantiles = (shown[name] * 1e6 for name in ("p50", "p99", "p999"))
    return Front(shown["rate"], *quantiles, *(each / count * 1e6 for each in used))


def front_table(rows: list[tuple[str, int, str, Front]]) -> Iterator[str]:
    """Few columns, so that a narrow window has them all."""
    yield "| HAProxy, clients | agent | requests/s | p50, p99, p99.9 | CPU of agent, HAProxy |"
    yield "|---|---|---|---|---|"
    for version, clients, name, front in rows:
        times = [f"{digits(each)} µs" for each in front[1:]]
        cells = f"{front.rate:,.0f} | {'; '.join(times[:3])} | {'; '.join(times[3:])}"
        yield f"| {version}, {clients} | {name} | {'fails | |' if math.isnan(sum(front)) else cells} |"


def digits(value: float) -> str:
    """Three of them at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def report(options: argparse.Namespace) -> Iterator[str]:
    all_agents = list(agents(options.agent, options.python or [sys.executable]))
    when = f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {len(PROCESSORS)} processors"
    rounds = f"medians of {options.rounds} rounds of {options.seconds} s"
    conditions = (
        f"{when}, {platform.system()} {platform.release()}; {rounds}, `benchmarks/rivals`.\n"
    )
    yield f"## Agents in any language, over sockets\n\n{conditions}"
    found = over_sockets(all_agents, options.spopload, options.seconds, options.rounds)
    yield from sockets_table(found)
    rows = [
        row
        for binary in options.haproxy
        for row in behind(binary, all_agents, options.seconds, options.rounds)
    ]
    if rows:
        yield f"\n## Agents in any language, behind HAProxy\n\n{conditions}"
        yield from front_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agent", action="append", default=[], metavar="NAME: COMMAND")
    parser.add_argument("--python", action="append", metavar="PATH", help="one that has spop")
    parser.add_argument("--spopload", metavar="PATH", help="another load")
    parser.add_argument("--haproxy", action="append", default=[], metavar="PATH")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="in results/rivals.md")
    options = parser.parse_args()
    compile_c()
    lines = []
    for line in report(options):
        print(line, flush=True)
        lines.append(line)
    if options.keep:
        (RESULTS / "rivals.md").write_text("\n".join(["# Rivals", "", *lines, ""]))


if __name__ == "__main__":
    main()
