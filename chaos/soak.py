"""Does an agent grow behind real HAProxys? All kinds of handlers, and connections that come and go.

    python chaos/soak.py [--seconds 3600]

HAProxy 2.6 and 3.4 ask it at a constant rate. A line each minute: what became of the requests, and
what the agent's processes hold. It fails if an answer is not right, or if anything has grown since
the first quarter of the time. Descriptors of open connections do not count.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from stage import Needs, Stage, haproxies, read  # noqa: E402

VERSIONS = ("2.6", "3.4")
NEEDS = Needs(pace=0.01, checks="check inter 200ms", options=("--pool-size", "2"))
MEMORY = 1.02
"""Factor that memory may grow by, beside a MiB."""


class Sample(NamedTuple):
    """What was held at a time. Memory is in MiB."""

    requests: int
    errors: int
    connections: int
    memory: float
    descriptors: int
    threads: int


def sample(stage: Stage) -> Sample:
    ledger, counts = stage.ledger, stage.agent.status()["counts"]
    pids = [stage.agent.process.pid, *stage.agent.children()]
    statuses = [read(f"/proc/{pid}/status") for pid in pids]
    return Sample(
        ledger.requests,
        ledger.failed + ledger.errors.total() + len(ledger.broken),
        counts["connections_opened"],
        sum(_number(each, "RssAnon:") for each in statuses) / 1024,
        sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids) - counts["connections"],
        sum(_number(each, "Threads:") for each in statuses),
    )


def _number(status: str, name: str) -> int:
    return int(status.partition(name)[2].split()[0])


def soak(stage: Stage, seconds: float) -> Iterator[Sample]:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(60, seconds / 8, left))
        yield sample(stage)


def grown(samples: list[Sample]) -> Iterator[str]:
    """What has grown since the first quarter, and what was not right."""
    early, last = samples[: max(1, len(samples) // 4)], samples[-1]
    if last.errors:
        yield f"{last.errors} answers were not right"
    if last.memory > MEMORY * max(each.memory for each in early) + 1:
        yield "memory has grown"
    # An eventfd, or a connection that has just begun.
    if last.descriptors > max(each.descriptors for each in early) + 4:
        yield "descriptors have grown"
    if last.threads > max(each.threads for each in early):
        yield "threads have grown"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    seconds = parser.parse_args().seconds
    binaries = {name: path for name, path in haproxies().items() if name in VERSIONS}
    if not binaries:
        sys.exit(f"HAProxy {', '.join(VERSIONS)}: none is installed")
    print(f"HAProxy {', '.join(binaries)}\n", flush=True)
    print("| minute | requests | errors | connections | memory | descriptors | threads |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), binaries, NEEDS) as stage:
        started, samples = time.monotonic(), []
        for each in soak(stage, seconds):
            samples.append(each)
            print(
                f"| {(time.monotonic() - started) / 60:.1f} | {each.requests:,} | {each.errors} |"
                f" {each.connections:,} | {each.memory:.1f} MiB | {each.descriptors} |"
                f" {each.threads} |",
                flush=True,
            )
    ledger = stage.ledger
    found = [*grown(samples), *ledger.broken[:10]]
    print(f"\n{ledger}", *found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
