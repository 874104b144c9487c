r"""Bytes as people paste them: what tools, debuggers and programs print, as text.

It knows dumps with offsets and readable columns (Wireshark, xxd, hexdump -C, od, tcpdump, gdb), hex
with any separator, arrays of C, Go, Rust, Python and JavaScript, literals with ``\x..`` and base64.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

import click

from spop.cli.source import GZIP_MAGIC, PCAP_MAGIC

_PROMPT = re.compile(r"(?m)^\s*(?:\(gdb\)|\$|>>>|%)\s.*$")
_NUMBERS = re.compile(r"[\[{(]([\s0-9a-fA-FxX,-]+)[\]})]")
"""The numbers of an array, in brackets of any kind."""
_TWO_NUMBERS = re.compile(r"[0-9a-fA-F][\s,]")
_BEHIND_DIGITS = re.compile(r"$|\s\s|\s?\|")
_LONGEST_DUMPED = 4096
"""Characters of a line above which no readable column is looked for."""
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_ASIDE = re.compile(f"(?:{_QUOTED.pattern})|{_COMMENT.pattern}", re.DOTALL)
"""What is beside the numbers of an array. The first of quotes and comments holds the other."""
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(\r?\n)|(.))", re.DOTALL)
_CONTROLS = {"n": 10, "r": 13, "t": 9, "a": 7, "b": 8, "f": 12, "v": 11, "e": 27}
_ADDRESS = re.compile(r"\s*(?:0x)?[0-9a-fA-F]{4,}(?: <[^>]*>)?:(?:\s+|$)")
"""The offset of xxd and tcpdump, the address of gdb."""
_OFFSET = re.compile(r"\s*[0-9a-fA-F]{4,8}(?:\s\s+|\t|$)")
"""The offset of Wireshark and hexdump."""
_OD_OFFSET = re.compile(r"\s*[0-7]{6,7}(?:\s+|$)")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_BEGINS = re.compile(rb"[\0\1\2\3efg]\0")


def read_pasted(text: str) -> bytes:
    """The bytes that a text shows.

    Raises:
        click.UsageError: a line has something else. The message names it.
    """
    text = _PROMPT.sub("", text.removeprefix("\ufeff"))
    try:
        return _lines(text)
    except click.UsageError as error:
        if _dump(text):
            raise
        no_hex = error
    arrays = _NUMBERS.findall(_ASIDE.sub(_aside, text))
    if arrays := [each for each in arrays if _TWO_NUMBERS.search(each)]:
        return _numbers(" ".join(arrays))
    if re.search(r"\\(?:x[0-9a-fA-F]|[0-7])", text):
        return _literal(text)
    encoded = "".join(part[0] or part[1] for part in _QUOTED.findall(text)) or text
    data = _base64(encoded)
    try:
        return _lines(_COMMENT.sub("", encoded)) if data is None else data
    except click.UsageError:  # Its line is one of the literals, put together.
        raise no_hex from None


def _aside(found: re.Match[str]) -> str:
    """What replaces a comment or a literal among the numbers of arrays."""
    return " " if found[0].startswith("/") else '"'


def _dump(text: str) -> re.Pattern[str] | None:
    """The pattern of the offsets in a dump's lines; None: they have none."""
    lines = [line for line in text.splitlines() if line.strip() and line.strip() != "*"]
    for pattern in (_ADDRESS, _OFFSET, _OD_OFFSET):
        if not lines or not all(pattern.match(line) for line in lines):
            continue
        # What begins with zero is an offset, and what has four digits, else it could be a length.
        first = re.sub(r"[\s:].*", "", lines[0].strip())
        if pattern is _ADDRESS or not first.strip("0") or (len(first) == 4 and pattern is _OFFSET):
            return pattern
    return None


def _lines(text: str) -> bytes:
    """Lines of hex digits, those of a dump without its offsets and readable columns."""
    offsets = _dump(text)
    data, squeezed, start = bytearray(), b"", 0
    for number, line in enumerate(text.splitlines(), 1):
        if offsets and line.strip() == "*":
            squeezed = bytes(data[-16:])
            continue
        found = offsets.match(line) if offsets else None
        if found and offsets is not _ADDRESS:
            base = 8 if offsets is _OD_OFFSET else 16
            offset = int(found[0], base)
            start = start if data else offset
            while squeezed and len(data) < offset - start:
                data += squeezed
            squeezed = b""
        rest = line[found.end() :] if found else line
        try:
            data += _line(rest)
        except ValueError:
            raise click.UsageError(f"line {number} is no hex: {line.strip()[:60]!r}") from None
    return bytes(data)


