"""Converters of times, in seconds since 1970, to text."""

from __future__ import annotations

import time
from collections.abc import Callable

from spop.engine.samples.arguments import Unit
from spop.engine.samples.converters.numbers import quotient
from spop.engine.samples.registry import converter

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_55_BITS = (1 << 55) - 1
"""The bits of a time that HAProxy keeps."""


@converter("utime")
def utime(value: int, pattern: str, offset: int = 0) -> str:
    return _format(pattern, time.gmtime, value, offset)


@converter("ltime")
def ltime(value: int, pattern: str, offset: int = 0) -> str:
    return _format(pattern, time.localtime, value, offset)


def _format(
    pattern: str, split: Callable[[float], time.struct_time], value: int, offset: int
) -> str:
    """The formatted time; empty if its year does not fit 32 bits."""
    try:
        return time.strftime(pattern, split((value & _55_BITS) + offset))
    except (OverflowError, ValueError, OSError):
        return ""


@converter("http_date")
def http_date(value: int, offset: int = 0, unit: Unit = Unit(1)) -> str:  # noqa: B008
    """A date for header fields."""
    total = value + offset
    seconds = quotient(total, unit)
    # Behind the seconds, HAProxy writes the count of smaller units without leading zeros.
    fraction = "" if unit == 1 else f".{total - seconds * unit}"
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(seconds & _55_BITS)
    date = f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year}"
    return f"{date} {hour:02}:{minute:02}:{second:02}{fraction} GMT"
