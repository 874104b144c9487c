"""Spreading connections over processes that accept from the same sockets.

A process with more connections than another leaves a new one to that process for a moment, and
then accepts it itself if it is still there. So a process that hangs or dies holds no connection
back. What this leaves uneven is moved: a process that has more than one connection above another
says so, and the supervisor, which alone sees all, orders how many to give away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spop.server.board import Board

SETTLE = 0.2
"""Seconds from an uneven count to the moves that mend it, so that a burst is moved once."""


class Balance:
    """A process's place on the board. Its loops share it.

    Args:
        announce: tells the supervisor that the counts are uneven.
    """

    def __init__(self, board: Board, place: int, announce: Callable[[], object]) -> None:
        self._board = board
        self._place = place
        self._announce = announce
        self._leaving = False

    def tell(self, connections: int) -> None:
        """Write how many connections this process has."""
        if not self._leaving:
            self._board.connections[self._place] = connections + 1

    def tell_movable(self, movable: int) -> None:
        """Write how many of them can be moved."""
        if self._leaving:
            return
        self._board.movable[self._place] = movable + 1
        if not self._board.uneven and is_uneven([count for count in self._board.movable if count]):
            self._board.uneven = True
            self._announce()

    def adopted(self) -> None:
        """Count a connection that another process gave away."""
        self._board.adopted[self._place] += 1

    def leave(self) -> None:
        """This process accepts no more connections."""
        self._leaving = True
        self._board.connections[self._place] = self._board.movable[self._place] = 0

    def yields(self) -> bool:
        """Another process that accepts has fewer connections."""
        mine = self._board.connections[self._place]
        return any(0 < theirs < mine for theirs in self._board.connections)

    def has_too_many(self) -> bool:
        """It may give a connection away."""
        mine = self._board.movable[self._place]
        return any(0 < theirs < mine - 1 for theirs in self._board.movable)


def is_uneven(counts: Sequence[int]) -> bool:
    """The highest count is more than 1 above the lowest."""
    return len(counts) > 1 and max(counts) - min(counts) > 1


def surplus(counts: Sequence[int]) -> list[int]:
    """How many connections each has to give away until the counts differ by 1 at most.

    These are the fewest: those with the highest counts keep one more.
    """
    share, rest = divmod(sum(counts), len(counts))
    given = [0] * len(counts)
    highest_first = sorted(range(len(counts)), key=counts.__getitem__, reverse=True)
    for rank, index in enumerate(highest_first):
        given[index] = max(0, counts[index] - share - (rank < rest))
    return given
