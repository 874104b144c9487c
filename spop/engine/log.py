"""The log of an engine: HAProxy's lines, for Python's `logging` and the targets of the SPOE file.

Lines of successful processings have HAProxy's level NOTICE. Python has no such level: it is 25
here.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import logging.handlers
import sys
from collections.abc import Callable
from typing import NamedTuple

from spop.engine.config.log_targets import NOT_LOGGED_TO
from spop.engine.config.model import AgentConfig, LogTarget
from spop.engine.processing import Processing

NOTICE = 25
logging.addLevelName(NOTICE, "NOTICE")

_LEVELS = {
    "emerg": logging.CRITICAL + 20,
    "alert": logging.CRITICAL + 10,
    "crit": logging.CRITICAL,
    "err": logging.ERROR,
    "warning": logging.WARNING,
    "notice": NOTICE,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
_SEVERITIES = {level: name for name, level in _LEVELS.items()}


class Traffic(NamedTuple):
    """The activity of an engine, by the names of HAProxy's log lines (section 4).

    Attributes:
        idles: connections that can take a frame.
        applets: connections.
        nb_sending: processings that wait for a connection.
        nb_waiting: processings that wait for their ACK.
        nb_errors, nb_processed: failed processings, and all, since the beginning.
    """

    idles: int
    applets: int
    nb_sending: int
    nb_waiting: int
    nb_errors: int
    nb_processed: int


def log_line(agent: str, processing: Processing, traffic: Traffic, *, short: bool = False) -> str:
    """HAProxy's log line for a processing. HAProxy 3.1 and later have the short form."""
    beginning = (
        f"SPOE: [{agent}] <{processing.label}> sid={processing.ids[0]} st={processing.status:d}"
    )
    counts = f"{traffic.nb_errors}/{traffic.nb_processed}"
    times = processing.times
    if short:
        return f"{beginning} {times[-1]} {counts}"
    return (
        f"{beginning} {'/'.join(map(str, times))} {traffic.idles}/{traffic.applets} "
        f"{traffic.nb_sending}/{traffic.nb_waiting} {counts}"
    )


class EngineLog:
    """The targets of an engine's lines.

    Lines go to `logger` and to the targets of the ``log`` lines in the SPOE file. ``log global``
    means `logger` alone. Its name is ``spop.engine.NAME``, with the name of the engine.
    """

    def __init__(self, config: AgentConfig) -> None:
        self.logger: logging.Logger = logging.getLogger(f"spop.engine.{config.engine}")
        self._normal = not config.dontlog_normal
        self._targets = [_handler(target) for target in config.log_targets]
        self.wants: Callable[[int], bool] = self._wants
        """Whether the logger or a target takes a line of this level."""
        if self._normal and not self._targets:
            self.wants = self.logger.isEnabledFor

    def _wants(self, level: int) -> bool:
        if level == NOTICE and not self._normal:
            return False
        if self._targets and any(target.level <= level for target in self._targets):
            return True
        return self.logger.isEnabledFor(level)

    def write(self, level: int, text: str) -> None:
        """Log a line."""
        if self.logger.isEnabledFor(level):
            self.logger.log(level, text)
        if self._targets:
            for target in self._targets:
                if target.level <= level:
                    record = self.logger.makeRecord(self.logger.name, level, "", 0, text, (), None)
                    target.handle(record)

    def close(self) -> None:
        for target in self._targets:
            target.close()


def _handler(target: LogTarget) -> logging.Handler:
    handler: logging.Handler
    if target.address in ("stdout", "stderr"):
        handler = logging.StreamHandler(getattr(sys, target.address))
    elif target.address.partition("@")[0] in NOT_LOGGED_TO:
        handler = logging.NullHandler()  # `spop validate` has a note about it.
    else:
        handler = _Syslog(target)
    handler.setLevel(_LEVELS[target.level])
    handler.addFilter(_Limits(target))
    return handler


class _Limits(logging.Filter):
    """The ``sample`` and ``len`` of a ``log`` line: which lines are sent, and how much of each."""

    def __init__(self, target: LogTarget) -> None:
        super().__init__()
        self._ranges, self._size = target.sample_ranges, target.sample_size
        self._length = target.length
        self._lines = itertools.count()

    def filter(self, record: logging.LogRecord) -> bool:
        number = next(self._lines) % self._size + 1
        record.msg = record.msg.encode()[: self._length - 1].decode(errors="ignore")
        return not self._ranges or any(low <= number <= high for low, high in self._ranges)


class _Syslog(logging.handlers.SysLogHandler):
    """A syslog server. A line is sent with the level of the target at most."""

    def __init__(self, target: LogTarget) -> None:
        self._most_severe = _LEVELS[target.min_level]
        facility = self.facility_names[target.facility]
        super().__init__(_address(target.address), facility)

    def mapPriority(self, levelName: str) -> str:
        level = min(logging.getLevelNamesMapping()[levelName], self._most_severe)
        return _SEVERITIES[level]

    def createSocket(self) -> None:
        with contextlib.suppress(OSError):  # The next line tries again.
            super().createSocket()

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that can't be sent is lost, as in HAProxy."""


def _address(text: str) -> str | tuple[str, int]:
    """The address of a `LogTarget` as `SysLogHandler` takes it. The path of a socket is a text."""
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if colon and not text.startswith("/") else text
