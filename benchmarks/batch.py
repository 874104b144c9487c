"""Messages per CPU second of a scikit-learn model: 64 rows a call against one.

python benchmarks/batch.py (needs scikit-learn)
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import asyncio
import time

import numpy
from sklearn.ensemble import HistGradientBoostingClassifier

from spop import Batch, Message
from spop.server.batches import Batcher

MESSAGES = 64 * 16
ROWS = numpy.random.default_rng(1).normal(size=(2000, 10))
MODEL = HistGradientBoostingClassifier(max_iter=50).fit(ROWS, ROWS.sum(axis=1) > 0)


def score(messages: list[Message]) -> list[dict[str, object]]:
    rows = numpy.array([message.values for message in messages], dtype=float)
    return [{"txn.score": int(100 * bad)} for bad in MODEL.predict_proba(rows)[:, 1]]


async def rate(size: int) -> float:
    """Messages per CPU second with batches of `size`."""
    batcher = Batcher(score, Batch(size=size, wait=0.01))
    messages = [Message("m", {f"a{n}": n for n in range(10)}) for _ in range(MESSAGES)]
    await batcher.answer(messages[0])
    began = time.process_time()
    await asyncio.gather(*map(batcher.answer, messages))
    used = time.process_time() - began
    batcher.close()
    return MESSAGES / used


if __name__ == "__main__":
    one, many = asyncio.run(rate(1)), asyncio.run(rate(64))
    print(f"1 row a call: {one:,.0f} messages per CPU second")
    print(f"64 rows a call: {many:,.0f}, {many / one:.1f} times as many")
