"""Numbers and times as HAProxy reads them, malformed ones too (section 2.5 of its manual)."""

from __future__ import annotations

import re

from spop.constants import LENGTH_SIZE
from spop.engine.samples.types import read_int

_TIMER_MAX = 2**31 - 1
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([-+]?[0-9]+)", re.ASCII)
_SIZE = re.compile(r"([0-9]+)([kmg]?)", re.ASCII | re.IGNORECASE)
_TIME = re.compile(r"([0-9]+)(us|ms|[smhd])?", re.ASCII)
_MICROSECONDS = {
    "us": 1,
    "ms": 1000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}


def leading_integer(word: str) -> int:
    """The number at the start of a word, as with C's ``atol``; 0 if there is none."""
    match = _INTEGER.match(word)
    return read_int(match[1]) if match else 0


def unsigned(word: str) -> int:
    """The number at the start of a word, cut to 32 bits without a sign."""
    return leading_integer(word) % 2**32


def size_of(word: str) -> int:
    """A size such as ``64k``, in bytes; 0 if the word is none. HAProxy knows the units since 3.1."""
    match = _SIZE.fullmatch(word)
    return read_int(match[1]) << 10 * " kmg".index(match[2].lower() or " ") if match else 0


def frame_limit(bufsize: int) -> int:
    """The highest ``max-frame-size`` with this ``tune.bufsize``.

    HAProxy rounds ``tune.bufsize`` up to 16 bytes, and keeps room for the length of a frame.
    """
    return -(-bufsize // 16) * 16 - LENGTH_SIZE


def seconds(word: str) -> float:
    """A time such as ``10ms`` or ``2m``, in seconds. The default unit is the millisecond.

    As in HAProxy, the time is rounded up to a millisecond, and text behind the unit is ignored:
    ``5sec`` is a time.

    Raises:
        ValueError: the word is no time, or beyond 2147483647 ms.
    """
    match = _TIME.match(word)
    rest = word[match.end() :] if match else word
    if match is None or (rest and not match[2]):
        raise ValueError(f"'{word}' is no time: a number and one of {', '.join(_MICROSECONDS)}")
    milliseconds = -(-read_int(match[1]) * _MICROSECONDS[match[2] or "ms"] // 1000)
    if milliseconds > _TIMER_MAX:
        raise ValueError(f"'{word}' is too long a time, {_TIMER_MAX} ms (24.8 days) at most")
    return milliseconds / 1000
