"""Log lines as text or JSON that nothing a peer sent can break or forge."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from spop.constants import MAX_TEXT_SIZE

REPORT_AFTER = 10.0
"""Seconds after which a line tells how many lines of its kind were left out."""
LONGEST_TRACEBACK = 200
"""Lines of a traceback that are logged, the last ones."""

_CONTEXT = ("spop_message", "spop_stream_id", "spop_frame_id", "spop_peer", "spop_engine_id")


def escaped(text: str) -> str:
    """The text with all that is not printable as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str) -> str:
    """The text, or its beginning if it is longer than what may be logged of a peer's text."""
    return text if len(text) <= MAX_TEXT_SIZE else f"{text[: MAX_TEXT_SIZE - 3]}..."


def text_of(value: object, show: Callable[[Any], str] = str) -> str:
    """`show(value)`, or, where that raises, what raised what."""
    try:
        return show(value)
    except BaseException as error:
        return f"<{type(value).__name__} that raises {type(error).__name__} when it is shown>"


def traceback_of(error: BaseException) -> str:
    """The traceback as Python prints it, or the place alone where the exception prevents that.

    Lines are shortened, and so is the whole: they may hold what a peer sent.
    """
    try:
        shown = "".join(traceback.format_exception(error))
    except BaseException:
        place = "".join(traceback.format_tb(error.__traceback__))
        shown = f"{place}{type(error).__name__}: {text_of(error)}"
    return "\n".join(map(shortened, shown.splitlines()[-LONGEST_TRACEBACK:]))


def escaped_traceback(error: BaseException) -> str:
    """A traceback of which each line is marked as one, so that none can pass for a log line."""
    return _marked(traceback_of(error))


def _marked(text: str) -> str:
    return "\n".join(f"  | {escaped(line)}" for line in text.splitlines())


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that never raises, whatever filters, handlers and what is logged do."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(BaseException):
            super().log(level, msg, *args, **kwargs)

    def failure(self, error: BaseException, message: str, *args: object) -> None:
        """Log an error with its traceback, whose text may hold what a peer sent, and so is
        escaped."""
        with contextlib.suppress(BaseException):
            if not self.isEnabledFor(logging.ERROR):
                return
            record = self.logger.makeRecord(
                self.logger.name, logging.ERROR, __file__, 0, message, args,
                (type(error), error, error.__traceback__), "failure",
            )  # fmt: skip
            record.exc_text = escaped_traceback(error)
            self.logger.handle(record)

    def failure_elsewhere(self, trace: str, message: str, *args: object) -> None:
        """Log an error of another process, whose traceback, if it has one, is a text."""
        with contextlib.suppress(BaseException):
            if not self.isEnabledFor(logging.ERROR):
                return
            extra = {"spop_traceback": trace}
            record = self.logger.makeRecord(
                self.logger.name, logging.ERROR, __file__, 0, message, args, None, "failure", extra
            )
            record.exc_text = _marked(trace)
            self.logger.handle(record)


class RateLimitedLog:
    """Logs so many lines a second, for those that a peer can cause at will. Threads share it.

    If lines were left out, the last of them is logged after `REPORT_AFTER` seconds, with their
    number.
    """

    def __init__(self, logger: logging.Logger | SafeLogger, per_second: int) -> None:
        self._logger = logger
        self._per_second = per_second
        self._lock = threading.Lock()
        self._second = 0
        self._used = 0
        self._left_out = 0
        self._last: tuple[int, str, tuple[object, ...]] = (logging.WARNING, "", ())

    def allows(self, level: int, message: str, *args: object) -> bool:
        """Whether the line may be logged now. If not, it is counted."""
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._second, self._used = second, 0
            if self._used < self._per_second:
                self._used += 1
                return True
            self._left_out += 1
            self._last = level, message, args
            if self._left_out > 1:
                return False
        timer = threading.Timer(REPORT_AFTER, self._report)
        timer.daemon = True
        timer.start()
        return False

    def log(self, level: int, message: str, *args: object) -> None:
        """Log a line, if there may be one."""
        if self._logger.isEnabledFor(level) and self.allows(level, message, *args):
            self._logger.log(level, message, *args)

    def warning(self, message: str, *args: object) -> None:
        """Log a warning, if there may be one."""
        self.log(logging.WARNING, message, *args)

    def _report(self) -> None:
        with self._lock:
            more, self._left_out = self._left_out - 1, 0
            level, message, args = self._last
        if more:
            message += " ... and %d more in the last %g s"
            args = *args, more, REPORT_AFTER
        self._logger.log(level, message, *args)


class TextFormatter(logging.Formatter):
    """A line of text for each record, and marked lines below it for a traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = escaped(super().formatMessage(record))
        message = getattr(record, "spop_message", None)
        if message is None:
            return line
        peer, stream = getattr(record, "spop_peer", None), getattr(record, "spop_stream_id", None)
        return f"{line} {{message={message!r} stream={stream} peer={peer!r}}}"

    def formatException(self, ei: Any) -> str:
        return escaped_traceback(ei[1])


class JSONFormatter(logging.Formatter):
    """A JSON object on a line for each record."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        for name in _CONTEXT:
            value = getattr(record, name, None)
            if value is not None:
                fields[name] = value
        if record.exc_info and record.exc_info[1]:
            fields["exception"] = traceback_of(record.exc_info[1])
        elif trace := getattr(record, "spop_traceback", ""):
            fields["exception"] = trace
        return json.dumps(fields, ensure_ascii=True, default=str)


FORMATTERS = {"text": TextFormatter, "json": JSONFormatter}


def configure(level: str, style: str, filters: Iterable[logging.Filter] = ()) -> None:
    """Log everything from `level` up to standard error.

    Args:
        style: a key of `FORMATTERS`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[style]())
    for each in filters:
        handler.addFilter(each)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
