"""CPU time per frame of agents over real sockets, as a ratio to an agent in C.

    python benchmarks/frames.py [--agents spop,haproxyspoa] [--runs 5] [--scale 1.0]
                                [--python-forge PATH]

The load generator and the C agent are compiled on the spot. Each agent has processor 0 for
itself, the load has processor 1. The runs of all agents alternate, so that a machine that
grows slower does so for all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from running import BUILD, Running, free_port, pin, running, sink_command, spop_command

HERE = Path(__file__).parent
CONNECTIONS = 16


class Exchange(NamedTuple):
    name: str
    depth: int
    payload: str
    frames: int
    connections: int = CONNECTIONS


class Agent(NamedTuple):
    name: str
    command: Callable[[int], list[str]]
    environment: dict[str, str]
    slowness: int
    """How many times fewer frames it is given, to end in the same time."""


EXCHANGES = (
    Exchange("ping-pong", 1, "small", 200_000),
    Exchange("one connection, one frame", 1, "small", 50_000, connections=1),
    Exchange("20 in flight", 20, "small", 1_000_000),
    Exchange("20 in flight, 6 arguments + 600 bytes", 20, "web", 1_000_000),
    Exchange("100 in flight", 100, "small", 2_000_000),
)


def python(
    script: str, interpreter: str = sys.executable, *options: str
) -> Callable[[int], list[str]]:
    return lambda port: [interpreter, *options, str(HERE / "agents" / script), str(port)]


COMPAT = ("-m", "spop.compat")


AGENTS = {
    agent.name: agent
    for agent in (
        Agent("C sink", sink_command, {}, 1),
        Agent("spop", spop_command, {}, 1),
        Agent("spop-pure", spop_command, {"SPOP_PURE": "1"}, 10),
        Agent("haproxyspoa", python("haproxyspoa_agent.py"), {}, 40),
        Agent("spoe-forge", python("spoe_forge_agent.py"), {}, 40),
        Agent(
            "haproxyspoa-compat", python("haproxyspoa_agent.py", sys.executable, *COMPAT), {}, 10
        ),
        Agent("spoe-forge-compat", python("spoe_forge_agent.py", sys.executable, *COMPAT), {}, 10),
    )
}
NEEDS = {
    "haproxyspoa": "haproxyspoa", "haproxyspoa-compat": "haproxyspoa", "spoe-forge": "spoe_forge",
    "spoe-forge-compat": "spoe_forge",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", default=",".join(AGENTS), help="names, by commas")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of frames")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument(
        "--python-forge",
        default=os.environ.get("PYTHON_FORGE", sys.executable),
        help="the interpreter of spoe-forge, which needs Python 3.12",
    )
    options = parser.parse_args()
    names = {"C sink", *options.agents.split(",")}
    if unknown := names - AGENTS.keys():
        parser.error(f"no such agents: {', '.join(sorted(unknown))}")
    compile_c()
    for name, before in (("spoe-forge", ()), ("spoe-forge-compat", COMPAT)):
        command = python("spoe_forge_agent.py", options.python_forge, *before)
        AGENTS[name] = AGENTS[name]._replace(command=command)
    wanted = [agent for agent in AGENTS.values() if agent.name in names]
    agents = [agent for agent in wanted if is_installed(agent)]
    figures = measure(agents, options.runs, options.scale)
    print(table(figures, agents))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def compile_c() -> None:
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        print("frames.py needs a C compiler, for the load and the C agent", file=sys.stderr)
        sys.exit(2)
    BUILD.mkdir(exist_ok=True)
    for name in ("sink", "load", "requests"):
        source = HERE / "c" / f"{name}.c"
        flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra"]
        command = [compiler, *flags, "-o", str(BUILD / name), str(source), "-lm"]
        subprocess.run(command, check=True)


def is_installed(agent: Agent) -> bool:
    module = NEEDS.get(agent.name)
    if module is None:
        return True
    command = [agent.command(0)[0], "-c", f"import {module}"]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0:
        return True
    print(f"{agent.name}: not installed, left out", file=sys.stderr)
    return False


def measure(agents: list[Agent], runs: int, scale: float) -> dict[str, dict[str, list[float]]]:
    """Microseconds of CPU per frame of each run, by exchange and agent."""
    figures: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        all_running = [(agent, stack.enter_context(started(agent))) for agent in agents]
        for exchange in EXCHANGES:
            results = figures.setdefault(exchange.name, {agent.name: [] for agent in agents})
            for _ in range(runs):
                for agent, it in all_running:
                    frames = max(1000, int(exchange.frames * scale / agent.slowness))
                    before = it.cpu_seconds()
                    load(it.port, exchange, frames)
                    used = it.cpu_seconds() - before
                    results[agent.name].append(used / frames * 1e6)
    return figures


@contextlib.contextmanager
def started(agent: Agent) -> Iterator[Running]:
    port = free_port()
    # Some peers log an error for each connection that ends.
    stderr = subprocess.DEVNULL if agent.name in NEEDS else None
    with running(agent.command(port), port, agent.environment, stderr) as it:
        yield it


def load(port: int, exchange: Exchange, frames: int) -> None:
    command = [str(BUILD / "load"), "127.0.0.1", str(port), str(exchange.connections)]
    command += [str(exchange.depth), str(frames), exchange.payload]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, preexec_fn=lambda: pin(1), timeout=120
    )


def table(figures: dict[str, dict[str, list[float]]], agents: list[Agent]) -> str:
    """The medians, then by how much the rounds differ."""
    head = ["| exchange | " + " | ".join(agent.name for agent in agents) + " |"]
    head.append("|---|" + "---|" * len(agents))
    lines = [*head]
    for exchange, results in figures.items():
        cells = [cell(results[agent.name], results["C sink"]) for agent in agents]
        lines.append(f"| {exchange} | " + " | ".join(cells) + " |")
    lines += ["", "µs, least to most:", "", *head]
    for exchange, results in figures.items():
        spreads = [f"{min(each):.3g} to {max(each):.3g}" for each in results.values()]
        lines.append(f"| {exchange} | " + " | ".join(spreads) + " |")
    return "\n".join(lines)


def cell(values: list[float], yardstick: list[float]) -> str:
    """The median, and the median ratio to the agent in C."""
    ratio = statistics.median(v / y for v, y in zip(values, yardstick, strict=True))
    return f"{statistics.median(values):.2g} µs, {ratio:.3g} ×"


if __name__ == "__main__":
    main()
