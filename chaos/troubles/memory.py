"""Workers get no more memory from the system (prlimit), while handlers want 64 MiB each.

Expected: a handler that gets no memory has failed, and is answered as any that fails. What the
worker itself can't go on without ends a connection or the worker, and HAProxy tells of it.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

from load import Ledger
from stage import Needs, Stage, pauses

NEEDS = Needs(messages=("inline", "waiting", "blocking", "large", "greedy"), timeout="1s")


def trouble(stage: Stage, seconds: float) -> None:
    for _ in pauses(seconds, 0.3):
        for worker in stage.agent.workers():
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{worker}/statm").read_text().split()[0])
                _limit(worker, pages * resource.getpagesize())
        for _ in pauses(0.5, 0.5):
            pass
        for worker in stage.agent.workers():
            with contextlib.suppress(OSError):
                _limit(worker, resource.RLIM_INFINITY)


def _limit(worker: int, most: int) -> None:
    resource.prlimit(worker, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if not ledger.failed:
        yield "no handler was without memory"
