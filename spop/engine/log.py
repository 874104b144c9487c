"""The engine's log: HAProxy's lines, to Python's `logging` and to the targets of the SPOE file.

Lines of what went well have HAProxy's level NOTICE, which Python lacks and gets here as 25.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
from typing import NamedTuple

from spop.engine.config.model import AgentConfig, LogTarget
from spop.engine.filter import Processing

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
SYSLOG_PORT = 514


class Traffic(NamedTuple):
    """What the engine is doing, as its log lines and monitors show it.

    Attributes:
        idles, applets: connections that could take a frame, and all.
        nb_sending, nb_waiting: messages that wait for a connection, and for their ACK.
        nb_errors, nb_processed: since the beginning.
    """

    idles: int
    applets: int
    nb_sending: int
    nb_waiting: int
    nb_errors: int
    nb_processed: int


def log_line(agent: str, processing: Processing, traffic: Traffic, *, short: bool = False) -> str:
    """The line of HAProxy's log; the short form is that of 3.1 and later."""
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
    """Where the lines of one engine go.

    `logger` is ``spop.engine.NAME``, with the engine's name. The file's ``log`` lines are
    served besides, but for ``log global``, which is for `logger` alone.
    """

    def __init__(self, config: AgentConfig) -> None:
        self.logger = logging.getLogger(f"spop.engine.{config.engine}")
        self._normal = not config.dontlog_normal
        self._targets = [_handler(target) for target in config.log_targets]

    def wants(self, level: int) -> bool:
        """Whether anybody would see a line of this level."""
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
            record = self.logger.makeRecord(self.logger.name, level, "", 0, text, (), None)
            for target in self._targets:
                if target.level <= level:
                    target.handle(record)

    def close(self) -> None:
        for target in self._targets:
            target.close()


def _handler(target: LogTarget) -> logging.Handler:
    handler: logging.Handler
    if target.address in ("stdout", "stderr"):
        handler = logging.StreamHandler(getattr(sys, target.address))
    else:
        handler = _Syslog(target)
    handler.setLevel(_LEVELS[target.level])
    return handler


class _Syslog(logging.handlers.SysLogHandler):
    """A syslog server, which has NOTICE, and levels that a line may at most be given."""

    def __init__(self, target: LogTarget) -> None:
        self._most = _LEVELS[target.min_level]
        facility = self.facility_names[target.facility]
        super().__init__(_address(target.address), facility)

    def mapPriority(self, levelName: str) -> str:
        level = min(logging.getLevelNamesMapping()[levelName], self._most)
        return _SEVERITIES[level]

    def createSocket(self) -> None:
        with contextlib.suppress(OSError):  # It may be there when the next line is.
            super().createSocket()

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that nobody takes is lost, as HAProxy's are."""


def _address(text: str) -> str | tuple[str, int]:
    if text.startswith("/"):
        return text
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and not (host.count(":") and not host.endswith("]")):
        return host.strip("[]"), int(port)
    return text.strip("[]"), SYSLOG_PORT
