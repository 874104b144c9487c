"""Asks a ready agent without sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from spop import UNSET, Agent

Ask = Callable[..., dict[str, Any]]
"""Arguments to the variables that are set, without their scope."""


@contextmanager
def asking_agent(agent: Agent, message: str, settings: Any) -> Iterator[Ask]:
    """Ask it with these settings, and with metrics that begin at 0."""

    def ask(**arguments: Any) -> dict[str, Any]:
        answer = agent.test(message, **arguments)
        return {name.removeprefix("txn."): v for name, v in answer.items() if v is not UNSET}

    agent.config = settings
    agent.metrics.use(memoryview(bytearray(8 * 256)).cast("q"))
    try:
        yield ask
    finally:
        agent.close_test()
