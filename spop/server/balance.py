"""Spreading connections over processes that accept from the same sockets.

Each process writes on the board how many connections it has. A process with more than another
leaves a new connection to that one for a moment, and then accepts it itself if it is still
there. So a process that hangs or dies holds no connection back.
"""

from __future__ import annotations

from spop.counters import Cells


class Balance:
    """A process's place on the board.

    Args:
        board: a cell for each place: connections + 1 of a process that accepts, else 0.
        place: this process's.
    """

    def __init__(self, board: Cells, place: int) -> None:
        self._board = board
        self._place = place
        self._leaving = False

    def tell(self, connections: int) -> None:
        """Write how many connections this process has."""
        if not self._leaving:
            self._board[self._place] = connections + 1

    def leave(self) -> None:
        """This process accepts no more connections."""
        self._leaving = True
        self._board[self._place] = 0

    def yields(self) -> bool:
        """Another process that accepts has fewer connections."""
        mine = self._board[self._place]
        return any(0 < theirs < mine for theirs in self._board)
