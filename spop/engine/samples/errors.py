"""What is wrong with an expression, where, and what may have been meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from spop.errors import SpopError


class SampleError(SpopError):
    """An expression that can't be compiled.

    Attributes:
        message: one sentence for the person who wrote it.
        offset: where in the text, in characters from 0.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


class ArgumentError(ValueError):
    """An argument that its function can't take; the parser makes it a `SampleError`."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that doesn't exist, with the one that may have been meant."""
    close = get_close_matches(name, known, n=1)
    return f"unknown {what} '{name}'" + (f", did you mean '{close[0]}'?" if close else "")
