"""Spreading connections over processes that accept from the same sockets.

Each process tells on a board in shared memory how many connections it has. One that has more
than another leaves a new connection to it for a moment; if nobody took it then, it does. So no
process is in the way of another, whatever happens to it.
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
        """Say how many connections this process has."""
        if not self._leaving:
            self._board[self._place] = connections + 1

    def leave(self) -> None:
        """This process accepts no longer."""
        self._leaving = True
        self._board[self._place] = 0

    def yields(self) -> bool:
        """Another process that accepts has fewer connections."""
        mine = self._board[self._place]
        return any(0 < theirs < mine for theirs in self._board)
