"""The disk with the log is full (/dev/full), and there is much to log.

Expected: each answer is right, and handlers that fail are answered as ever. What can't be logged is
lost.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

from load import Ledger
from stage import Needs, Stage, pauses

NEEDS = Needs(
    messages=("inline", "waiting", "blocking", "large", "failing"),
    options=("--log-frames", "--log-level", "debug"),
    log="/dev/full",
)


def trouble(stage: Stage, seconds: float) -> None:
    for _ in pauses(seconds, 0.2):
        stage.agent.process.send_signal(signal.SIGUSR1)


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    status = stage.agent.status()
    if ledger.errors:
        yield "a full disk cost answers"
    if not ledger.failed:
        yield "no handler failed, so there was nothing to log"
    if status["restarts"]:
        yield f"workers died: {status['restart_reasons']}"
