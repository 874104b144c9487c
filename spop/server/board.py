"""Memory that the processes of a service share: each writes its own cells, all may read.

The supervisor makes it before it starts any process. Health and counts are read here, so the
process that they are about does not have to answer.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum, auto

from spop.counters import Cells, row_size

PLACES = 8
"""Number of places for each of `processes`, as old workers leave while new ones start."""
ROW_BYTES = 1024 * 1024
"""Size of a row, enough for 4086 handlers. Pages that are never written take no memory."""


class Place(IntEnum):
    """The state of the worker at a place."""

    FREE = 0
    STARTING = auto()
    SERVING = auto()
    STOPPED = auto()
    """By a signal, until another continues it."""
    LEAVING = auto()


class Board:
    """The shared memory.

    Args:
        processes: number of workers that serve at a time.
        threads: number of loops of each worker.

    Attributes:
        supervisor: the supervisor's row, as a loop has one.
        places: a `Place` for each place.
        connections: connections + 1 of each place that accepts, else 0.
        movable: those of them that can be moved, + 1, of each place that accepts, else 0.
        adopted: number of connections that each place has taken from others.
    """

    def __init__(self, processes: int, threads: int) -> None:
        self._threads = threads
        self._rows_begin = _whole_pages(8 * (row_size(0) + 2 + 4 * PLACES * processes))
        count = PLACES * processes
        self._memory = _shared_memory(self._rows_begin + count * self._place_size)
        cells = memoryview(self._memory).cast("q")
        self.supervisor: Cells = cells[: row_size(0)]
        rest = cells[row_size(0) :]
        self._draining, self._uneven, rest = rest[:1], rest[1:2], rest[2:]
        self.places: Cells = rest[:count]
        self.connections: Cells = rest[count : 2 * count]
        self.movable: Cells = rest[2 * count : 3 * count]
        self.adopted: Cells = rest[3 * count : 4 * count]

    @property
    def _place_size(self) -> int:
        return (self._threads + 1) * ROW_BYTES

    @property
    def draining(self) -> bool:
        """The service stops."""
        return bool(self._draining[0])

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining[0] = draining

    @property
    def uneven(self) -> bool:
        """The supervisor was told that some place has too many connections."""
        return bool(self._uneven[0])

    @uneven.setter
    def uneven(self, uneven: bool) -> None:
        self._uneven[0] = uneven

    def take(self) -> int:
        """Begin to use a free place.

        Raises:
            ValueError: no place is free.
        """
        place = self.places.tolist().index(Place.FREE)
        self.places[place] = Place.STARTING
        return place

    def free(self, place: int) -> None:
        """The worker of a place has ended."""
        self.places[place] = Place.FREE
        for cells in (self.connections, self.movable, self.adopted):
            cells[place] = 0
        start, size = self._rows_begin + place * self._place_size, self._place_size
        try:
            self._memory.madvise(mmap.MADV_REMOVE, start, size)
        except (AttributeError, OSError):  # Only Linux has it.
            self._memory[start : start + size] = bytes(size)

    def rows(self, place: int) -> list[Cells]:
        """A row for each loop of the worker at a place, and one for its executor."""
        start = self._rows_begin + place * self._place_size
        with memoryview(self._memory) as memory:
            return [
                memory[start + number * ROW_BYTES : start + (number + 1) * ROW_BYTES].cast("q")
                for number in range(self._threads + 1)
            ]

    def loops(self, place: int) -> list[Cells]:
        """The rows of the loops, without the executor's."""
        return self.rows(place)[:-1]


def _shared_memory(size: int) -> mmap.mmap:
    """Zeros that child processes share. Pages of a memfd take no memory until written."""
    if not hasattr(os, "memfd_create"):
        return mmap.mmap(-1, size)
    fd = os.memfd_create("spop")
    try:
        os.ftruncate(fd, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
