"""The network carries single bytes, in both directions.

Expected: each answer is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from load import Ledger
from network import carry
from stage import Needs, Stage

NEEDS = Needs(network=True, pace=0.1)


async def in_bytes(data: bytes, writer: asyncio.StreamWriter) -> None:
    for offset in range(len(data)):
        await carry(data[offset : offset + 1], writer)
        await asyncio.sleep(0)


def trouble(stage: Stage, seconds: float) -> None:
    stage.carry(seconds, in_bytes)


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if ledger.right != ledger.requests:
        yield "single bytes cost answers"
