"""Converters between encodings: hexadecimal, base64, URL, JSON."""

from __future__ import annotations

import base64 as b64
import re
from collections.abc import Callable
from urllib.parse import quote_from_bytes

from spop.engine.samples.registry import converter
from spop.engine.samples.types import raw, text

_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_HEX_DIGITS = re.compile(r"[0-9A-Fa-f]*", re.ASCII)
_BASE64 = re.compile(r"(?:B(?:BBB|BB=|B==|===))*".replace("B", "[A-Za-z0-9+/]"))
_URL_BASE64 = re.compile(r"[A-Za-z0-9_=-]*", re.ASCII)
_UTF8 = re.compile(
    rb"[\x00-\x7f]|[\xc0-\xdf][\x80-\xbf]?|[\xe0-\xef][\x80-\xbf]{0,2}|[\xf0-\xf7][\x80-\xbf]{0,3}"
    rb"|[\xf8-\xfb][\x80-\xbf]{0,4}|[\xfc\xfd][\x80-\xbf]{0,5}|[\x80-\xbf\xfe\xff]"
)
"""A sequence of UTF-8 or its beginning. As in HAProxy, a sequence has up to six bytes."""
_UTF8_SIZES = {0xC: 2, 0xD: 2, 0xE: 3, 0xF: 4}
_JSON_DECODERS = ("ascii", "utf8", "utf8s", "utf8p", "utf8ps")
_JSON_SHORT = {'"': '\\"', "\\": "\\\\", "/": "\\/"} | dict(
    zip("\b\f\n\r\t", ("\\b", "\\f", "\\n", "\\r", "\\t"), strict=True)
)


@converter("hex")
def hexadecimal(value: bytes) -> str:
    return value.hex().upper()


@converter("hex2i")
def hex2i(value: str) -> int | None:
    if not _HEX_DIGITS.fullmatch(value):
        return None
    number = int(value or "0", 16) & 2**64 - 1  # HAProxy keeps the lowest 64 bits.
    return number - 2**64 if number >> 63 else number


def _by_chunks(
    separator: str, size: int, truncate: int, write: Callable[[bytes], str]
) -> Callable[[bytes], str]:
    """Writes chunks of a size, all of the value if the size is 0."""
    if truncate not in (0, 1):
        raise ValueError("whether to truncate is 0 or 1")
    if not size:
        return write

    def write_chunks(value: bytes) -> str:
        end = len(value) - len(value) % size if truncate else len(value)
        return separator.join(write(value[at : at + size]) for at in range(0, end, size))

    return write_chunks


@converter("be2hex")
def be2hex(
    separator: str = "", size: int | None = None, truncate: int = 0
) -> Callable[[bytes], str]:
    if (separator and not size) or (size is not None and size < 0):
        raise ValueError("a chunk has at least one byte")
    return _by_chunks(separator, size or 0, truncate, hexadecimal)


@converter("be2dec")
def be2dec(separator: str, size: int, truncate: int = 0) -> Callable[[bytes], str]:
    if not 1 <= size <= 8:
        raise ValueError("a chunk has 1 to 8 bytes")
    return _by_chunks(separator, size, truncate, lambda part: str(int.from_bytes(part, "big")))


@converter("base64")
def base64(value: bytes) -> str:
    return b64.b64encode(value).decode()


@converter("b64dec")
def b64dec(value: str) -> bytes | None:
    if not _BASE64.fullmatch(value):
        return None
    # HAProxy takes padding at the end of each group of four characters, as in joined texts.
    padded = value.rstrip("=")
    if "=" not in padded and len(value) - len(padded) < 3:
        return b64.b64decode(value)
    groups = (value[start : start + 4] for start in range(0, len(value), 4))
    return b"".join(map(_decode_group, groups))


def _decode_group(group: str) -> bytes:
    data = b64.b64decode(group.replace("=", "A"))
    return data[: 3 - group.count("=")]


@converter("ub64enc")
def ub64enc(value: bytes) -> str:
    return b64.urlsafe_b64encode(value).decode().rstrip("=")


@converter("ub64dec")
def ub64dec(value: str) -> bytes | None:
    # HAProxy takes an equals sign for the last character of the alphabet, not for padding.
    if not _URL_BASE64.fullmatch(value) or len(value) % 4 == 1:
        return None
    size = len(value) * 3 // 4
    return b64.urlsafe_b64decode(value.replace("=", "_") + "A" * (-len(value) % 4))[:size]


@converter("url_dec")
def url_dec(value: str, in_form: int = 0) -> str | None:
    """The decoded text; None if no two hexadecimal digits follow a percent sign."""
    if "%" not in value and "+" not in value:
        return value
    before, mark, form = (b"", b"", raw(value)) if in_form else raw(value).partition(b"?")
    data = before + mark + form.replace(b"+", b" ")
    decoded, count = _PERCENT.subn(lambda match: bytes.fromhex(match[1].decode()), data)
    return text(decoded) if count == data.count(b"%") else None


@converter("url_enc")
def url_enc(kind: str = "query") -> Callable[[str], str]:
    if kind not in ("", "query"):
        raise ValueError(f"'{kind}' is no way to encode; 'query' is")
    return lambda value: quote_from_bytes(raw(value), safe="")


@converter("json")
def json(decoder: str = "ascii") -> Callable[[str], str | None]:
    """The text, escaped for a JSON string; None if the decoder refuses a character."""
    decoder = decoder or "ascii"
    if decoder not in _JSON_DECODERS:
        raise ValueError(f"'{decoder}' is none of {', '.join(_JSON_DECODERS)}")
    return lambda value: _json(value, decoder)


def _json(value: str, decoder: str) -> str | None:
    data = raw(value)
    if data.isascii() or decoder == "ascii":
        return "".join(map(_json_character, data.decode("latin-1")))
    return _json_utf8(data, skip="s" in decoder[4:], permissive="p" in decoder)


def _json_utf8(data: bytes, skip: bool, permissive: bool) -> str | None:
    out = []
    for match in _UTF8.finditer(data):
        character = _character(match[0], permissive)
        if character is not None:
            out.append(_json_character(character))
        elif not skip:
            return None
    return "".join(out)


def _character(sequence: bytes, permissive: bool) -> str | None:
    """The character of a sequence; None if it is invalid or has no escape of 4 digits.

    A permissive decoder also takes overlong forms.
    """
    lead = sequence[0]
    if lead < 0x80:
        return chr(lead)
    size = _UTF8_SIZES.get(lead >> 4, 0)
    if len(sequence) != size:
        return None
    code = lead & 0xFF >> size + 1
    for byte in sequence[1:]:
        code = code << 6 | byte & 0x3F
    overlong = code < (0, 0, 0x80, 0x800, 0x10000)[size]
    if code > 0xFFFD or 0xD800 <= code < 0xE000 or (overlong and not permissive):
        return None
    return chr(code)


def _json_character(char: str) -> str:
    if char in _JSON_SHORT:
        return _JSON_SHORT[char]
    return char if " " <= char <= "~" else f"\\u{ord(char):04x}"


@converter("bytes")
def part(offset: int, length: int | None = None) -> Callable[[str | bytes], str | bytes]:
    """Some bytes of a block, none beyond its end. Of a string, the result is a string."""
    # HAProxy compares without a sign: a negative offset is beyond the end, a negative length is
    # all.
    if offset < 0:
        offset, length = 0, 0
    end = None if length is None or length < 0 else offset + length

    def cut(value: str | bytes) -> str | bytes:
        return text(raw(value)[offset:end]) if isinstance(value, str) else value[offset:end]

    return cut