def _line(text: str) -> bytes:
    """The bytes of a line. What is behind the digits has to be the same bytes, readable."""
    text = text.strip()
    splits = [(bytes.fromhex(digits), rest) for digits, rest in _splits(text)]
    # A column may look like digits, so that it comes first.
    for data, rest in splits:
        if rest and _same(rest, data):
            return data
    if splits and not splits[0][1]:
        return splits[0][0]
    return _separated(text)


def _splits(text: str) -> Iterator[tuple[str, str]]:
    """A line's digits and the column behind them, the longest digits first."""
    ends = [0]
    for found in re.finditer(r"\s*[0-9a-fA-F]{2}", text):
        if found.start() != ends[-1]:
            break
        ends.append(found.end())
    for end in reversed(ends if len(text) <= _LONGEST_DUMPED else ends[-1:]):
        if _BEHIND_DIGITS.match(text, end):
            yield text[:end], text[end:].strip()


def _same(column: str, data: bytes) -> bool:
    """Whether a readable column shows these bytes."""
    shown = "".join(chr(byte) if 32 < byte < 127 else "." for byte in data if byte != 32)
    for text in (column, column.removeprefix("|").removesuffix("|")):
        if text.replace(" ", "") == shown:
            return True
    return False


def _separated(text: str) -> bytes:
    """Bytes between colons, commas or dashes, or behind 0x. Raises ValueError: it is not that."""
    words = re.split(r"[\s:,-]+", text.strip(":,- \t"))
    if not all(re.fullmatch(r"(?:0[xX][0-9a-fA-F]{1,2}|[0-9a-fA-F]{2})", word) for word in words):
        raise ValueError
    return bytes(int(word, 16) for word in words)


def _numbers(text: str) -> bytes:
    """The numbers of an array: hex behind 0x or with two digits each, else decimal."""
    words = text.replace(",", " ").split()
    as_hex = all(re.fullmatch(r"[0-9a-fA-F]{2}", word) for word in words)
    try:
        numbers = [int(word, 16 if as_hex else 0 if "x" in word.lower() else 10) for word in words]
        return bytes(n + 256 if -128 <= n < 0 else n for n in numbers)
    except ValueError:
        message = "the array has something else than bytes: each is a number from 0 to 255"
        raise click.UsageError(message) from None


def _literal(text: str) -> bytes:
    """The string literals in a text; all of it, if nothing is in quotes."""
    quoted = ["".join(found) for found in _QUOTED.findall(text)]
    data = bytearray()
    for part in quoted or [line.strip() for line in text.splitlines()]:
        place = 0
        for found in _ESCAPE.finditer(part):
            data += part[place : found.start()].encode("latin-1", "replace") + _escaped(found)
            place = found.end()
        data += part[place:].encode("latin-1", "replace")
    return bytes(data)


def _escaped(found: re.Match[str]) -> bytes:
    digits, octal, newline, letter = found.groups()
    if newline:
        return b""
    if digits or octal:
        return bytes([int(digits or octal, 16 if digits else 8) & 0xFF])
    return bytes([_CONTROLS.get(letter, ord(letter) & 0xFF)])


def _base64(text: str) -> bytes | None:
    """The bytes of base64; None: it is none, or no frame, capture or gzip file begins so."""
    joined = "".join(re.sub(r"^data:[^,]*,", "", text.strip()).split())
    if not _BASE64.fullmatch(joined) or re.fullmatch(r"(?:[0-9a-fA-F]{2})+", joined):
        return None
    padded = joined.rstrip("=")
    padded += "=" * (-len(padded) % 4)
    try:
        data = base64.b64decode(padded.translate(str.maketrans("-_", "+/")), validate=True)
    except binascii.Error:
        return None
    known = data[:4] in PCAP_MAGIC or data[:2] == GZIP_MAGIC or _BEGINS.match(data)
    return data if known else None
