"""Latency of ping-pong at half of the saturating rate, against the agent in C.

    python benchmarks/latency.py

The load is open: frames fall due at a fixed rate, and one that has to wait counts from then.
A second client has a blocking handler sleep all the time, as a slow neighbour. What saturates is
found first, for the agent in Python; both get half of that, or what the generator can bear.
"""

from __future__ import annotations

import contextlib
import ipaddress
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from frames import compile_c
from running import Running, free_port, pin, running, sink_command, spop_command

from spop import Message
from spop.load.generator import Generator, Plan

MAX_RATE = 15_000
"""Frames a second that the generator sends on time without being what is slow."""

ADDRESS = ipaddress.IPv4Address("192.0.2.10")


@contextlib.contextmanager
def agents() -> Iterator[dict[str, Running]]:
    with contextlib.ExitStack() as stack:
        ports = free_port(), free_port()
        yield {
            "C sink": stack.enter_context(running(sink_command(ports[0]), ports[0])),
            "spop": stack.enter_context(
                running(spop_command(ports[1], target="kinds_agent.py"), ports[1])
            ),
        }


@contextlib.contextmanager
def sleeping_beside(agent: Running) -> Iterator[None]:
    """50 messages a second for a handler that sleeps for 10 ms."""
    process = subprocess.Popen(
        [sys.executable, "-m", "spop", "bench", f"127.0.0.1:{agent.port}", "sleeping",
         "--rate", "50", "--connections", "2", "--duration", "600"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: pin(1),
    )  # fmt: skip
    try:
        time.sleep(2)  # Its start takes the processor that the measurement is on.
        yield
    finally:
        process.kill()
        process.wait()


def measure(rounds: int = 3, seconds: float = 2.0) -> dict[str, tuple[float, float]]:
    """Microseconds: p50 and p99, medians over the rounds."""
    found: dict[str, list[tuple[float, float]]] = {}
    with agents() as those:
        saturated = Generator(_plan(those["spop"], None, 1.0)).run()
        rate = min(MAX_RATE, saturated.frames / saturated.seconds / 2)
        for _ in range(rounds):
            for name, agent in those.items():
                found.setdefault(name, []).append(_quantiles(agent, rate, seconds))
            with sleeping_beside(those["spop"]):
                name = "spop, beside a handler that sleeps"
                found.setdefault(name, []).append(_quantiles(those["spop"], rate, seconds))
    return {
        name: (statistics.median(r[0] for r in rows), statistics.median(r[1] for r in rows))
        for name, rows in found.items()
    }


def _plan(agent: Running, rate: float | None, seconds: float) -> Plan:
    return Plan(
        address=agent.address, mode="ping-pong", messages=[Message("inline", ip=ADDRESS)],
        rate=rate, duration=seconds, warm_up=0.5,
    )  # fmt: skip


def _quantiles(agent: Running, rate: float, seconds: float) -> tuple[float, float]:
    latencies = Generator(_plan(agent, rate, seconds)).run().histogram
    return latencies.quantile(0.5) * 1e6, latencies.quantile(0.99) * 1e6


def table(found: dict[str, tuple[float, float]]) -> str:
    yardstick = found["C sink"][1]
    lines = ["| agent | p50 | p99 | p99 / C |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {p50:.0f} µs | {p99:.0f} µs | {p99 / yardstick:.2f} × |"
        for name, (p50, p99) in found.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    compile_c()
    pin(1)
    print(table(measure()))
