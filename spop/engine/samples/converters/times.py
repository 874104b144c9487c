"""Converters of seconds since 1970 to text."""

from __future__ import annotations

import time
from email.utils import formatdate

from spop.engine.samples.arguments import parse_unit
from spop.engine.samples.registry import converter


@converter("utime")
def utime(value: int, pattern: str, offset: int = 0) -> str:
    return time.strftime(pattern, time.gmtime(value + offset))


@converter("ltime")
def ltime(value: int, pattern: str, offset: int = 0) -> str:
    return time.strftime(pattern, time.localtime(value + offset))


@converter("http_date", prepare=parse_unit)
def http_date(value: int, offset: int = 0, unit: str = "1") -> str:
    """A date for header fields; below the second, HAProxy's has the bare count of units."""
    seconds, fraction = divmod(value + offset, int(unit))
    date = formatdate(seconds, usegmt=True)
    return date if int(unit) == 1 else date.replace(" GMT", f".{fraction} GMT")
