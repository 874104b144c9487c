"""The agent's CPU per frame by handler kind, mode, threads and processes.

python benchmarks/kinds.py
"""

from __future__ import annotations

import ipaddress
import os

from running import free_port, running, spop_command

from spop import Message
from spop.load.generator import Generator, Plan

ADDRESS = ipaddress.IPv4Address("192.0.2.10")
KINDS = ("inline", "blocking", "async")
MODES = ("ping-pong", "pipelined", "async")
SHAPES = ((1, 1), (2, 1), (1, 2))


def measure(seconds: float = 1.0) -> list[tuple[str, str, int, int, float, float]]:
    """Kind, mode, processes, threads, µs of CPU per frame, frames a second."""
    rows = []
    for processes, threads in SHAPES:
        port = free_port()
        options = ("--processes", str(processes), "--threads", str(threads))
        with running(spop_command(port, *options, target="kinds_agent.py"), port) as agent:
            if processes * threads > 1:  # They may have all the processors there are.
                os.sched_setaffinity(agent.session, os.sched_getaffinity(0))
            for kind in KINDS:
                for mode in MODES:
                    plan = Plan(
                        address=agent.address, mode=mode, duration=seconds, warm_up=0.3,
                        messages=[Message(kind, ip=ADDRESS)],
                        expected={"sess.ip_score": ADDRESS.packed[-1]},
                    )  # fmt: skip
                    marks: list[float] = []
                    result = Generator(
                        plan,
                        lambda _, measuring, marks=marks, agent=agent: (  # type: ignore[misc]
                            marks.append(agent.cpu_seconds()) if measuring else None
                        ),
                    ).run()
                    assert not result.errors, result.errors
                    used = agent.cpu_seconds() - marks[0]
                    rows.append(
                        (kind, mode, processes, threads, used / result.frames * 1e6,
                         result.frames / result.seconds)
                    )  # fmt: skip
    return rows


def table(rows: list[tuple[str, str, int, int, float, float]]) -> str:
    lines = [
        "| handler | mode | processes | threads | CPU per frame | frames/s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {mode} | {processes} | {threads} | {cost:.2f} µs | {rate:,.0f} |"
        for kind, mode, processes, threads, cost, rate in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(measure()))
