"""The network cuts connections, most of them in the middle of a frame.

Expected: requests in flight on the connection fail, and HAProxy tells of each. With async, their
ACKs may come on another connection. No frame is answered of which only a part came.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from load import Ledger
from network import carry
from stage import Needs, Stage

NEEDS = Needs(network=True, timeout="1s")
CHANCE = 0.03
"""That a piece is the last of its connection, in both directions."""


async def cutting(data: bytes, writer: asyncio.StreamWriter) -> None:
    if random.random() > CHANCE:
        await carry(data, writer)
        return
    await carry(data[: random.randrange(len(data))], writer)
    raise ConnectionResetError


def trouble(stage: Stage, seconds: float) -> None:
    stage.carry(seconds, cutting)


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if ledger.failed:
        yield "a lost connection is no failure of a handler"
    if stage.agent.status()["disconnects"]["agent"]["4"]:
        yield "the agent took a part of a frame for a frame"
    if not ledger.errors:
        yield "nobody noticed that connections were cut"
