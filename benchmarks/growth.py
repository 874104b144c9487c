"""The agent's CPU per frame as the work grows: connections, depth, arguments, payload; memory.

Connections grow in ping-pong, so that what a socket costs shows in each point; all else grows on 16
connections. The agent in C, beside it, shows what of it is the kernel's.

python benchmarks/growth.py
"""

from __future__ import annotations

import ipaddress
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from frames import compile_c
from plots import save, subplots
from running import Running, free_port, pin, running, sink_command, spop_command

from spop import Message
from spop.load.generator import Generator, Plan

ADDRESS = ipaddress.IPv4Address("192.0.2.10")
SMALL = [Message("inline", ip=ADDRESS)]

LOGARITHMIC = ("connections", "depth")


class Point(NamedTuple):
    series: str
    x: int
    microseconds: float
    rss: float
    sink: float


def plans(base: Plan) -> Iterator[tuple[str, int, Plan]]:
    """What grows, how far it is, and the load."""
    for connections in (1, 10, 100, 1000, 5000, 10_000):
        yield "connections", connections, replace(base, connections=connections, depth=1)
    for depth in (1, 2, 5, 10, 20, 50, 100, 200):
        yield "depth", depth, replace(base, depth=depth)
    for arguments in (0, 1, 5, 10, 20, 50):
        named = Message("any", {f"argument-{n}": n for n in range(arguments)})
        yield "arguments", arguments, replace(base, messages=[named])
    for size in (0, 256, 1024, 4096, 15_000, 32 * 1024, 64 * 1024):
        body = Message("any", body=bytes(size))
        yield "payload, bytes", size, replace(base, messages=[body], depth=5)


def measure(seconds: float = 0.5) -> list[Point]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    ports = free_port(), free_port()
    points = []
    with (
        running(spop_command(ports[0], target="kinds_agent.py"), ports[0]) as agent,
        running(sink_command(ports[1]), ports[1]) as sink,
    ):
        base = Plan(
            address=agent.address, connections=16, depth=20, messages=SMALL, duration=seconds,
            warm_up=0.2, timeout=30,
        )  # fmt: skip
        for series, x, plan in plans(base):
            if plan.connections < limits[1] - 100:
                beside = replace(plan, address=sink.address)
                points.append(
                    Point(series, x, _cost(plan, agent), agent.memory(), _cost(beside, sink))
                )
    return points


def _cost(plan: Plan, agent: Running) -> float:
    """Microseconds of CPU per frame."""
    marks: list[float] = []
    generator = Generator(
        plan, lambda frames, measuring: marks.append(agent.cpu_seconds()) if measuring else None
    )
    result = generator.run()
    used = agent.cpu_seconds() - (marks[0] if marks else 0.0)
    return used / max(1, result.frames) * 1e6


def table(points: list[Point]) -> str:
    lines = ["| what grows | | CPU per frame | C | memory |", "|---|---|---|---|---|"]
    lines += [
        f"| {p.series} | {p.x:,} | {p.microseconds:.2f} µs | {p.sink:.2f} µs | {p.rss:.0f} MiB |"
        for p in points
    ]
    return "\n".join(lines)


def plot(points: list[Point], path: Path) -> None:
    names = list(dict.fromkeys(point.series for point in points))
    figure, all_axes = subplots(2, 2, figsize=(9, 6))
    for name, axes in zip(names, all_axes.flat, strict=True):
        mine = [point for point in points if point.series == name]
        axes.plot([p.x for p in mine], [p.microseconds for p in mine], marker="o", label="spop")
        axes.plot([p.x for p in mine], [p.sink for p in mine], marker=".", label="C")
        axes.legend()
        if name in LOGARITHMIC:
            axes.set_xscale("log")
        axes.set(xlabel=name, ylabel="µs of CPU per frame", ylim=(0, None))
        axes.grid(visible=True, alpha=0.3)
    save(figure, path)


if __name__ == "__main__":
    compile_c()
    pin(1)
    print(table(measure()))
