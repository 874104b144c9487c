"""The memory that the processes of a service share."""

from __future__ import annotations

import ctypes
import os

import pytest

from spop.counters import Cell, Cells, new_row
from spop.server.board import PLACES, Board, Place


def test_each_place_has_rows_of_its_own_which_processes_share() -> None:
    board = Board(2, 3)
    places = [board.take() for _ in range(2 * PLACES)]
    assert sorted(places) == list(range(2 * PLACES))
    with pytest.raises(ValueError, match="not in list"):
        board.take()
    pid = os.fork()
    if pid == 0:
        for place in places:
            for number, row in enumerate(board.rows(place)):
                row[Cell.NOTIFIES] = 10 * place + number
                row[len(row) - 1] = 1
        os._exit(0)
    os.waitpid(pid, 0)
    for place in places:
        assert [row[Cell.NOTIFIES] for row in board.rows(place)] == [
            10 * place + number for number in range(4)
        ]


def test_no_cache_line_has_cells_of_two_loops() -> None:
    def lines(row: Cells) -> set[int]:
        begin = ctypes.addressof(ctypes.c_char.from_buffer(row))
        return set(range(begin // 64, (begin + row.nbytes - 1) // 64 + 1))

    rows = [new_row(3) for _ in range(20)] + Board(1, 2).rows(0)
    taken = [lines(row) for row in rows]
    assert sum(map(len, taken)) == len(set().union(*taken))


@pytest.mark.parametrize("portable", [False, True])
def test_a_place_is_clean_when_it_is_taken_again(
    portable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        monkeypatch.delattr("os.memfd_create", raising=False)
        monkeypatch.delattr("mmap.MADV_REMOVE", raising=False)
    board = Board(1, 1)
    kept, place = board.take(), board.take()
    for each in (kept, place):
        board.rows(each)[1][Cell.QUEUED] = 7
        board.connections[each] = 3
    board.free(place)
    assert board.places.tolist()[:2] == [Place.STARTING, Place.FREE]
    assert board.take() == place
    assert board.rows(place)[1][Cell.QUEUED] == board.connections[place] == 0
    assert board.rows(kept)[1][Cell.QUEUED] == 7
    assert board.connections[kept] == 3


def test_the_largest_board_takes_no_memory_before_it_is_used() -> None:
    board = Board(1024, 256)
    board.rows(board.places.nbytes // 8 - 1)[256][Cell.QUEUED] = 1
