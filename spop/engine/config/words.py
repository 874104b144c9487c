r"""Splits a line into words: quotes, ``\x41``, ``"${VAR-default}"``, comments.

`split_words` does it as HAProxy 2.6 (sections 2.2 and 2.3 of its manual). It knows one line, and
not what the words mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spop.engine.config.diagnostics import ConfigError, refusal
from spop.engine.config.model import Location

MAX_WORDS = 64

_SPACE = " \t\v\f"
_END = "\r\n"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", " ": " ", "\\": "\\", "#": "#", "'": "'", '"': '"'}
_HEX = re.compile("x([0-9A-Fa-f]{2})")
_NAME = re.compile(r"\.?[A-Za-z0-9_]*", re.ASCII)
_SPACES = re.compile("[ \t\n\v\f\r]+")
_FIRST_OF_NAME = re.compile(r"[A-Za-z_.]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Word:
    """A word without its quotes and escapes, and the columns of its characters."""

    text: str
    columns: Sequence[int]

    def column(self, offset: int = 0) -> int:
        """The column, from 1, of a character of the text, or of its end."""
        return self.columns[min(offset, len(self.columns) - 1)]


def split_words(
    line: str,
    variable: Callable[[str], str | None],
    at: Callable[[int], Location],
    *,
    joins_unset: bool = False,
) -> list[Word]:
    """Split a line into words, without those of a comment.

    Args:
        variable: gives the value of an environment variable. Names may begin with a dot.
        at: gives the location of a column of the line.
        joins_unset: as HAProxy 2.8 to 3.2, skip the quote and the space behind a variable that is
            not set.

    Raises:
        ConfigError: a quote is unmatched, an escape or variable is invalid, or there are too many
            words.
    """
    return _Splitter(line, variable, at, joins_unset).split()


@dataclass(slots=True)
class _Splitter:
    line: str
    variable: Callable[[str], str | None]
    at: Callable[[int], Location]
    joins_unset: bool
    position: int = 0
    quote: str = ""
    opened: int = 0
    words: list[Word] = field(default_factory=list)
    chars: list[str] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)

    def split(self) -> list[Word]:
        self._skip_spaces()
        while self._step():
            pass
        if self.quote:
            raise self._refuse("unmatched quote", self.opened)
        self._end_word()
        last = self.words[-1]
        # To HAProxy, space at the end of a line begins a word. It counts for the limit.
        if len(self.words) > MAX_WORDS:
            raise self._refuse(f"too many words, {MAX_WORDS} at most", last.column() - 1)
        if not last.text and self.line[: self.position][-1:] not in ("'", '"'):
            self.words.pop()
        return self.words

    def _refuse(self, message: str, position: int) -> ConfigError:
        return refusal(self.at(position + 1), message)

    def _step(self) -> bool:
        """Read the next character, escape or variable; False at the end of the line."""
        char = self.line[self.position : self.position + 1]
        if not char or char in _END or (char == "#" and not self.quote):
            return False
        if char in "'\"" and self.quote in ("", char):
            self.opened = self.position
            self.quote = "" if self.quote else char
            self.position += 1
        elif char == "\\" and self.quote != "'":
            self._escape()
        elif char in _SPACE and not self.quote:
            self._end_word()
            self._skip_spaces()
        elif char == "$" and self.quote == '"':
            self._expand()
        else:
            self._emit(char, self.position)
            self.position += 1
        return True

    def _skip_spaces(self) -> None:
        rest = self.line[self.position :]
        self.position += len(rest) - len(rest.lstrip(_SPACE))

    def _end_word(self) -> None:
        text = "".join(self.chars)
        self.columns.append(self.position + 1)
        # A word of HAProxy is a C string: it ends at a NUL. Bytes of several escapes may be one
        # character.
        raw = text.partition("\0")[0].encode("utf-8", "surrogateescape")
        self.words.append(Word(raw.decode("utf-8", "surrogateescape"), self.columns))
        self.chars, self.columns = [], []

    def _emit(self, char: str, position: int) -> None:
        self.chars.append(char)
        self.columns.append(position + 1)

    def _escape(self) -> None:
        start = self.position
        following = self.line[start + 1 : start + 2]
        self.position += 1
        if following == "x":
            self._emit(self._hexadecimal(start), start)
        elif following in _ESCAPES:
            self._emit(_ESCAPES[following], start)
            self.position += 1
        elif following == "$" and self.quote:
            self._emit("$", start)
            self.position += 1
        else:
            self._emit("\\", start)

    def _hexadecimal(self, start: int) -> str:
        digits = _HEX.match(self.line, start + 1)
        if digits is None:
            raise self._refuse(r"an escape of the form \xHH needs two hexadecimal digits", start)
        self.position = digits.end()
        return bytes.fromhex(digits[1]).decode("utf-8", "surrogateescape")

    def _expand(self) -> None:
        """Replace a variable by its value. With ``[*]``, the value may be several words."""
        start = self.position
        braced = self.line[start + 1 : start + 2] == "{"
        self.position += 1 + braced
        name = self._name()
        value = self.variable(name)
        split = braced and self._asks_for_words()
        if braced:
            value = self._close_brace(start + 1, value)
        if value is None and self.joins_unset and self.line[self.position :][:1] == '"':
            self.position += 1
            self._skip_spaces()
            self.quote = ""
        for index, part in enumerate(_SPACES.split(value or "") if split else [value or ""]):
            if index:
                self._end_word()
            for char in part:
                self._emit(char, start)

    def _name(self) -> str:
        start = self.position
        if not _FIRST_OF_NAME.match(self.line, start):
            raise self._refuse("no environment variable's name begins like this", start)
        match = _NAME.match(self.line, start)
        assert match
        if match[0].startswith(".") and self.variable(match[0]) is None:
            raise self._refuse(f"unknown variable '{match[0]}'", start)
        self.position = match.end()
        return match[0]

    def _asks_for_words(self) -> bool:
        if self.line[self.position : self.position + 1] != "[":
            return False
        if self.line[self.position : self.position + 3] != "[*]":
            raise self._refuse("'[*]' is what makes words of a variable", self.position)
        self.position += 3
        return True

    def _close_brace(self, opening: int, value: str | None) -> str | None:
        """Step over the default value and the brace, and choose the value."""
        closing = self.line.find("}", self.position)
        has_default = self.line[self.position : self.position + 1] == "-"
        if closing < 0 or (closing > self.position and not has_default):
            raise self._refuse("unmatched brace of a variable", opening)
        default = self.line[self.position + 1 : closing] if has_default else None
        self.position = closing + 1
        return default if value is None else value
