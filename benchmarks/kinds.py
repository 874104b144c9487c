"""The agent's CPU per frame by handler kind and mode; frames a second by threads and processes.

python benchmarks/kinds.py

Each kind has an agent of its own, on one processor, and the load in C has another. The kinds take
turns, and each figure is the median of the rounds: it is the ratio to inline that says something.

What processes and threads add shows with a handler that has something to do, as the load needs
some of a processor too. Threads add something where there is no GIL.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import statistics
import subprocess
from typing import NamedTuple

from frames import CONNECTIONS, compile_c
from running import BUILD, Running, free_port, pin, running, spop_command

from spop import Message
from spop.load.generator import Generator, Plan

ADDRESS = ipaddress.IPv4Address("192.0.2.10")
KINDS = {
    "inline": "`def`",
    "cached": "`cache=`, a hit",
    "async-at-once": "`async def`, does not suspend",
    "async": "`async def`, suspends once",
    "blocking": "`blocking=True`",
}
DEPTHS = {1: 25_000, 20: 100_000}
"""Frames in flight on each connection, and how many frames are sent."""
SHAPES = ((1, 1), (2, 1), (1, 2))


class Row(NamedTuple):
    kind: str
    depth: int
    cost: float  # µs of CPU per frame
    rate: float  # frames a second
    ratio: float = 1.0


def measure(rounds: int = 5, scale: float = 1.0) -> list[Row]:
    """Each kind in ping-pong and with 20 frames in flight, on one processor."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as stack:
        agents = {kind: stack.enter_context(_agent(kind)) for kind in KINDS}
        for _ in range(rounds):
            for depth, frames in DEPTHS.items():
                for kind, agent in agents.items():
                    result = exchange(agent, kind, depth, int(frames * scale))
                    found.setdefault((kind, depth), []).append(result)
    rows = []
    for (kind, depth), results in found.items():
        costs, rates = zip(*results, strict=True)
        inline = statistics.median(cost for cost, _ in found["inline", depth])
        cost = statistics.median(costs)
        rows.append(Row(KINDS[kind], depth, cost, statistics.median(rates), cost / inline))
    return rows


def _agent(kind: str) -> contextlib.AbstractContextManager[Running]:
    port = free_port()
    return running(spop_command(port, target="kinds_agent.py"), port, {"KIND": kind})


def exchange(agent: Running, kind: str, depth: int, frames: int) -> tuple[float, float]:
    """µs of the agent's CPU per frame, and frames a second."""
    command = [BUILD / "load", "127.0.0.1", agent.port, CONNECTIONS, depth, frames, kind]
    before = agent.cpu_seconds()
    shown = subprocess.run(
        [str(word) for word in command], check=True, capture_output=True,
        preexec_fn=lambda: pin(1),
    )  # fmt: skip
    result = json.loads(shown.stdout)
    return (agent.cpu_seconds() - before) / frames * 1e6, result["rate"]


def scale(seconds: float = 1.0) -> list[tuple[int, int, Row]]:
    """Processes, threads of each, and what a handler with something to do takes in them."""
    rows = []
    for processes, threads in SHAPES:
        port = free_port()
        options = ("--processes", str(processes), "--threads", str(threads))
        command = spop_command(port, *options, target="kinds_agent.py")
        with running(command, port, processors=processes * threads) as agent:
            rows.append((processes, threads, _load(agent, seconds)))
    return rows


def _load(agent: Running, seconds: float) -> Row:
    plan = Plan(
        address=agent.address, mode="pipelined", duration=seconds, warm_up=0.3,
        messages=[Message("busy", ip=ADDRESS)],
        expected={"sess.ip_score": ADDRESS.packed[-1]},
    )  # fmt: skip
    marks: list[float] = []
    result = Generator(
        plan, lambda _, measuring: marks.append(agent.cpu_seconds()) if measuring else None
    ).run()
    assert not result.errors, result.errors
    used = agent.cpu_seconds() - marks[0]
    return Row("busy", 20, used / result.frames * 1e6, result.frames / result.seconds)


def table(rows: list[Row]) -> str:
    lines = [
        "| handler | in flight | CPU per frame | of inline | frames/s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.kind} | {r.depth} | {r.cost:.2f} µs | {r.ratio:.2f} × | {r.rate:,.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def scale_table(rows: list[tuple[int, int, Row]]) -> str:
    lines = [
        "| processes | threads of each | CPU per frame | frames/s | |",
        "|---|---|---|---|---|",
    ]
    one = rows[0][2].rate
    lines += [
        f"| {processes} | {threads} | {r.cost:.1f} µs | {r.rate:,.0f} | {r.rate / one:.2f} × |"
        for processes, threads, r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    compile_c()
    print(table(measure()))
    print()
    print(scale_table(scale()))
