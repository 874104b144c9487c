"""What lives as long as a worker or one of its loops: an agent's lifespans and periodic calls.

This module has them as data and runs those of a worker. `spop.loop_life` runs those of a loop. A
plain generator lives as long as the worker. An async generator lives as long as one loop, on
that loop's event loop. What they yield is merged into the state of the loop.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from spop.parameters import name_of, place_of

LoopState = Mapping[str, Any]

NOTHING: Any = object()
"""In place of what a generator would yield, when it has ended."""

_STATE: ContextVar[LoopState] = ContextVar("spop_state")


def current_state() -> LoopState:
    """The state of the loop that runs the present handler.

    Raises:
        RuntimeError: no loop runs here.
    """
    try:
        return _STATE.get()
    except LookupError:
        raise RuntimeError("agent.state is there in handlers and what they call") from None


def use_state(state: LoopState) -> None:
    """Have `current_state` return this in the present context."""
    _STATE.set(state)


class Periodic(NamedTuple):
    """A function that is called again and again.

    Attributes:
        seconds: from the end of one call to the beginning of the next.
        jitter: the part of `seconds` that a random number may add or take away.
        once: only in the first loop of each worker.
    """

    function: Callable[[], Any]
    seconds: float
    jitter: float
    once: bool

    @property
    def name(self) -> str:
        """What its failures are counted as."""
        return f"every {name_of(self.function)}"

    def wait(self) -> float:
        """Seconds until the next call."""
        return self.seconds * (1 + random.uniform(-self.jitter, self.jitter))


Lifespan = Callable[[], Any]
"""A generator function, plain or async, that yields a dict or None."""


class Resources(NamedTuple):
    """The lifespans and periodic calls of an agent.

    Attributes:
        failed: called with the name and the exception of a periodic call that failed.
    """

    lifespans: Sequence[Lifespan]
    periodic: Sequence[Periodic]
    failed: Callable[[str, BaseException], None]

    def __bool__(self) -> bool:
        return bool(self.lifespans or self.periodic)

    @contextlib.contextmanager
    def worker(self) -> Iterator[LoopState]:
        """The state of a worker, for a ``with`` statement around all of its loops.

        Raises:
            BaseException: a lifespan raised it.
            ValueError: two lifespans yield the same key.
            TypeError: a lifespan yields what is no dict.
        """
        merged = Merged()
        with contextlib.ExitStack() as stack:
            for lifespan in self.lifespans:
                if inspect.isgeneratorfunction(lifespan):
                    generator = lifespan()
                    merged.add(lifespan, next(generator, NOTHING))
                    stack.callback(_end, generator)
            yield merged.state


def _end(generator: Iterator[Any]) -> None:
    # Not as a context manager: a lifespan ends in the same way whatever the reason is.
    if next(generator, NOTHING) is not NOTHING:
        raise RuntimeError("a lifespan yields more than once")


class Merged:
    """What lifespans have yielded, as one state.

    Raises:
        ValueError: by `add`: a lifespan yields a key that another has yielded.
        TypeError: by `add`: it yields what is no dict.
    """

    def __init__(self, state: LoopState | None = None) -> None:
        self.state: dict[str, Any] = dict(state or {})

    def add(self, lifespan: Lifespan, yielded: Any) -> None:
        name = f"lifespan {name_of(lifespan)} ({place_of(lifespan)})"
        if yielded is None:
            return
        if yielded is NOTHING:
            raise TypeError(f"{name} yields nothing")
        if not isinstance(yielded, Mapping):
            kind = type(yielded).__name__
            raise TypeError(f"{name} yields {kind}; a dict or None is needed")
        for key in yielded:
            if key in self.state:
                raise ValueError(f"{name} yields the key {key!r}, which another has yielded")
        self.state.update(yielded)
