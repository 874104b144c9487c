"""The network delays each piece by up to half a second, longer than HAProxy waits for some.

Expected: right answers, or HAProxy's timeout. A late ACK is nobody's answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from load import Ledger
from network import carry
from stage import Needs, Stage

NEEDS = Needs(network=True, timeout="400ms")


async def slowly(data: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(random.choice((0.0, 0.01, 0.5)) * random.random())
    await carry(data, writer)


def trouble(stage: Stage, seconds: float) -> None:
    stage.carry(seconds, slowly)


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if ledger.failed:
        yield "a slow network is no failure of a handler"
