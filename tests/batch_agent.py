"""An agent whose batches run in processes, which import it from here."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spop import Agent, Batch, Message


@dataclass
class Settings:
    factor: int = 10
    begins: bool = True


agent = Agent(on_error={"txn.error": True}, config=Settings)


@agent.lifespan
async def model() -> AsyncIterator[dict[str, Any]]:
    if multiprocessing.parent_process() and not agent.config.begins:
        raise FileNotFoundError("there is no model")
    yield {"factor": agent.config.factor}
    if multiprocessing.parent_process() and "BATCH_END" in os.environ:
        await asyncio.sleep(0.5)
        Path(os.environ["BATCH_END"]).touch()


@agent.message("double", batch=Batch(size=4, wait=0.05, executor="process"))
def double(messages: list[Message]) -> list[dict[str, object] | BaseException]:
    return [
        ValueError("odd") if m["n"] == 13 else
        {"txn.n": m["n"] * agent.state["factor"], "txn.pid": os.getpid(), "txn.size": len(messages)}
        for m in messages
    ]  # fmt: skip


@agent.message("dies", batch=Batch(size=1, executor="process"))
def dies(messages: list[Message]) -> list[dict[str, object]]:
    if messages[0]["n"] == 0:
        os._exit(3)
    return [{"txn.n": 1}]


@agent.message("fails", batch=Batch(size=1, executor="process"))
def fails(messages: list[Message]) -> list[dict[str, object]]:
    return [agent.state["nowhere"]]


class OddError(Exception):
    """Reading it takes more arguments than it keeps."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"{number} is {what}")


@agent.message("odd", batch=Batch(size=2, wait=1.0, executor="process"))
def odd(messages: list[Message]) -> list[dict[str, object] | BaseException]:
    return [
        OddError(m["n"], "odd") if m["n"] % 2 else {"txn.n": m["n"]} for m in messages
    ]  # fmt: skip


traced = Agent()


@traced.lifespan
def three() -> Iterator[dict[str, Any]]:
    yield {"factor": 3}


@traced.message("triple", batch=Batch(size=1, executor="process"))
def triple(messages: list[Message]) -> list[dict[str, object]]:
    return [{"txn.n": m["n"] * traced.state["factor"]} for m in messages]


with contextlib.suppress(ModuleNotFoundError):
    from spop.tracing import trace_messages

    trace_messages(traced)


def wrong() -> Agent:
    """An agent whose handler no process can find."""
    local = Agent()

    @local.message("m", batch=Batch(size=1, executor="process"))
    def m(messages: list[Message]) -> list[None]:
        return [None]

    return local
