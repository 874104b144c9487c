"""The agent under trouble: a handler of each kind. Each answers with the path it was asked about."""

from __future__ import annotations

import asyncio

from spop import Agent, Batch, Cache, Message

agent = Agent("chaos", on_error={"txn.failed": "yes"})


@agent.message("inline")
def inline(path: str) -> dict[str, str]:
    return {"txn.answer": path}


@agent.message("waiting")
async def waiting(path: str) -> dict[str, str]:
    await asyncio.sleep(0.001)
    return {"txn.answer": path}


@agent.message("blocking", blocking=True)
def blocking(path: str) -> dict[str, str]:
    return {"txn.answer": path}


@agent.message("cached", cache=Cache(ttl=0.1, size=1000))
def cached(path: str) -> dict[str, str]:
    return {"txn.answer": path}


@agent.message("batch", batch=Batch(size=8, wait=0.002))
async def batch(messages: list[Message]) -> list[dict[str, object]]:
    return [{"txn.answer": message["path"]} for message in messages]


@agent.message("large")
def large(path: str, body: bytes, again: bytes) -> dict[str, str]:
    assert body == again
    return {"txn.answer": path}


@agent.message("greedy")
def greedy(path: str) -> dict[str, str]:
    return {"txn.answer": path[: len(bytes(64 * 2**20))]}  # Asked for and never written: no time.


@agent.message("failing")
def failing(path: str) -> dict[str, str]:
    raise ValueError(path)
