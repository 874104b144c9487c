"""Regular expressions in PCRE2's syntax, as HAProxy takes them, on Python's ``re``.

Where only the spelling differs, it is translated. What ``re`` can't do is an error. They match
bytes, as HAProxy's do. ACLs, maps and ``regsub`` use them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from spop.engine.samples.types import raw

_POSIX_CLASSES = {
    "alpha": "A-Za-z",
    "digit": "0-9",
    "alnum": "A-Za-z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r"\s",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "xdigit": "0-9A-Fa-f",
    "word": r"\w",
    "cntrl": r"\x00-\x1f\x7f",
    "print": r"\x20-\x7e",
    "graph": r"\x21-\x7e",
    "ascii": r"\x00-\x7f",
    "^digit": r"\D",
    "^space": r"\S",
    "^word": r"\W",
}

_ESCAPES = {
    "z": r"\Z",
    "Z": r"(?=\n?\Z)",
    "N": r"[^\n]",
    "R": r"(?>\r\n|[\n-\r\x85])",
    "h": r"[\t \xa0]",
    "H": r"[^\t \xa0]",
    "v": r"[\n-\r\x85]",
    "V": r"[^\n-\r\x85]",
    "e": r"\x1b",
    "E": "",
}
_ESCAPES_IN_CLASS = {"h": r"\t \xa0", "v": r"\n-\r\x85", "e": r"\x1b", "E": ""}

_TOKEN = re.compile(
    r"""
      \\Q (?P<literal> .*?) (?: \\E | $)
    | \\x (?: \{ (?P<code> [0-9A-Fa-f]+) \} | (?P<hex> [0-9A-Fa-f]{0,2}))
    | \\k (?: <(?P<angled>\w+)> | \{(?P<braced>\w+)\} | '(?P<quoted>\w+)')
    | \\g (?: \{(?P<number>\d+)\} | (?P<digits>\d+))
    | \\c (?P<control> [ -~])
    | \\ (?P<escaped> .)
    | \(\? (?: < (?P<named> [A-Za-z_]\w*) > | ' (?P<named_too> [A-Za-z_]\w*) ')
    | (?P<posix> \[ : \^? \w+ : \])
    | (?P<opening> \[ \^? \]?)
    | (?P<comma> \{ (?= ,))
    | (?P<other> .)
    """,
    re.DOTALL | re.VERBOSE,
)


_ONLY_IN_PCRE2 = re.compile(
    r"\\[KGXNpP]|\(\?(?:\||R\)|[+-]?\d|&|P>|[imsxUJn-]+[:)]|<[=!])|\(\*[A-Z]"
)


class UnsupportedRegexError(ValueError):
    """A regular expression that PCRE2 takes, and Python's ``re`` does not."""


def compile_regex(
    pattern: str, ignore_case: bool, not_at_line_start: bool = False
) -> re.Pattern[bytes]:
    """Compile a regular expression in PCRE2's syntax.

    Args:
        not_at_line_start: ``^`` matches nowhere, as with PCRE2_NOTBOL.

    Raises:
        UnsupportedRegexError: the pattern uses what Python's ``re`` can't do.
        ValueError: the pattern is invalid.
    """
    try:
        translated = "".join(_translate(pattern, not_at_line_start))
        return re.compile(raw(translated), re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        kind = UnsupportedRegexError if _ONLY_IN_PCRE2.search(pattern) else ValueError
        raise kind(f"'{pattern}' is no regular expression of Python's: {error}") from None


def _translate(pattern: str, not_at_line_start: bool) -> Iterator[str]:
    in_class = False
    for match in _TOKEN.finditer(pattern):
        token, kind = match[0], match.lastgroup or ""
        if in_class:
            in_class = token != "]"
            yield _in_class(kind, match)
        elif token == "^" and not_at_line_start:
            yield "(?!)"
        elif kind == "opening":
            in_class = True
            yield token.replace("]", r"\]")
        else:
            yield _outside(kind, match)


def _outside(kind: str, match: re.Match[str]) -> str:
    token, value = match[0], match[kind]
    if kind == "escaped":
        return _ESCAPES.get(value, token)
    if kind in ("named", "named_too"):
        return f"(?P<{value}>"
    if kind in ("angled", "braced", "quoted"):
        return f"(?P={value})"
    if kind in ("number", "digits"):
        return f"(?:\\{value})"
    if kind == "comma":
        return r"\{"
    if kind == "posix":
        raise re.error(f"{token} has to stand in a class, as [{token}]")
    return _character(kind, value) or token


def _in_class(kind: str, match: re.Match[str]) -> str:
    token, value = match[0], match[kind]
    if kind == "escaped":
        return _ESCAPES_IN_CLASS.get(value, token)
    if kind == "posix":
        return _posix(token.strip("[:]"))
    if kind == "opening" or token in "&~|":
        return "\\" + token
    return _character(kind, value) or token


def _character(kind: str, value: str) -> str | None:
    """A character, or several, in one of PCRE2's other notations; None for any other token."""
    if kind == "literal":
        return re.escape(value)
    if kind == "control":
        return re.escape(chr(ord(value.upper()) ^ 0x40))
    if kind in ("code", "hex"):
        number = int(value or "0", 16)
        if number > 0xFF:
            raise re.error("a character has one byte")
        return f"\\x{number:02x}"
    return None


def _posix(name: str) -> str:
    if name not in _POSIX_CLASSES:
        raise re.error(f"class '{name}' is unknown")
    return _POSIX_CLASSES[name]
