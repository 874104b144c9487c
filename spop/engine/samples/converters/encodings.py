"""Converters between encodings: hexadecimal, base64, URL, JSON."""

from __future__ import annotations

import base64 as b64
import binascii
import re
from collections.abc import Callable
from urllib.parse import quote_from_bytes

from spop.engine.samples.errors import ArgumentError
from spop.engine.samples.registry import converter
from spop.engine.samples.types import clamp, raw, text

_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_JSON_DECODERS = ("ascii", "utf8", "utf8s", "utf8p", "utf8ps")
_JSON_SHORT = {'"': '\\"', "\\": "\\\\", "/": "\\/"} | dict(
    zip("\b\f\n\r\t", ("\\b", "\\f", "\\n", "\\r", "\\t"), strict=True)
)


@converter("hex")
def hexadecimal(value: bytes) -> str:
    return value.hex().upper()


@converter("hex2i")
def hex2i(value: str) -> int | None:
    if not value:
        return 0
    try:
        return clamp(int(value, 16)) if value.isalnum() else None
    except ValueError:
        return None


def _chunks(value: bytes, size: int, truncate: int) -> list[bytes]:
    size = size or len(value) or 1
    end = len(value) - len(value) % size if truncate else len(value)
    return [value[start : start + size] for start in range(0, end, size)]


@converter("be2hex")
def be2hex(value: bytes, separator: str = "", size: int = 0, truncate: int = 0) -> str:
    return separator.join(chunk.hex().upper() for chunk in _chunks(value, size, truncate))


@converter("be2dec")
def be2dec(value: bytes, separator: str, size: int, truncate: int = 0) -> str:
    return separator.join(
        str(int.from_bytes(chunk, "big")) for chunk in _chunks(value, size, truncate)
    )


@converter("base64")
def base64(value: bytes) -> str:
    return b64.b64encode(value).decode()


@converter("b64dec")
def b64dec(value: str) -> bytes | None:
    try:
        return b64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None


@converter("ub64enc")
def ub64enc(value: bytes) -> str:
    return b64.urlsafe_b64encode(value).decode().rstrip("=")


@converter("ub64dec")
def ub64dec(value: str) -> bytes | None:
    return b64dec(value.translate({45: "+", 95: "/"}) + "=" * (-len(value) % 4))


@converter("url_dec")
def url_dec(value: str, in_form: int = 0) -> str | None:
    """Decoded; None if a percent sign begins no pair of digits."""
    if "%" not in value and "+" not in value:
        return value
    before, mark, form = (b"", b"", raw(value)) if in_form else raw(value).partition(b"?")
    data = before + mark + form.replace(b"+", b" ")
    decoded, count = _PERCENT.subn(lambda match: bytes.fromhex(match[1].decode()), data)
    return text(decoded) if count == data.count(b"%") else None


@converter("url_enc")
def url_enc(kind: str = "query") -> Callable[[str], str]:
    if kind not in ("", "query"):
        raise ArgumentError(f"'{kind}' is no way to encode; 'query' is")
    return lambda value: quote_from_bytes(raw(value), safe="")


@converter("json")
def json(decoder: str = "ascii") -> Callable[[str], str | None]:
    """Escaped for a JSON string; None for what the decoder refuses or 4 digits can't say."""
    decoder = decoder or "ascii"
    if decoder not in _JSON_DECODERS:
        raise ArgumentError(f"'{decoder}' is none of {', '.join(_JSON_DECODERS)}")
    return lambda value: _json(value, decoder)


def _json(value: str, decoder: str) -> str | None:
    try:
        characters = _decode(raw(value), decoder)
    except UnicodeDecodeError:
        return None
    if any(ord(c) > 0xFFFF for c in characters):
        if not decoder.endswith("s"):
            return None
        characters = "".join(c for c in characters if ord(c) <= 0xFFFF)
    return "".join(map(_json_character, characters))


def _decode(data: bytes, decoder: str) -> str:
    if decoder == "ascii":
        return data.decode("latin-1")
    return data.decode("utf-8", "ignore" if decoder.endswith("s") else "strict")


def _json_character(char: str) -> str:
    if char in _JSON_SHORT:
        return _JSON_SHORT[char]
    return char if " " <= char <= "~" else f"\\u{ord(char):04x}"


@converter("bytes")
def part(offset: int, length: int | None = None) -> Callable[[str | bytes], str | bytes]:
    """Some bytes of a block, empty beyond its end. A string stays one."""
    if offset < 0 or (length is not None and length < 0):
        raise ArgumentError("offset and length can't be negative")
    end = None if length is None else offset + length

    def cut(value: str | bytes) -> str | bytes:
        return text(raw(value)[offset:end]) if isinstance(value, str) else value[offset:end]

    return cut
