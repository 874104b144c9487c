"""All benchmarks, in a short form, as a Markdown report with plots in benchmarks/results.

    python benchmarks/report.py [PART]...

PART is a function of this module, such as of_ready_agents, whose section alone is measured anew. At
the end the tables of README and docs are written from the report.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import clients
import cores
import cost
import engine
import floods
import frames
import growth
import in_front
import kinds
import latency
import neighbours
import page_tables
import passes
import ready_agents
import soak
import web
from plots import save, subplots
from rivals.__main__ import behind, front_table
from running import HERE, PROCESSORS, pin

RESULTS = HERE / "results"
PEERS = ("haproxyspoa", "spoe-forge")


def micro() -> Iterator[str]:
    """The codecs, by pytest-benchmark."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run(
            [sys.executable, "-m", "pytest", str(HERE), "-q", "--benchmark-json", file.name,
             "--benchmark-max-time=0.3", "--benchmark-min-rounds=5"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        measured = json.loads(Path(file.name).read_text())["benchmarks"]
    groups: dict[str, list[tuple[str, float]]] = {}
    for each in measured:
        name = each["extra_info"].get("package") or each["param"] or each["name"]
        row = name, each["stats"]["median"] * 1e6
        groups.setdefault(each["group"] or each["name"], []).append(row)
    yield "| what | implementation | time | ratio |\n|---|---|---|---|"
    for group, rows in groups.items():
        fastest = min(took for _, took in rows)
        for name, took in sorted(rows, key=lambda row: row[1]):
            yield f"| {group} | {name} | {took:.3g} µs | {took / fastest:.1f} × |"


def over_sockets() -> Iterator[str]:
    """Agents, their CPU per frame against the one in C."""
    agents = [agent for agent in frames.AGENTS.values() if frames.is_installed(agent)]
    figures = frames.measure(agents, runs=3, scale=0.4)
    plot_ratios(figures, RESULTS / "frames.svg")
    yield frames.table(figures, agents)
    yield "\n![CPU per frame against the agent in C](frames.svg)"


def plot_ratios(figures: dict[str, dict[str, list[float]]], path: Path) -> None:
    import statistics

    figure, axes = subplots()
    names = list(next(iter(figures.values())))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        values = [statistics.median(results[name]) for results in figures.values()]
        places = [place + index * width for place in range(len(values))]
        bars = axes.bar(places, values, width, label=name)
        axes.bar_label(bars, fmt="%.2g", fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel("µs of CPU per frame")
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(figures))], list(figures))
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(fontsize=8, ncols=len(names))
    axes.margins(y=0.15)
    save(figure, path)


def by_kind() -> Iterator[str]:
    """Handler kinds and modes."""
    yield kinds.table(kinds.measure(3, 0.4))


def of_cores() -> Iterator[str]:
    """Processes, ports and threads, with a handler that works for 0.2 ms."""
    yield cores.table({platform.python_version(): cores.measure()})


def as_work_grows() -> Iterator[str]:
    """Cost as work grows."""
    points = growth.measure(0.4)
    growth.plot(points, RESULTS / "growth.svg")
    yield growth.table(points)
    yield "\n![CPU per frame as work grows](growth.svg)"


def latencies() -> Iterator[str]:
    """Latency at half of the saturating rate."""
    yield latency.table(*latency.measure(rounds=8))


def behind_haproxy() -> Iterator[str]:
    """A real HAProxy in front."""
    if in_front.find_haproxy() is None:
        yield "HAProxy is not installed."
    else:
        yield in_front.table(in_front.measure(3000, 3))


def with_clients() -> Iterator[str]:
    """Behind HAProxy, with one client and with many."""
    binaries = [each for each in os.environ.get("SPOP_TEST_HAPROXY", "").split(":") if each]
    agents = [frames.AGENTS["C sink"], frames.AGENTS["spop"]]
    found = in_front.find_haproxy()
    rows = [
        row
        for binary in binaries or ([found] if found else [])
        for row in behind(binary, agents, 1.0, 3)
    ]
    yield from front_table(rows)


