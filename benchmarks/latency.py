"""Latency of ping-pong at half of the saturating rate, against the agent in C.

    python benchmarks/latency.py

The load is open: frames fall due at a fixed rate, and one that has to wait counts from then. It
is in C and never sleeps, as one in Python would be what is slow in its slowest hundredth. A
second one has handlers sleep all the time, as slow neighbours: a blocking one for half a second or
for 50 ms, or 200 a second for 50 ms, half of them blocking and half of them async. It disturbs the
first too, so the agent in C is measured beside it as well, which answers at once.
What saturates is found first, for the agent in Python; both get half of that.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
from collections.abc import Iterator
from typing import Any

from frames import CONNECTIONS, compile_c
from running import BUILD, Running, free_port, pin, running, sink_command, spop_command

BESIDE = {
    "beside a handler that sleeps 0.5 s": {"sleeping-long": 2},
    "beside a handler that sleeps 50 ms": {"sleeping": 20},
    "beside 200 sleepers a second": {"sleeping": 100, "async-sleeping": 100},
}
"""Messages a second; each has a handler sleep."""


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
def sleeping_beside(agent: Running, rates: dict[str, int]) -> Iterator[None]:
    processes = [
        subprocess.Popen(
            _command(agent, 10**6, message, rate, connections=2 + rate // 10),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: pin(1),
        )
        for message, rate in rates.items()
    ]  # fmt: skip
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _command(
    agent: Running, frames: int, message: str, rate: float | None, connections: int = CONNECTIONS
) -> list[str]:
    command = [str(BUILD / "load"), "127.0.0.1", str(agent.port), str(connections), "1"]
    return [*command, str(frames), message, *([str(rate)] if rate else [])]


def _load(agent: Running, frames: int, rate: float | None = None) -> dict[str, Any]:
    command = _command(agent, frames, "inline", rate)
    shown = subprocess.run(command, check=True, capture_output=True, preexec_fn=lambda: pin(1))
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def measure(rounds: int = 20, seconds: float = 0.5) -> tuple[float, dict[str, tuple[float, ...]]]:
    """Frames a second; microseconds, p50, p99 and p99.9, of the rounds that the machine disturbed
    least."""
    found: dict[str, list[dict[str, Any]]] = {}
    with agents() as those:
        rate = _load(those["spop"], 100_000)["rate"] / 2
        frames = int(rate * seconds)
        for _ in range(rounds):
            for name, agent in those.items():
                found.setdefault(name, []).append(_load(agent, frames, rate))
                for beside, rates in BESIDE.items():
                    with sleeping_beside(agent, rates):
                        results = found.setdefault(f"{name}, {beside}", [])
                        results.append(_load(agent, frames, rate))
    return rate, {
        name: tuple(_undisturbed(results, quantile) for quantile in ("p50", "p99", "p999"))
        for name, results in found.items()
    }


def _undisturbed(results: list[dict[str, Any]], quantile: str) -> float:
    """The lower quartile: what others do on the machine only ever adds."""
    least: float = statistics.quantiles([result[quantile] for result in results])[0]
    return least * 1e6


def table(rate: float, found: dict[str, tuple[float, ...]]) -> str:
    """The ratios are of p99 and of p99.9."""
    lines = [f"{rate:,.0f} frames a second.\n"]
    lines += ["| agent | p50 | p99 | p99.9 | to C beside the same | to C alone |"]
    lines += ["|---|---|---|---|---|---|"]
    alone, *_ = yardsticks = list(found.values())[: 1 + len(BESIDE)]
    for (name, figures), beside in zip(found.items(), yardsticks * 2, strict=True):
        times = " | ".join(f"{figure:.0f} µs" for figure in figures)
        lines.append(
            f"| {name} | {times} | {_ratios(figures, beside)} | {_ratios(figures, alone)} |"
        )
    return "\n".join(lines)


def _ratios(figures: tuple[float, ...], yardstick: tuple[float, ...]) -> str:
    return "; ".join(f"{a / b:.2f} ×" for a, b in zip(figures[1:], yardstick[1:], strict=True))


if __name__ == "__main__":
    compile_c()
    print(table(*measure()))
