"""The same agents on several interpreters, in results/interpreters.md.

    python benchmarks/interpreters.py --python PATH... [--seconds 1]

Each PATH is a Python that has spop. Its agents are measured against the agent in C, or against themselves, in
the same run.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import cores
import frames
import kinds
from running import HERE, PROCESSORS, interpreter_name, spop_command

SINK = frames.AGENTS["C sink"]
ROUNDS = 3


def against_c(pythons: dict[str, str], seconds: float) -> Iterator[str]:
    agents = [
        SINK,
        *(frames.Agent(name, partial(command, path), {}, 1) for name, path in pythons.items()),
    ]
    figures = frames.measure(agents, ROUNDS, 0.4 * seconds)
    yield f"| CPython | {' | '.join(figures)} |\n|---|{'---|' * len(figures)}"
    for name in pythons:
        ratios = (
            statistics.median(a / b for a, b in zip(by[name], by[SINK.name], strict=True))
            for by in figures.values()
        )
        yield f"| {name} | {' | '.join(f'{ratio:.2f} ×' for ratio in ratios)} |"


def command(python: str, port: int) -> list[str]:
    return spop_command(port, python=python)


def by_kind(pythons: dict[str, str], seconds: float) -> Iterator[str]:
    depths = [f"{depth} in flight" if depth > 1 else "ping-pong" for depth in kinds.DEPTHS]
    yield f"| CPython | handler | {' | '.join(depths)} |\n|---|---|{'---|' * len(depths)}"
    for name, path in pythons.items():
        rows = kinds.measure(ROUNDS, 0.4 * seconds, path)
        for kind in kinds.KINDS.values():
            ratios = [f"{row.ratio:.1f} ×" for row in rows if row.kind == kind]
            yield f"| {name} | {kind} | {' | '.join(ratios)} |"


def report(pythons: dict[str, str], seconds: float) -> Iterator[str]:
    when = f"{datetime.now(UTC):%Y-%m-%d}, {len(PROCESSORS)} processors, {platform.platform()}, "
    when += "`benchmarks/interpreters.py`."
    yield "# Interpreters"
    yield f"\n## Other interpreters, to the agent in C\n\n{when}\n"
    yield from against_c(pythons, seconds)
    yield f"\n## Handler kinds, to an inline one\n\n{when}\n"
    yield from by_kind(pythons, seconds)
    yield f"\n## Processes and threads\n\n{when}\n"
    yield cores.table({name: cores.measure(path, seconds) for name, path in pythons.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", required=True, metavar="PATH")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = parser.parse_args()
    frames.compile_c()
    lines = []
    for line in report({interpreter_name(path): path for path in options.python}, options.seconds):
        print(line, flush=True)
        lines.append(line)
    (HERE / "results" / "interpreters.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
