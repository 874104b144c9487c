"""The error of an expression: what is wrong, where, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from spop.errors import SpopError


class SampleError(SpopError):
    """An expression that HAProxy would refuse.

    Attributes:
        message: one sentence for the person who wrote it, with the hint at its end.
        offset: where the mistake is in the text, in characters from 0.
        problem: the message without the hint.
        hint: the name that was probably meant; None where no known name is similar.
    """

    def __init__(self, problem: str, offset: int = 0, hint: str | None = None) -> None:
        self.message: str = with_hint(problem, hint)
        super().__init__(self.message)
        self.offset = offset
        self.problem = problem
        self.hint = hint


def with_hint(problem: str, hint: str | None) -> str:
    """One sentence of a problem and its hint."""
    return f"{problem}, {hint}" if hint else problem


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The hint for an unknown name; None where no known name is similar."""
    close = get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else None
