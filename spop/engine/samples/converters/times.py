"""Converters of seconds since 1970 to text."""

from __future__ import annotations

import time
from email.utils import formatdate

from spop.engine.samples.arguments import Unit
from spop.engine.samples.registry import converter


@converter("utime")
def utime(value: int, pattern: str, offset: int = 0) -> str:
    return time.strftime(pattern, time.gmtime(value + offset))


@converter("ltime")
def ltime(value: int, pattern: str, offset: int = 0) -> str:
    return time.strftime(pattern, time.localtime(value + offset))


@converter("http_date")
def http_date(value: int, offset: int = 0, unit: Unit = Unit(1)) -> str:  # noqa: B008
    """A date for header fields; below the second, HAProxy's has the bare count of units."""
    seconds, fraction = divmod(value + offset, unit)
    date = formatdate(seconds, usegmt=True)
    return date if unit == 1 else date.replace(" GMT", f".{fraction} GMT")
