"""The agent's wall clock jumps by days, forward and back (libfaketime).

Expected: each answer is right, no connection ends, no worker is replaced. Only the monotonic clock
counts for timeouts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from load import Ledger
from stage import Needs, Stage, pauses

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
FILE = Path(tempfile.gettempdir()) / f"chaos-clock-{os.getpid()}"
STEPS = ("+1d", "-1d", "+400d", "-400d", "+0")

MISSING = "" if LIBRARY else "libfaketime is not installed"
NEEDS = Needs(
    options=("--idle-timeout", "60", "--stuck-timeout", "5", "--max-connection-age", "3600"),
    environment={
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(FILE),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    },
)


def prepare() -> None:
    FILE.write_text("+0")


def trouble(stage: Stage, seconds: float) -> None:
    for step, _ in zip(_steps(), pauses(seconds, 0.4), strict=False):
        # The library must not read half of it.
        FILE.with_suffix(".new").write_text(step)
        FILE.with_suffix(".new").replace(FILE)
    FILE.write_text("+0")


def _steps() -> Iterator[str]:
    while True:
        yield from STEPS


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    FILE.unlink()
    status = stage.agent.status()
    if ledger.right != ledger.requests:
        yield "steps of the clock cost answers"
    if status["restarts"]:
        yield f"workers died: {status['restart_reasons']}"
    limits = {name: count for name, count in status["limits"].items() if count}
    if limits:
        yield f"limits took effect: {limits}"
