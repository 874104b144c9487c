"""The counts of a server: int64 cells in memory that other processes may read.

Each loop has a row of cells that it alone writes, so counting takes no lock. `Totals` adds rows up.
A row begins with the cells of `Cell`. From `OWN` on it has those of the agent's own metrics. Then each
handler has `ROUTE_CELLS` cells: those of `RouteCell`, then a histogram of its run times.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto, unique

from spop.constants import Status
from spop.metrics import MOST_METRICS, Description

Cells = memoryview
"""A row: a writable memoryview of format "q"."""


@unique
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
    """The time at which the loop's present round began, in ns of CLOCK_MONOTONIC; 0 while it
    waits."""
    OLDEST_JOB = auto()
    """The time at which the oldest job in the pool's queue came, in ns likewise; 0: none waits."""
    OUT_OF_MEMORY = auto()
    TOO_OLD = auto()
    FRAMES_CROSSED = auto()
    FRAMES_LOST = auto()
    DISCONNECTS_SENT = 32
    DISCONNECTS_RECEIVED = 48


class RouteCell(IntEnum):
    """Cells of a handler, from the first of its own."""

    CALLS = 0
    ERRORS = auto()
    TIMEOUTS = auto()
    NANOSECONDS = auto()
    HITS = auto()
    MISSES = auto()
    KEPT = auto()
    BUCKETS = auto()


OWN = 64
ROUTES = OWN + MOST_METRICS
ROUTE_CELLS = 32
BUCKETS = ROUTE_CELLS - RouteCell.BUCKETS
LINE = 8
"""Cells of a cache line."""
BUCKET_SHIFT = 10
"""Bucket N of a histogram counts run times below 2 ** (N + BUCKET_SHIFT) ns that are in no bucket
before it. The last bucket counts all longer ones."""

_STATUS_CELLS = {status.value: index for index, status in enumerate(Status)}
GAUGES = frozenset({Cell.QUEUED, Cell.RUNNING, Cell.ROUND_BEGAN, Cell.OLDEST_JOB})
"""Cells with a present value instead of a count."""
_TIMES = (Cell.ROUND_BEGAN, Cell.OLDEST_JOB)
_LIMITS = {
    "max_connections": Cell.REFUSED_CONNECTIONS,
    "max_connections_per_peer": Cell.REFUSED_PER_PEER,
    "allow": Cell.REFUSED_NOT_ALLOWED,
    "handshake_timeout": Cell.HANDSHAKE_TIMEOUTS,
    "idle_timeout": Cell.IDLE_TIMEOUTS,
    "max_payload_size": Cell.PAYLOADS_TOO_BIG,
    "max_in_flight": Cell.PAUSED_IN_FLIGHT,
    "max_unsent": Cell.PAUSED_UNSENT,
    "max_messages_or_arguments": Cell.TOO_MANY_MESSAGES,
    "max_frame_size": Cell.FRAMES_TOO_BIG,
    "max_queue": Cell.REJECTED,
    "max_memory": Cell.OUT_OF_MEMORY,
    "max_connection_age": Cell.TOO_OLD,
}


def row_size(routes: int) -> int:
    """Number of cells of a row with so many handlers."""
    return ROUTES + routes * ROUTE_CELLS


def new_row(routes: int) -> Cells:
    """A row that no other process sees.

    No other row is on its cache lines: each thread of a free-threaded Python writes one all the time.
    """
    size = row_size(routes)
    room = memoryview(bytearray(8 * (size + 2 * LINE))).cast("q")
    return room[LINE : LINE + size]


def status_cell(base: Cell, code: int) -> int:
    """The cell that counts DISCONNECTs with a status code (section 3.5)."""
    return base + _STATUS_CELLS.get(int(code), _STATUS_CELLS[Status.UNKNOWN.value])


def observe(cells: Cells, base: int, nanoseconds: int) -> None:
    """Count a call of the handler whose cells begin at `base`."""
    bucket = min((nanoseconds >> BUCKET_SHIFT).bit_length(), BUCKETS - 1)
    cells[base + RouteCell.CALLS] += 1
    cells[base + RouteCell.NANOSECONDS] += nanoseconds
    cells[base + RouteCell.BUCKETS + bucket] += 1


