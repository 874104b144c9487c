"""The network carries single bytes, in both directions; of large pieces these are the first and the last.

Expected: each answer is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from load import Ledger
from network import carry
from stage import Needs, Stage

NEEDS = Needs(network=True, pace=0.1)
EDGE, STEP = 500, 100
"""Bytes of a piece that go one by one at each of its ends, and how many go together in between. If all of a payload
of 18 KB go one by one, the proxy on a busy machine takes longer than HAProxy waits."""


async def in_bytes(data: bytes, writer: asyncio.StreamWriter) -> None:
    offset = 0
    while offset < len(data):
        size = STEP if EDGE <= offset < len(data) - EDGE - STEP else 1
        await carry(data[offset : offset + size], writer)
        await asyncio.sleep(0)
        offset += size


def trouble(stage: Stage, seconds: float) -> None:
    stage.carry(seconds, in_bytes)


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if ledger.right != ledger.requests:
        yield "single bytes cost answers"
