"""What became of a call: its result, or whatever it raised, as data.

Not every exception can travel through a future or a task: a future refuses StopIteration, and
SystemExit leaves the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Outcome = tuple[Any, BaseException | None]
"""What was returned, or None and what was raised."""


def outcome(call: Callable[[], Any]) -> Outcome:
    """Make a call."""
    try:
        return call(), None
    except BaseException as error:
        return None, error


def result_of(outcome: Outcome) -> Any:
    """The result of a call.

    Raises:
        BaseException: what the call has raised.
    """
    result, error = outcome
    if error is None:
        return result
    try:
        raise error
    finally:
        del error, outcome  # They break a reference cycle: its traceback has this frame.


async def outcome_of(awaitable: Awaitable[Any]) -> Outcome:
    """Await something.

    Raises:
        asyncio.CancelledError: the task that waits was cancelled.
    """
    try:
        return await awaitable, None
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return None, error
    except BaseException as error:
        return None, error


async def outcome_in_task(call: Callable[[], Awaitable[Any]]) -> Outcome:
    """Await a call in a task of its own: one that cancels its task ends nothing else.

    Raises:
        asyncio.CancelledError: the task that waits was cancelled.
    """

    async def run() -> Outcome:
        return await outcome_of(call())

    ended, error = await outcome_of(asyncio.create_task(run()))
    return (None, error) if error is not None else ended


async def outcome_in_thread(call: Callable[[], Any]) -> Outcome:
    """Make a call in a thread of the event loop's pool."""
    return await asyncio.to_thread(outcome, call)
