"""The agent's CPU per frame by handler kind and mode; frames a second by threads and processes.

python benchmarks/kinds.py

What processes and threads add shows with a handler that has something to do, as the load needs
some of a processor too. Threads add something where there is no GIL.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from running import Running, free_port, running, spop_command

from spop import Message
from spop.load.generator import Generator, Plan

ADDRESS = ipaddress.IPv4Address("192.0.2.10")
KINDS = ("inline", "blocking", "async")
MODES = ("ping-pong", "pipelined", "async")
SHAPES = ((1, 1), (2, 1), (1, 2))


class Row(NamedTuple):
    kind: str
    mode: str
    cost: float  # µs of CPU per frame
    rate: float  # frames a second


def measure(seconds: float = 1.0) -> list[Row]:
    """Each kind in each mode, on one processor."""
    port = free_port()
    with running(spop_command(port, target="kinds_agent.py"), port) as agent:
        return [_load(agent, kind, mode, seconds) for kind in KINDS for mode in MODES]


def scale(seconds: float = 1.0) -> list[tuple[int, int, Row]]:
    """Processes, threads of each, and what a handler with something to do takes in them."""
    rows = []
    for processes, threads in SHAPES:
        port = free_port()
        options = ("--processes", str(processes), "--threads", str(threads))
        command = spop_command(port, *options, target="kinds_agent.py")
        with running(command, port, processors=processes * threads) as agent:
            rows.append((processes, threads, _load(agent, "busy", "pipelined", seconds)))
    return rows


def _load(agent: Running, kind: str, mode: str, seconds: float) -> Row:
    plan = Plan(
        address=agent.address, mode=mode, duration=seconds, warm_up=0.3,
        messages=[Message(kind, ip=ADDRESS)],
        expected={"sess.ip_score": ADDRESS.packed[-1]},
    )  # fmt: skip
    marks: list[float] = []
    result = Generator(
        plan, lambda _, measuring: marks.append(agent.cpu_seconds()) if measuring else None
    ).run()
    assert not result.errors, result.errors
    used = agent.cpu_seconds() - marks[0]
    return Row(kind, mode, used / result.frames * 1e6, result.frames / result.seconds)


def table(rows: list[Row]) -> str:
    lines = ["| handler | mode | CPU per frame | frames/s |", "|---|---|---|---|"]
    lines += [f"| {r.kind} | {r.mode} | {r.cost:.2f} µs | {r.rate:,.0f} |" for r in rows]
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
    print(table(measure()))
    print()
    print(scale_table(scale()))
