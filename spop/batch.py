"""How messages are collected for a handler that takes many at once. `spop.server` does it."""

from __future__ import annotations

import math
from dataclasses import dataclass

EXECUTORS = ("thread", "process")


@dataclass(frozen=True)
class Batch:
    """How messages are collected for a handler that takes many at once.

    Attributes:
        size: the most messages of a call.
        wait: seconds that the first message waits for others.
        executor: "thread" or "process": where a plain ``def`` handler runs. An ``async def``
            handler runs on the event loop.
        workers: number of threads or processes of each loop.

    Raises:
        ValueError: a value is out of range.
    """

    size: int
    wait: float = 0.002
    executor: str = "thread"
    workers: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.wait < math.inf or self.workers < 1:
            raise ValueError(f"{self}: size and workers are 1 at least, wait is 0 or more seconds")
        if self.executor not in EXECUTORS:
            raise ValueError(f"executor is {self.executor!r}, not one of {', '.join(EXECUTORS)}")
