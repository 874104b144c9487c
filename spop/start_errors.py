"""Errors that keep an agent from starting: whose mistake they are, and how they are shown.

A mistake that this package finds, in an option or a handler for example, is one line. An exception
of the user's own code is shown with its traceback, from the first frame of that code on.
"""

from __future__ import annotations

import functools
import os
import traceback
from types import TracebackType

from spop.errors import SpopError
from spop.logs import text_of

MISTAKE, USERS_ERROR = 2, 1
"""Exit codes."""

_PACKAGE = f"{os.path.dirname(__file__)}{os.sep}"
_LIBRARY = f"{os.path.dirname(traceback.__file__)}{os.sep}"


class StartError(SpopError):
    """The service could not start. The message, one line, says why.

    Attributes:
        traceback: of the user's code, as text; empty where that has no part in it.
        exit_code: for the process.
    """

    def __init__(self, message: str, traceback: str = "", exit_code: int = MISTAKE) -> None:
        super().__init__(message)
        self.traceback = traceback
        self.exit_code = exit_code


def start_error(doing: str, error: BaseException) -> StartError:
    """The error of a start that failed.

    Args:
        doing: what failed, as ``cannot import 'app'``; for the line.
        error: what was raised then.
    """
    if isinstance(error, StartError):
        return error
    shown = users_part(error.__traceback__)
    place = _place(shown)
    told = " ".join(text_of(error).split())
    where = "" if not place or place in told else f" ({place})"
    line = f"{doing}: {type(error).__name__}{told and f': {told}'}{where}"
    if _is_mistake(error, shown):
        return StartError(line)
    return StartError(line, _text(error, shown), USERS_ERROR)


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame on that is neither this package's nor Python's."""
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


@functools.lru_cache(256)  # A peer may have a thousand messages of a frame fail.
def _is_ours(path: str) -> bool:
    installed = "site-packages" in path or "dist-packages" in path
    is_python = path.startswith((_LIBRARY, "<frozen")) and not installed
    return is_python or _is_of_package(path)


def _is_of_package(path: str) -> bool:
    """Frames of compiled modules have the path that they were compiled from."""
    return path.startswith(_PACKAGE) or (
        path.startswith("spop/") and path.endswith((".pyx", ".pxd"))
    )


def _is_mistake(error: BaseException, shown: TracebackType | None) -> bool:
    """Whether this package has found it: no code of the user's ran, or the package was called."""
    if isinstance(error, SyntaxError):
        return False
    return shown is None or _is_of_package(traceback.extract_tb(shown)[-1].filename)


def _place(shown: TracebackType | None) -> str:
    """File and line of the user's code where the error comes from."""
    frames = [each for each in traceback.extract_tb(shown) if not _is_ours(each.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _text(error: BaseException, shown: TracebackType | None) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, shown))
    except BaseException:  # An exception whose text raises.
        return "".join(traceback.format_tb(shown))
