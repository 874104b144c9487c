"""Conditional blocks: the expression after ``.if`` or ``.elif`` (section 2.4 of the manual)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from spop.engine.config.diagnostics import ConfigError, refusal
from spop.engine.config.model import Location
from spop.engine.config.versions import Version
from spop.engine.samples.arguments import split_arguments
from spop.engine.samples.errors import SampleError

_MAX_DEPTH = 100
_SPACES = re.compile(r"[ \t]*")
_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9A-Fa-f]+|[0-9]+)")
_PREDICATE = re.compile(r"[^ (]*")
_OPENSSL_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)
_FEATURES = ("OPENSSL",)
"""The features of a HAProxy build that the engine also has."""


class Surroundings(NamedTuple):
    """What an expression can ask about.

    Attributes:
        at: gives the location of a character of the expression, from 0.
        environment: the variables of the environment.
    """

    version: Version
    at: Callable[[int], Location]
    environment: Mapping[str, str]


def evaluate(text: str, surroundings: Surroundings) -> bool:
    """Whether an expression is true. An empty one is false.

    Raises:
        ConfigError: the expression can't be parsed. As in HAProxy, all of it is parsed, even if its
            first part decides.
    """
    if not text:
        return False
    parser = _Parser(text, surroundings)
    result = parser.disjunction(0)
    parser.finish()
    return result


class _Parser:
    def __init__(self, text: str, surroundings: Surroundings) -> None:
        self._text = text
        self._position = 0
        self._surroundings = surroundings

    def disjunction(self, depth: int) -> bool:
        result = self._conjunction(depth)
        while self._skip("||"):
            result |= self._conjunction(depth)
        return result

    def finish(self) -> None:
        if self._position < len(self._text):
            unexpected = self._text[self._position]
            raise self._refuse(f"unexpected '{unexpected}' after the condition", self._position)

    def _refuse(self, message: str, offset: int) -> ConfigError:
        return refusal(self._surroundings.at(offset), message)

    def _conjunction(self, depth: int) -> bool:
        result = self._term(depth)
        while self._skip("&&"):
            result &= self._term(depth)
        return result

    def _term(self, depth: int) -> bool:
        negated = False
        while self._skip("!"):
            negated = not negated
        return self._value(depth) is not negated

    def _value(self, depth: int) -> bool:
        start = self._position
        number = _INTEGER.match(self._text, start)
        if number:
            self._position = _end_of_number(number)
            self._skip("")
            return number[0].strip("+-0xX") != ""
        if self._skip("("):
            if depth == _MAX_DEPTH:
                raise self._refuse("too many parentheses inside of one another", start)
            result = self.disjunction(depth + 1)
            if not self._skip(")"):
                raise self._refuse("missing ')' after a condition", self._position)
            return result
        return self._predicate(start)

    def _predicate(self, start: int) -> bool:
        name = _PREDICATE.match(self._text, start)
        assert name
        if name[0] not in _PREDICATES:
            known = ", ".join(_PREDICATES)
            raise self._refuse(f"'{name[0]}' is neither a number nor one of {known}", start)
        count, test = _PREDICATES[name[0]]
        try:
            words, self._position = split_arguments(self._text, name.end())
        except SampleError as error:
            raise self._refuse(error.message, error.offset) from None
        texts = [word.text for word in words] or [""]
        if len(texts) != count:
            raise self._refuse(f"'{name[0]}' takes {count} arguments", start)
        self._skip("")
        try:
            return test(self._surroundings, *texts)
        except ValueError as error:
            raise self._refuse(str(error), start) from None

    def _skip(self, token: str) -> bool:
        """Step over a token with spaces around it, if it comes next; spaces in any case."""
        self._skip_spaces()
        if not self._text.startswith(token, self._position):
            return False
        self._position += len(token)
        self._skip_spaces()
        return True

    def _skip_spaces(self) -> None:
        spaces = _SPACES.match(self._text, self._position)
        assert spaces
        self._position = spaces.end()


def _end_of_number(number: re.Match[str]) -> int:
    """Where C's ``strtol`` stops. A leading zero makes a number octal."""
    octal = re.match(r"[-+]?0[0-7]*(?![xX0-7])", number[0])
    return number.start() + octal.end() if octal else number.end()


def _openssl() -> tuple[int, ...]:
    import ssl

    return ssl.OPENSSL_VERSION_INFO[:3]


def _openssl_version(text: str) -> tuple[int, ...]:
    match = _OPENSSL_VERSION.match(text)
    if match is None:
        raise ValueError(f"'{text}' is no version of OpenSSL")
    return tuple(map(int, match.groups()))


_PREDICATES: Mapping[str, tuple[int, Callable[..., bool]]] = {
    "defined": (1, lambda about, name: name in about.environment),
    "feature": (1, lambda about, name: name == "" or name in _FEATURES),
    "streq": (2, lambda about, first, second: first == second),
    "strneq": (2, lambda about, first, second: first != second),
    "version_atleast": (1, lambda about, text: about.version >= Version.read(text)),
    "version_before": (1, lambda about, text: about.version < Version.read(text)),
    "openssl_version_atleast": (1, lambda about, text: _openssl() >= _openssl_version(text)),
    "openssl_version_before": (1, lambda about, text: _openssl() < _openssl_version(text)),
    "ssllib_name_startswith": (1, lambda about, name: "OpenSSL".startswith(name)),
}
"""The predicates: the number of their arguments, and what they tell of the surroundings."""
