"""The load generator's match of ACKs with the NOTIFY frames that they answer."""

from __future__ import annotations

from array import array
from typing import Any

from pair import Twins, attempt, exact
from structure import OPTIONS, Options, mutate

__all__ = ["mutate", "outcome"]

NOW = 10**12


def outcome(twins: Twins, data: bytes) -> Any:
    options = Options(data)
    first, ring = options.take([0, 1, 2, 300]), options.take([0, 0, 1, 3])
    expected = options.take([None, b"", data[-5:]])
    size = options.take([16380, 1 << 20, 40])
    stream = exact(data[OPTIONS:])
    end = max(0, len(stream) - options.take([0, 0, 1, 7]))
    ages = [0, 1, 63, 64, 10**9, NOW - 1, -5]
    sent = array("q", [NOW - ages[n % 7] if n % 3 else 0 for n in range(first + ring + 8)])
    histogram, answered = array("q", bytes(8 * 2048)), list[int]()
    found = attempt(
        twins.acks.take_acks,
        stream,
        end,
        size,
        first,
        sent,
        NOW,
        histogram,
        expected,
        answered,
        ring,
    )
    return found, sent.tobytes(), histogram.tobytes(), answered
