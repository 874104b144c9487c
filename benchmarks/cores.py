"""Frames a second as processes, ports and threads are added, of a handler that works for 0.2 ms.

    python benchmarks/cores.py [--python PATH]...

The shapes take turns, and each figure is the median of the rounds. Threads add something where there is
no GIL. The load in C takes little of the processor that it shares with the last worker.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from frames import CONNECTIONS, compile_c
from running import (
    BUILD,
    PROCESSORS,
    Running,
    free_ports,
    interpreter_name,
    pin,
    running,
    spop_command,
)  # fmt: skip

WARMING = 1000


class Shape(NamedTuple):
    name: str
    processes: int = 1
    threads: int = 1
    ports: int = 1


def shapes() -> Iterator[Shape]:
    """From one worker to one for each processor."""
    yield Shape("1 process")
    for count in range(2, len(PROCESSORS) + 1):
        yield Shape(f"{count} processes", processes=count)
        yield Shape(f"{count} processes, a port each", processes=count, ports=count)
        yield Shape(f"{count} threads", threads=count)


def measure(
    python: str = sys.executable, seconds: float = 1.0, rounds: int = 3
) -> dict[str, tuple[float, float]]:
    """Frames a second of each shape, and the ratio to one process of the same round."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        one = 0.0
        for shape in shapes():
            rate = _rate(python, shape, seconds)
            one = one or rate
            found.setdefault(shape.name, []).append((rate, rate / one))
    return {
        name: (statistics.median(rates), statistics.median(ratios))
        for name, (rates, ratios) in (
            (name, zip(*each, strict=True)) for name, each in found.items()
        )
    }


def _rate(python: str, shape: Shape, seconds: float) -> float:
    port = free_ports(shape.ports)
    options = ("--processes", str(shape.processes), "--threads", str(shape.threads))
    command = spop_command(
        port, *options, target="kinds_agent.py", ports=shape.ports, python=python
    )
    count = shape.processes * shape.threads
    with running(command, port, processors=count) as agent:
        warm = _load(agent, shape, WARMING)
        return _load(agent, shape, int(warm * seconds))


def _load(agent: Running, shape: Shape, frames: int) -> float:
    """Frames a second of all ports, until the last load is done."""
    share = str(frames // shape.ports)
    connections = str(CONNECTIONS // shape.ports)
    loads = [
        subprocess.Popen(
            [BUILD / "load", "127.0.0.1", str(agent.port + number), connections, "20", share, "busy"],
            stdout=subprocess.PIPE, preexec_fn=lambda: pin(1),
        )
        for number in range(shape.ports)
    ]  # fmt: skip
    shown = [json.loads(load.communicate(timeout=120)[0]) for load in loads]
    return float(sum(each["frames"] for each in shown) / max(each["seconds"] for each in shown))


def table(by_python: dict[str, dict[str, tuple[float, float]]]) -> str:
    names = [f"CPython {name}" for name in by_python]
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for shape in next(iter(by_python.values())):
        cells = (found[shape] for found in by_python.values())
        lines.append(
            f"| {shape} | "
            + " | ".join(f"{rate:,.0f}, {ratio:.2f} ×" for rate, ratio in cells)
            + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", metavar="PATH", help="one that has spop")
    pythons = parser.parse_args().python or [sys.executable]
    compile_c()
    print(table({interpreter_name(path): measure(path) for path in pythons}))
