"""Workers may open no further file descriptor (prlimit), while connections come and go.

Expected: open connections are served. New ones wait until there are descriptors again, or until
HAProxy gives up. No worker dies or spins.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from load import Ledger
from stage import Needs, Stage, pauses

NEEDS = Needs(timeout="1s", options=("--max-connection-age", "0.5"))


def trouble(stage: Stage, seconds: float) -> None:
    for _ in pauses(seconds, 1.0):
        for _ in pauses(0.7, 0.7):
            for worker in stage.agent.workers():
                used = len(os.listdir(f"/proc/{worker}/fd"))
                _limit(worker, used)
        for worker in stage.agent.workers():
            _limit(worker, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _limit(worker: int, soft: int) -> None:
    _, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (min(soft, hard), hard))


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    status = stage.agent.status()
    if status["restarts"]:
        yield f"workers died: {status['restart_reasons']}"
    if not status["counts"]["accept_errors"]:
        yield "no worker ran out of descriptors"
