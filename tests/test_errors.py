"""What is said of an error."""

from __future__ import annotations

import ssl

import pytest

from spop.errors import DisconnectedError, SpopError, reason


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x"), "No such file or directory"),
        (TimeoutError(), "TimeoutError"),
        (TimeoutError("timed out"), "timed out"),
        (SpopError("two\n  lines"), "two lines"),
        (DisconnectedError("no\udcff \x1b[31m → é"), r"no\udcff \x1b[31m → é"),
        (ssl.SSLError(1, "[SSL] wrong version number"), "[SSL] wrong version number"),
        (
            Unspeakable(),
            "<Unspeakable that raises RuntimeError when it is shown>",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_reason_is_one_printable_line(error: Exception, said: str) -> None:
    assert reason(error) == said
