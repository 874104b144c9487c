"""The network delays each piece by up to half a second, longer than HAProxy waits for some.

Expected: right answers, or HAProxy's timeout. A late ACK is nobody's answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

from load import Ledger
from network import carry
from stage import Needs, Stage

NEEDS = Needs(network=True, timeout="400ms")


async def slowly(data: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(random.choice((0.0, 0.01, 0.5)) * random.random())
    await carry(data, writer)


def trouble(stage: Stage, seconds: float) -> None:
    for network in stage.networks.values():
        network.to_agent = network.to_haproxy = slowly
    time.sleep(seconds)
    for network in stage.networks.values():
        network.to_agent = network.to_haproxy = carry


def complaints(stage: Stage, ledger: Ledger) -> Iterator[str]:
    if ledger.failed:
        yield "a slow network is no failure of a handler"
