"""Nothing happens.

Expected: each answer is right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from load import Ledger
from stage import Needs, Stage

NEEDS = Needs()


def trouble(stage: Stage, seconds: float) -> None:
    time.sleep(seconds)


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if ledger.right != ledger.requests:
        yield "not each answer is right"
