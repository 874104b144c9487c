"""What a server counts, as int64 cells in memory that other processes may read.

Each loop has a row of cells that it alone writes, so counting takes no lock; whoever wants
totals adds the rows up. A row begins with the cells of `Cell`; behind `ROUTES` each handler has
`ROUTE_CELLS` of its own: those of `RouteCell`, then a histogram of its run times.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, auto

from spop.constants import Status

Cells = memoryview
"""A row: a writable memoryview of format "q"."""


class Cell(IntEnum):
    """Cells of a row."""

    NOTIFIES = 0
    ACKS = auto()
    UNKNOWN_MESSAGES = auto()
    BYTES_RECEIVED = auto()
    BYTES_SENT = auto()
    CONNECTIONS_OPENED = auto()
    CONNECTIONS_CLOSED = auto()
    HEALTHCHECKS = auto()
    REFUSED_CONNECTIONS = auto()
    REFUSED_PER_PEER = auto()
    REFUSED_NOT_ALLOWED = auto()
    HANDSHAKE_TIMEOUTS = auto()
    IDLE_TIMEOUTS = auto()
    PAYLOADS_TOO_BIG = auto()
    PAUSED_IN_FLIGHT = auto()
    PAUSED_UNSENT = auto()
    TOO_MANY_MESSAGES = auto()
    ACKS_DROPPED = auto()
    ACKS_ELSEWHERE = auto()
    HANDED_OVER = auto()
    ACCEPT_ERRORS = auto()
    QUEUED = auto()
    RUNNING = auto()
    REJECTED = auto()
    FRAMES_TOO_BIG = auto()
    ROUND_BEGAN = auto()
    """When the loop's present round began, in ns of CLOCK_MONOTONIC; 0 while it waits."""
    OLDEST_JOB = auto()
    """When the job that waits longest for a thread of the pool came, likewise; 0: none."""
    DISCONNECTS_SENT = 32
    DISCONNECTS_RECEIVED = 48


class RouteCell(IntEnum):
    """Cells of a handler, from the first of its own."""

    CALLS = 0
    ERRORS = auto()
    TIMEOUTS = auto()
    NANOSECONDS = auto()
    BUCKETS = auto()


ROUTES = 64
ROUTE_CELLS = 32
BUCKETS = ROUTE_CELLS - RouteCell.BUCKETS
BUCKET_SHIFT = 10
"""Bucket N of a histogram has the run times below 2 ** (N + BUCKET_SHIFT) ns that the one
before has not; the last has all others."""

_STATUS_CELLS = {status: index for index, status in enumerate(Status)}
GAUGES = frozenset({Cell.QUEUED, Cell.RUNNING, Cell.ROUND_BEGAN, Cell.OLDEST_JOB})
"""Cells that say how it is now, not how many there were."""


def row_size(routes: int) -> int:
    """How many cells a row has with so many handlers."""
    return ROUTES + routes * ROUTE_CELLS


def new_row(routes: int) -> Cells:
    """A row of this process alone."""
    return memoryview(bytearray(8 * row_size(routes))).cast("q")


def status_cell(base: Cell, code: int) -> int:
    """The cell that counts DISCONNECTs of a status code (section 3.5)."""
    known = Status(code) if code in Status.__members__.values() else Status.UNKNOWN
    return base + _STATUS_CELLS[known]


def observe(cells: Cells, base: int, nanoseconds: int) -> None:
    """Count a run of the handler whose cells begin at `base`."""
    bucket = min((nanoseconds >> BUCKET_SHIFT).bit_length(), BUCKETS - 1)
    cells[base + RouteCell.CALLS] += 1
    cells[base + RouteCell.NANOSECONDS] += nanoseconds
    cells[base + RouteCell.BUCKETS + bucket] += 1


class Totals:
    """Rows added up, with the handlers' names.

    Attributes:
        cells: by `Cell` value, those of the DISCONNECT statuses included.
        routes: each handler's cells, by message name.
    """

    def __init__(self) -> None:
        self.cells = [0] * ROUTES
        self.routes: dict[str, list[int]] = {}

    def add(self, row: Cells, names: Iterable[str]) -> None:
        """Add a row."""
        for cell in range(ROUTES):
            self.cells[cell] += row[cell]
        for index, name in enumerate(names):
            base = row_size(index)
            mine = self.routes.setdefault(name, [0] * ROUTE_CELLS)
            for cell, count in enumerate(row[base : base + ROUTE_CELLS]):
                mine[cell] += count

    def end(self) -> None:
        """These are of a process that has ended: nothing of it is open, waits or runs."""
        for cell in GAUGES:
            self.cells[cell] = 0
        self.cells[Cell.CONNECTIONS_CLOSED] = self.cells[Cell.CONNECTIONS_OPENED]

    def merge(self, other: Totals) -> None:
        """Add what another has."""
        self.cells = [mine + theirs for mine, theirs in zip(self.cells, other.cells, strict=True)]
        for name, theirs in other.routes.items():
            mine = self.routes.get(name, [0] * ROUTE_CELLS)
            self.routes[name] = [a + b for a, b in zip(mine, theirs, strict=True)]

    @property
    def connections(self) -> int:
        """How many are open."""
        return self.cells[Cell.CONNECTIONS_OPENED] - self.cells[Cell.CONNECTIONS_CLOSED]

    @property
    def in_hand(self) -> int:
        """NOTIFY frames taken and not yet answered."""
        return self.cells[Cell.NOTIFIES] - self.cells[Cell.ACKS] - self.cells[Cell.ACKS_DROPPED]

    def status_counts(self, base: Cell) -> dict[Status, int]:
        """DISCONNECTs by status."""
        return {status: self.cells[base + index] for status, index in _STATUS_CELLS.items()}


def quantile(route: list[int], q: float) -> float:
    """The run time in seconds that a share `q` of a handler's runs stayed below, roughly."""
    buckets = route[RouteCell.BUCKETS :]
    wanted = q * sum(buckets)
    seen = 0
    for index, count in enumerate(buckets):
        seen += count
        if count and seen >= wanted:
            return float(2 ** (index + BUCKET_SHIFT)) / 1e9
    return 0.0
