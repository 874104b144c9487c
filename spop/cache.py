"""Cached answers: what a `Cache` of a handler is, and the answers that each loop keeps.

The dispatcher looks answers up, before it calls a handler. `spop.server` has them kept.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spop.twins import twin

if TYPE_CHECKING:
    from spop._cache_py import Answers
else:
    Answers = twin("spop._cache").Answers

__all__ = ["Answers", "Cache", "HandlerCache"]


@dataclass(frozen=True)
class Cache:
    """How the answers of a handler are kept, by the arguments that it takes.

    Attributes:
        ttl: seconds for which an answer is kept.
        size: the most answers that are kept in each loop. Those least recently used go first.
        error_ttl: seconds for which a failure is kept; 0: not at all.

    Raises:
        ValueError: a value is out of range.
    """

    ttl: float
    size: int
    error_ttl: float = 0.0

    def __post_init__(self) -> None:
        if not self.ttl > 0 or self.size < 1 or not self.error_ttl >= 0:
            raise ValueError(f"{self}: ttl is more than 0, size 1 at least, error_ttl 0 at least")


class HandlerCache:
    """The answers of one handler in all loops of this process. Threads share it.

    Attributes:
        settings: as given to `Agent.message`.
    """

    def __init__(self, settings: Cache) -> None:
        self.settings = settings
        self._loops: weakref.WeakSet[Answers] = weakref.WeakSet()

    def answers(self) -> Answers:
        """New ones, for one loop."""
        answers = Answers(self.settings.size)
        self._loops.add(answers)
        return answers

    def clear(self) -> None:
        """Forget all answers. A call that runs now does not keep its answer."""
        for answers in list(self._loops):
            answers.clear()

    @property
    def hits(self) -> int:
        """Number of messages that were answered without a call."""
        return sum(answers.hits for answers in list(self._loops))

    @property
    def misses(self) -> int:
        """Number of messages whose answer was not there."""
        return sum(answers.misses for answers in list(self._loops))

    def __len__(self) -> int:
        """Number of answers that are kept now, expired ones included."""
        return sum(map(len, list(self._loops)))

    def __repr__(self) -> str:
        return f"<{len(self)} answers kept, {self.hits} hits, {self.misses} misses>"