def age(nanoseconds: int) -> float:
    """Seconds since a time in ns of CLOCK_MONOTONIC; 0.0 for no time, which is 0."""
    return max(0, time.monotonic_ns() - nanoseconds) / 1e9 if nanoseconds else 0.0


def _oldest(one: int, other: int) -> int:
    """The earlier of two times. 0 is no time."""
    return min(one, other) or max(one, other)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts since the start of the service, and present values."""

    frames_received: int
    frames_sent: int
    frames_in_hand: int
    acks_elsewhere: int
    acks_dropped: int
    frames_crossed: int
    """NOTIFY frames that came when DISCONNECT was sent already, so that no ACK followed."""
    unknown_messages: int
    bytes_received: int
    bytes_sent: int
    connections: int
    connections_opened: int
    connections_handed_over: int
    health_checks: int
    accept_errors: int
    queued: int
    running: int
    oldest_job: float
    """Seconds for which the oldest message in the pool's queue has waited."""


@dataclass(frozen=True, slots=True)
class HandlerCounts:
    """The counts of a handler. Times are in seconds.

    Attributes:
        p50, p99: bounds below which 50 % and 99 % of the calls stayed.
        buckets: bounds and the number of calls below each. The last is ``+Inf``.
        hits, misses: messages that were answered from the cache, and those that were not.
        kept: number of cached answers.
    """

    name: str
    calls: int
    errors: int
    timeouts: int
    seconds: float
    mean: float
    p50: float
    p99: float
    buckets: Sequence[tuple[str, int]]
    hits: int = 0
    misses: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """The value of a metric of the agent's own: a sum over all processes, or of a gauge the largest.

    Attributes:
        name: as Prometheus has it, without ``_total``.
        kind: "counter" or "gauge".
    """

    name: str
    kind: str
    meaning: str
    labels: dict[str, str]
    value: int


