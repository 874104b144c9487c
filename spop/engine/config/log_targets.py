"""The ``log`` lines of an agent (sections 2.2 of the SPOE document, 4.2 of HAProxy's manual)."""

from __future__ import annotations

import re
from itertools import pairwise

from spop.engine.config.addresses import read_log_address
from spop.engine.config.diagnostics import ConfigError, refusal
from spop.engine.config.lines import Line
from spop.engine.config.model import LogTarget
from spop.engine.config.values import leading_integer
from spop.engine.config.versions import DEFAULT, TCP_LOGS, Version
from spop.engine.samples.errors import did_you_mean

FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "auth2",
    "ftp", "ntp", "audit", "alert", "cron2", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
)  # fmt: skip
LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
FORMATS = ("local", "rfc3164", "rfc5424", "priority", "short", "timed", "iso", "raw")

NOT_LOGGED_TO = ("abns", "fd", "ring", "tcp")
"""The kinds of addresses, before an ``@``, to which HAProxy logs and the engine does not."""

_LENGTHS = range(80, 65536)
_USAGE = "log <address> [len <n>] [format <f>] [sample <r>:<n>] <facility> [<level> [<minlevel>]]"
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?", re.ASCII)


def read_log_target(line: Line, version: Version | None = None) -> LogTarget:
    """Read a ``log`` line other than ``log global``. Host names are not looked up.

    Raises:
        ConfigError: HAProxy would refuse the line.
    """
    return _LogLine(line, version).read()


class _LogLine:
    def __init__(self, line: Line, version: Version | None) -> None:
        self._version = version or DEFAULT
        self._line = line
        self._arguments = line.arguments
        self._index = 0

    def read(self) -> LogTarget:
        if len(self._arguments) < 2:
            raise self._refuse(
                "an address and a facility are missing", f"'{_USAGE}' or 'log global'"
            )
        self._index = 1
        length = self._length() if self._has("len") else 1024
        form = self._choice("format", FORMATS) if self._has("format") else "rfc3164"
        ranges, size = self._sample() if self._has("sample") else ((), 1)
        facility = self._choice("facility", FACILITIES)
        level = self._choice("level", LEVELS) if self._left() else "debug"
        min_level = self._choice("level", LEVELS) if self._left() else "emerg"
        self._line.take(self._index)
        return LogTarget(self._address(), facility, level, min_level, form, length, ranges, size)

    def _address(self) -> str:
        with self._line.refusing(1):
            return read_log_address(self._arguments[0], tcp=self._version.branch >= TCP_LOGS)

    def _left(self) -> bool:
        return self._index < len(self._arguments)

    def _has(self, keyword: str) -> bool:
        found = self._left() and self._arguments[self._index] == keyword
        self._index += found
        return found

    def _next(self) -> str:
        word = self._arguments[self._index] if self._left() else ""
        self._index += 1
        return word

    def _refuse(self, message: str, hint: str | None = None) -> ConfigError:
        """The error for the word that was read last."""
        return refusal(self._line.at(self._index), message, hint)

    def _choice(self, what: str, known: tuple[str, ...]) -> str:
        word = self._next()
        if word not in known:
            hint = did_you_mean(word, known) or f"there are {', '.join(known)}"
            raise self._refuse(f"unknown {what} '{word}'" if word else f"a {what} is missing", hint)
        return word

    def _length(self) -> int:
        word = self._next()
        length = leading_integer(word)
        if length not in _LENGTHS:
            raise self._refuse(f"'{word}' is no length of a line, from 80 to 65535")
        return length

    def _sample(self) -> tuple[tuple[tuple[int, int], ...], int]:
        """The ranges of the lines that are logged, and of how many lines they are."""
        text, colon, size_text = self._next().rpartition(":")
        ranges = sorted(map(self._range, text.split(",")))
        size = leading_integer(size_text)
        if not colon or size < 1 or size < ranges[-1][1]:
            raise self._refuse("a sample is of as many lines as its ranges reach, as in '1,3-4:5'")
        if any(low <= high for (_, high), (low, _) in pairwise(ranges)):
            raise self._refuse("ranges of a sample overlap")
        return tuple(ranges), size

    def _range(self, text: str) -> tuple[int, int]:
        match = _RANGE.fullmatch(text)
        low, high = (
            (leading_integer(match[1]), leading_integer(match[2] or match[1])) if match else (0, 0)
        )
        if not 1 <= low <= high:
            raise self._refuse(f"'{text}' is no range of lines, from 1")
        return low, high