def of_clients() -> Iterator[str]:
    """The clients, against the agent in C."""
    yield clients.table(list(clients.measure()))


def of_the_engine() -> Iterator[str]:
    """The engine, against the agent in C."""
    yield engine.table(list(engine.measure()))


def of_the_middleware() -> Iterator[str]:
    """What the middleware adds to a request."""
    yield web.table(list(web.measure()))


def of_ready_agents() -> Iterator[str]:
    """The ready agents: CPU for a request, and what it is made of."""
    yield from ready_agents.table(count=500, rounds=1)


def beside_others() -> Iterator[str]:
    """Beside peers that misbehave."""
    yield neighbours.table(list(neighbours.measure(exchanges=500, rounds=3)))


def beside_floods() -> Iterator[str]:
    """Beside floods of connections."""
    yield floods.table(list(floods.measure(pairs=5, seconds=1)))


def of_passes() -> Iterator[str]:
    """The longest pass."""
    yield passes.table()


def without_growing() -> Iterator[str]:
    """Memory under all kinds of load, for half a minute."""
    yield soak.table(list(soak.soak(0.5)))


def in_instructions() -> Iterator[str]:
    """Instructions for each frame."""
    if cost.is_available():
        measured = cost.instructions()
        cost.record(measured)
        yield cost.table(measured)
    else:
        yield "valgrind is not installed."
    cost.plot(RESULTS / "history.svg")
    yield "\n![Instructions from commit to commit](history.svg)"


PARTS: tuple[Callable[[], Iterator[str]], ...] = (
    micro, over_sockets, by_kind, of_cores, as_work_grows, latencies, behind_haproxy, with_clients, of_clients, of_the_engine,
    of_the_middleware, of_ready_agents, beside_others, beside_floods, of_passes, without_growing,
    in_instructions,
)  # fmt: skip


def machine() -> Iterator[str]:
    """Where all of this was measured."""
    model = ""
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if "model name" in line), "")
    yield f"{model}, {os.cpu_count()} processors, {platform.system()} {platform.release()}"
    for peer in PEERS:
        try:
            yield f"- {peer} {version(peer)}"
        except PackageNotFoundError:
            yield f"- {peer}: not installed"


def when() -> str:
    """When, and of what, a part was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}, {python}"


def main() -> None:
    parts = [part for part in PARTS if not sys.argv[1:] or part.__name__ in sys.argv[1:]]
    if len(parts) < len(sys.argv[1:]):
        sys.exit(f"the parts: {', '.join(part.__name__ for part in PARTS)}")
    began = time.monotonic()
    frames.compile_c()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "report.md"
    measured = page_tables.sections(path.read_text()) if path.exists() else {}
    for part in parts:
        part_began = time.monotonic()
        print(f"{title(part)} …", end=" ", flush=True)
        if part not in (
            micro,
            by_kind,
            of_cores,
            beside_others,
            beside_floods,
            latencies,
            without_growing,
        ):
            pin(1)
        measured[title(part)] = "\n".join(["", when(), "", *part()])
        os.sched_setaffinity(0, PROCESSORS)
        write(measured, path)
        print(f"{time.monotonic() - part_began:.0f} s", flush=True)
    print(f"all: {time.monotonic() - began:.0f} s; written to {path}")
    page_tables.main()


def write(measured: dict[str, str], path: Path) -> None:
    """After each part, as a later one may fail."""
    wanted = [title(part) for part in PARTS if title(part) in measured]
    sections = ["# Benchmarks", "\n".join(machine())]
    sections += [f"## {each}\n{measured[each].rstrip()}" for each in wanted]
    path.write_text("\n\n".join(sections) + "\n")


def title(part: Callable[[], Iterator[str]]) -> str:
    return str(part.__doc__).rstrip(".")


if __name__ == "__main__":
    main()