class Totals:
    """The sums of rows, with the handlers' names.

    Attributes:
        cells: by `Cell`, with the cells of the DISCONNECT statuses.
        routes: the cells of each handler, by message name.
        own: the values of the agent's own metrics.
    """

    def __init__(self) -> None:
        self.cells: list[int] = [0] * OWN
        self.routes: dict[str, list[int]] = {}
        self.own: dict[Description, int] = {}

    def add(self, row: Cells, names: Iterable[str], own: Iterable[Description] = ()) -> None:
        """Add a row, with handlers of these names and these metrics."""
        self._add_cells(row)
        for index, description in enumerate(own):
            self._add_own(description, row[OWN + index])
        for index, name in enumerate(names):
            base = row_size(index)
            self._add_route(name, row[base : base + ROUTE_CELLS])

    def merge(self, other: Totals) -> None:
        """Add other sums."""
        self._add_cells(other.cells)
        for description, value in other.own.items():
            self._add_own(description, value)
        for name, theirs in other.routes.items():
            self._add_route(name, theirs)

    def end(self) -> None:
        """The process has ended: no connection of it is open, no job waits or runs, and no frame
        in its hands will be answered."""
        self.cells[Cell.FRAMES_LOST] += self.in_hand
        for cell in GAUGES:
            self.cells[cell] = 0
        for route in self.routes.values():
            route[RouteCell.KEPT] = 0
        self.own = {each: value for each, value in self.own.items() if each.kind != "gauge"}
        self.cells[Cell.CONNECTIONS_CLOSED] = self.cells[Cell.CONNECTIONS_OPENED]

    def _add_cells(self, theirs: Sequence[int]) -> None:
        oldest = [(cell, _oldest(self.cells[cell], theirs[cell])) for cell in _TIMES]
        for cell in range(OWN):
            self.cells[cell] += theirs[cell]
        for cell, time_ in oldest:
            self.cells[cell] = time_

    def _add_own(self, description: Description, value: int) -> None:
        present = self.own.get(description)
        self.own[description] = value if present is None else description.joined(present, value)

    def _add_route(self, name: str, theirs: Sequence[int]) -> None:
        mine = self.routes.get(name, [0] * ROUTE_CELLS)
        self.routes[name] = [a + b for a, b in zip(mine, theirs, strict=True)]

    @property
    def in_hand(self) -> int:
        """Number of NOTIFY frames that are not answered yet."""
        # A row may be counting while it is read.
        cells = self.cells
        answered = cells[Cell.ACKS] + cells[Cell.ACKS_DROPPED] + cells[Cell.FRAMES_LOST]
        return max(0, cells[Cell.NOTIFIES] - answered)

    def counts(self) -> Counts:
        """The sums by name."""
        cells = self.cells
        return Counts(
            frames_received=cells[Cell.NOTIFIES],
            frames_sent=cells[Cell.ACKS],
            frames_in_hand=self.in_hand,
            acks_elsewhere=cells[Cell.ACKS_ELSEWHERE],
            acks_dropped=cells[Cell.ACKS_DROPPED],
            frames_crossed=cells[Cell.FRAMES_CROSSED],
            unknown_messages=cells[Cell.UNKNOWN_MESSAGES],
            bytes_received=cells[Cell.BYTES_RECEIVED],
            bytes_sent=cells[Cell.BYTES_SENT],
            connections=cells[Cell.CONNECTIONS_OPENED] - cells[Cell.CONNECTIONS_CLOSED],
            connections_opened=cells[Cell.CONNECTIONS_OPENED],
            connections_handed_over=cells[Cell.HANDED_OVER],
            health_checks=cells[Cell.HEALTHCHECKS],
            accept_errors=cells[Cell.ACCEPT_ERRORS],
            queued=cells[Cell.QUEUED],
            running=cells[Cell.RUNNING],
            oldest_job=age(cells[Cell.OLDEST_JOB]),
        )

    def limits(self) -> dict[str, int]:
        """How often each limit took effect, by its option."""
        return {option: self.cells[cell] for option, cell in _LIMITS.items()}

    def disconnects(self) -> dict[str, dict[str, int]]:
        """Number of DISCONNECTs by sender, "agent" or "peer", and status code."""
        return {
            sender: {
                str(status): self.cells[base + index] for status, index in _STATUS_CELLS.items()
            }
            for sender, base in (
                ("agent", Cell.DISCONNECTS_SENT),
                ("peer", Cell.DISCONNECTS_RECEIVED),
            )
        }

    def metrics(self) -> list[OwnMetric]:
        """The agent's own metrics."""
        return [
            OwnMetric(each.name, each.kind, each.meaning, dict(each.labels), value)
            for each, value in self.own.items()
        ]

    def handlers(self) -> list[HandlerCounts]:
        """The counts of each handler."""
        return [_handler_counts(name, route) for name, route in self.routes.items()]


def _handler_counts(name: str, route: list[int]) -> HandlerCounts:
    calls, seconds = route[RouteCell.CALLS], route[RouteCell.NANOSECONDS] / 1e9
    buckets = _buckets(route)
    return HandlerCounts(
        name=name,
        calls=calls,
        errors=route[RouteCell.ERRORS],
        timeouts=route[RouteCell.TIMEOUTS],
        seconds=seconds,
        mean=seconds / calls if calls else 0.0,
        p50=quantile(dict(buckets), 0.5) or 0.0,
        p99=quantile(dict(buckets), 0.99) or 0.0,
        buckets=buckets,
        hits=route[RouteCell.HITS],
        misses=route[RouteCell.MISSES],
        kept=route[RouteCell.KEPT],
    )


def _buckets(route: list[int]) -> list[tuple[str, int]]:
    """Bounds and the number of calls below each, as Prometheus has them."""
    bounds = [str(2 ** (index + BUCKET_SHIFT) / 1e9) for index in range(BUCKETS - 1)]
    counts = itertools.accumulate(route[RouteCell.BUCKETS :])
    return list(zip([*bounds, "+Inf"], counts, strict=True))


def quantile(buckets: Mapping[str, int], q: float) -> float | None:
    """The least bound, in seconds, with a share `q` of the calls below; above the last, that one.

    Args:
        buckets: the number of calls below each bound. The last is ``+Inf``.

    Returns:
        None if there was no call.
    """
    total = buckets.get("+Inf", 0)
    if total <= 0:
        return None
    bounds = [bound for bound in buckets if bound != "+Inf"]
    return float(next((each for each in bounds if buckets[each] >= q * total), bounds[-1]))
