"""Workers are stopped (SIGSTOP) for longer than HAProxy waits, and go on.

Expected: what a stopped worker has in hand runs into HAProxy's timeout. Its late ACKs are nobody's
answers.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator

from load import Ledger
from stage import Needs, Stage, pauses

NEEDS = Needs(timeout="300ms")


def trouble(stage: Stage, seconds: float) -> None:
    for _ in pauses(seconds, 0.2):
        worker = random.choice(stage.agent.workers())
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGSTOP)
            time.sleep(0.6)
            os.kill(worker, signal.SIGCONT)


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if ledger.failed:
        yield "a stopped worker is no failure of a handler"
    if not ledger.errors:
        yield "nobody noticed that workers were stopped"
