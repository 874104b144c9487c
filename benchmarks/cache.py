"""The agent's CPU per frame that is answered from the cache, against the agent in C.

python benchmarks/cache.py

Both agents have one processor, and the load in C has another. They take turns, and the figure is
the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics

from frames import compile_c
from kinds import DEPTHS, exchange
from running import free_port, running, sink_command, spop_command

ROUNDS = 7
MORE = 10
"""So many times the frames of `DEPTHS`: the clock has steps of 10 ms, and a hit takes little."""


def ratios() -> dict[int, float]:
    """CPU per frame of a hit, as a multiple of the agent in C, by frames in flight."""
    found: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    port, other = free_port(), free_port()
    command = spop_command(port, target="kinds_agent.py")
    with (
        running(command, port, {"KIND": "cached"}) as agent,
        running(sink_command(other), other) as sink,
    ):
        for depth, frames in DEPTHS.items():
            exchange(agent, "cached", depth, frames)  # Has the answers kept.
        for _ in range(ROUNDS):
            for depth, frames in DEPTHS.items():
                hit, _ = exchange(agent, "cached", depth, MORE * frames)
                found[depth].append(hit / exchange(sink, "cached", depth, MORE * frames)[0])
    return {depth: statistics.median(each) for depth, each in found.items()}


if __name__ == "__main__":
    compile_c()
    for depth, ratio in ratios().items():
        print(f"{depth} in flight: {ratio:.2f} times the CPU of the agent in C")
