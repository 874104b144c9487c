"""Keeps the answers of handlers with ``cache=``."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Any

from spop import codec
from spop.cache import Answers, Cache
from spop.constants import ENTRY_SIZE
from spop.handlers import HandlerInfo
from spop.parameters import check_answer

OF_CACHE = "key_of_cache"
"""The keyword by which calls get the key of their answer."""


LONGEST = 1e9
"""Seconds for which an answer is kept at most, 31 years."""


def _nanoseconds(seconds: float) -> int:
    return int(min(seconds, LONGEST) * 1e9)


class Keeper:
    """Keeps the answers of one handler, in one loop.

    Args:
        answers: where they are kept. A dispatcher looks for an answer there before it calls the
            handler.
        info: the handler. Its `on_error` answers for a failure.
        cache: for how long answers and failures are kept.
        take: called with the bytes of memory that each answer takes.
        count: called with the number of answers that are kept.
    """

    def __init__(
        self,
        answers: Answers,
        info: HandlerInfo,
        cache: Cache,
        take: Callable[[int], object],
        count: Callable[[int], object],
    ) -> None:
        self.answers = answers
        self._function = info.function
        self._ttl, self._error_ttl = map(_nanoseconds, (cache.ttl, cache.error_ttl))
        self._failure = info.on_error
        self._take = take
        self._count = count

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """An inline handler whose answers are kept."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            key = kwargs.pop(OF_CACHE)
            with self.keeping(key) as keep:
                answer = function(*args, **kwargs)
                keep(answer)
            return answer

        return call

    @contextlib.contextmanager
    def keeping(self, key: bytes | None) -> Iterator[Callable[[Any], None]]:
        """Keep the answer that is given in this context, or the one to a failure."""
        generation = self.answers.generation

        def keep(answer: Any) -> None:
            # An answer that can't be encoded is a failure, as it is for the dispatcher.
            check_answer(self._function, {} if answer is None else answer)
            encoded = bytes(codec.encode_answer({} if answer is None else answer))
            self._keep(key, encoded, self._ttl, generation)

        try:
            yield keep
        except BaseException:
            if self._error_ttl:
                self._keep(key, self._failure, self._error_ttl, generation)
            raise

    def _keep(self, key: bytes | None, encoded: bytes, ttl: int, generation: int) -> None:
        if key is not None:
            self.answers.keep(key, encoded, monotonic_ns() + ttl, generation)
            self._take(ENTRY_SIZE + len(key) + len(encoded))
            self._count(len(self.answers))

    def forget(self) -> int:
        """Forget all answers. Returns the bytes of memory that they took."""
        taken = self.answers.memory
        self.answers.forget()
        self._count(0)
        return taken
