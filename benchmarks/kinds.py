"""The agent's CPU per frame by handler kind and mode.

python benchmarks/kinds.py

Each kind has an agent of its own, on one processor, and the load in C has another. The kinds take
turns, and each figure is the median of the rounds: it is the ratio to inline that says something.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from typing import NamedTuple

from frames import CONNECTIONS, compile_c
from running import BUILD, Running, free_port, pin, running, spop_command

KINDS = {
    "inline": "`def`",
    "cached": "`cache=`, a hit",
    "async-at-once": "`async def`, does not suspend",
    "async": "`async def`, suspends once",
    "blocking": "`blocking=True`",
}
DEPTHS = {1: 25_000, 20: 100_000}
"""Frames in flight on each connection, and how many frames are sent."""


class Row(NamedTuple):
    kind: str
    depth: int
    cost: float  # µs of CPU per frame
    rate: float  # frames a second
    ratio: float = 1.0


def measure(rounds: int = 5, scale: float = 1.0, python: str = sys.executable) -> list[Row]:
    """Each kind in ping-pong and with 20 frames in flight, on one processor."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as stack:
        agents = {kind: stack.enter_context(_agent(kind, python)) for kind in KINDS}
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


def _agent(kind: str, python: str) -> contextlib.AbstractContextManager[Running]:
    port = free_port()
    command = spop_command(port, target="kinds_agent.py", python=python)
    return running(command, port, {"KIND": kind})


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


if __name__ == "__main__":
    compile_c()
    print(table(measure()))
