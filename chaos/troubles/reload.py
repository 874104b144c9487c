"""The agent is reloaded (SIGHUP), again and again.

Expected: each answer is right. Connections move to the new workers when they are at rest.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

from load import Ledger
from stage import Needs, Stage

NEEDS = Needs()


def trouble(stage: Stage, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = set(stage.agent.workers())
        stage.agent.process.send_signal(signal.SIGHUP)
        stage.agent.wait_until(
            lambda before=before: not before & set(stage.agent.workers()), "new workers"
        )


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if ledger.right != ledger.requests:
        yield "a reload cost answers"
