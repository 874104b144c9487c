"""Workers are killed (SIGKILL), one every half second.

Expected: only requests in flight fail, and HAProxy tells of each. The supervisor starts another
worker, and the listening socket stays open meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from load import Ledger
from stage import Needs, Stage, pauses

NEEDS = Needs(timeout="2s")


def trouble(stage: Stage, seconds: float) -> None:
    for _ in pauses(seconds, 0.5):
        stage.events += 1
        for worker in stage.agent.workers()[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if ledger.failed:
        yield "a killed worker is no failure of a handler"
    if ledger.errors.total() > stage.events * stage.clients:
        yield "more requests fail than were in flight"
