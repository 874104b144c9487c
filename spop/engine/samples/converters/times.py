"""Converters of seconds since 1970 to text."""

from __future__ import annotations

import time
from email.utils import formatdate

from spop.engine.samples.errors import ArgumentError
from spop.engine.samples.registry import converter

_UNITS = {"s": 1, "ms": 1000, "us": 1_000_000}


@converter("utime")
def utime(value: int, pattern: str, offset: int = 0) -> str:
    return time.strftime(pattern, time.gmtime(value + offset))


@converter("ltime")
def ltime(value: int, pattern: str, offset: int = 0) -> str:
    return time.strftime(pattern, time.localtime(value + offset))


def _unit(offset: int = 0, unit: str = "s") -> tuple[int, int]:
    if unit not in _UNITS:
        raise ArgumentError(f"'{unit}' is none of the units {', '.join(_UNITS)}")
    return offset, _UNITS[unit]


@converter("http_date", prepare=_unit)
def http_date(value: int, offset: int = 0, unit: str = "1") -> str:
    """A date for header fields; below the second, HAProxy's has the bare count of units."""
    seconds, fraction = divmod(value + offset, int(unit))
    date = formatdate(seconds, usegmt=True)
    return date if int(unit) == 1 else date.replace(" GMT", f".{fraction} GMT")
