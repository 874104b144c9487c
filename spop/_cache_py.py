"""The encoded answers of one handler in one loop, by key. `_cache.pyx` is the compiled twin."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from spop.constants import ENTRY_SIZE


class _Entry(NamedTuple):
    answer: bytes
    expires: int


class Answers:
    """Answers that expire, of which those least recently used go first.

    Times are in ns of `time.monotonic_ns`. The loop's thread alone finds and keeps; any thread
    may clear and count.

    Attributes:
        hits, misses: how often `find` found an answer, and how often not.
        memory: bytes that the answers and their keys take, roughly.
        generation: counts calls of `clear`.
    """

    __slots__ = (
        "__weakref__",
        "_begun",
        "_entries",
        "_size",
        "generation",
        "hits",
        "memory",
        "misses",
    )

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, 1 at least")
        self._size = size
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.hits: int = 0
        self.misses: int = 0
        self.memory: int = 0
        self.generation: int = 0
        self._begun = 0

    def forget(self) -> None:
        """Forget all answers now. The loop's thread calls this."""
        self._entries = OrderedDict()
        self.memory = 0
        self._begun = self.generation

    def find(self, key: bytes, now: int) -> bytes | None:
        """The answer that is kept for a key, else None."""
        if self._begun != self.generation:
            self.forget()
        entry = self._entries.get(key)
        if entry is not None:
            if now < entry.expires:
                self._entries.move_to_end(key)
                self.hits += 1
                return entry.answer
            self._drop(key)
        self.misses += 1
        return None

    def keep(self, key: bytes, answer: bytes, expires: int, generation: int) -> None:
        """Keep an answer, unless `clear` was called since `generation`."""
        if generation != self.generation:
            return
        if self._begun != generation:
            self.forget()
        if key in self._entries:
            self._drop(key)
        elif len(self._entries) >= self._size:
            self._drop(next(iter(self._entries)))
        self._entries[key] = _Entry(answer, expires)
        self.memory += ENTRY_SIZE + len(key) + len(answer)

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self.memory -= ENTRY_SIZE + len(key) + len(entry.answer)

    def clear(self) -> None:
        """Forget all answers. Any thread may call this."""
        self.generation += 1  # The loop's thread forgets them, before it looks for the next one.

    def __len__(self) -> int:
        return len(self._entries) if self._begun == self.generation else 0
