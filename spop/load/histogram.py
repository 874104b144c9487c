"""Counts of latencies in buckets, which are wider for longer latencies."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from spop.load.acks import SUB_BITS, bucket

SIZE = (64 - SUB_BITS) << SUB_BITS
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)


def bounds(index: int) -> tuple[int, int]:
    """The lowest latency of a bucket in nanoseconds, and that of the next bucket."""
    if index < 1 << SUB_BITS + 1:
        return index, index + 1
    shift = (index >> SUB_BITS) - 1
    low = ((index & (1 << SUB_BITS) - 1) + (1 << SUB_BITS)) << shift
    return low, low + (1 << shift)


class Histogram:
    """Counts of latencies."""

    def __init__(self, counts: Iterable[int] | None = None) -> None:
        self.counts: array[int] = array("q", bytes(8 * SIZE) if counts is None else counts)

    def add(self, nanoseconds: int) -> None:
        """Count a latency."""
        self.counts[bucket(nanoseconds)] += 1

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        for index, count in enumerate(other.counts):
            if count:
                self.counts[index] += count

    @property
    def total(self) -> int:
        """Number of latencies."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """The latency in seconds within which a share `q` of all stayed; 0 if there are none."""
        wanted = q * self.total
        seen = 0
        for index, count in self.items():
            seen += count
            if seen >= wanted:
                return sum(bounds(index)) / 2e9
        return 0.0

    @property
    def mean(self) -> float:
        """The mean latency in seconds."""
        total = self.total
        weighted = sum(count * sum(bounds(index)) / 2 for index, count in self.items())
        return weighted / total / 1e9 if total else 0.0

    @property
    def highest(self) -> float:
        """The highest latency in seconds."""
        return max((bounds(index)[1] for index, _ in self.items()), default=0) / 1e9

    def items(self) -> Iterator[tuple[int, int]]:
        """The buckets that are not empty, with their counts."""
        return ((index, count) for index, count in enumerate(self.counts) if count)

    def distribution(self) -> Iterator[tuple[float, float]]:
        """Latency in seconds and the share of all that stayed within it, in rising order."""
        total, seen = self.total, 0
        for index, count in self.items():
            seen += count
            yield bounds(index)[1] / 1e9, seen / total
