"""Does an agent grow? All kinds of handlers, fragments, and connections that come and go.

    python benchmarks/soak.py [--minutes 10]

Rounds of two seconds, each of one kind and on new connections, with two loops and the pool at work.
After each minute, at rest: what the agent's processes hold. Growth counts from the second minute.
"""

from __future__ import annotations

import argparse
import ipaddress
import itertools
import resource
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

from running import Running, free_port, running, spop_command

from spop import Message
from spop.load.generator import Generator, Plan

ADDRESS = ipaddress.IPv4Address("192.0.2.10")
ROUNDS = (
    ("inline", "ping-pong", Message("inline", ip=ADDRESS)),
    ("inline", "pipelined", Message("inline", ip=ADDRESS)),
    ("blocking", "pipelined", Message("blocking", ip=ADDRESS)),
    ("blocking", "ping-pong", Message("blocking", ip=ADDRESS)),
    ("async", "async", Message("async", ip=ADDRESS)),
    ("fragments", "pipelined", Message("any", body=bytes(40_000))),
    ("unknown", "pipelined", Message("nobody-handles-this", ip=ADDRESS)),
    ("failing", "pipelined", Message("inline", ip="no address")),
)


class Minute(NamedTuple):
    """What happened in it, and what was held at its end."""

    frames: int
    connections: int
    errors: int
    memory: float
    files: int


def soak(minutes: float) -> Iterator[Minute]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    port = free_port()
    command = spop_command(port, "--threads", "2", target="kinds_agent.py")
    rounds = itertools.cycle(ROUNDS)
    with running(command, port, stderr=subprocess.DEVNULL) as agent:  # It tells of failures.
        end = time.monotonic() + 60 * minutes
        while (left := end - time.monotonic()) > 0:
            yield _minute(agent, rounds, min(60, left))


def _minute(agent: Running, rounds: Iterator[tuple[str, str, Message]], seconds: float) -> Minute:
    frames = connections = errors = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _, mode, message = next(rounds)
        plan = Plan(
            address=agent.address, mode=mode, messages=[message], duration=1.9, warm_up=0.1,
            connections=64, timeout=30,
        )  # fmt: skip
        result = Generator(plan).run()
        frames += result.frames
        connections += plan.connections
        errors += sum(result.errors.values())
    return Minute(frames, connections, errors, agent.memory(), agent.open_files())


def table(minutes: list[Minute]) -> str:
    lines = [
        "| minute | frames | connections | errors | memory | open files |", "|---|---|---|---|---|---|"
    ]  # fmt: skip
    lines += [
        f"| {n} | {m.frames:,} | {m.connections:,} | {m.errors} | {m.memory:.1f} MiB | {m.files} |"
        for n, m in enumerate(minutes, 1)
    ]
    if len(minutes) > 2:
        grown = minutes[-1].memory - minutes[1].memory
        frames = sum(m.frames for m in minutes[2:])
        lines.append(f"\nGrown since the second minute: {grown:.2f} MiB in {frames:,} frames.")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    print(table(list(soak(parser.parse_args().minutes))))
