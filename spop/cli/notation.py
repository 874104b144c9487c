"""Arguments and values as people write them: ``ip=10.0.0.1``, ``x:binary=hex:00ff``."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from spop.errors import reason
from spop.frames import Message
from spop.values import Binary, Int32, Int64, String, UInt32, UInt64, Value, type_unset

_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_NUMBER = re.compile("-?(?:0|[1-9][0-9]*)")
"""An integer. With more zeros in front it is text: the number of a phone, a postal code."""
SEPARATOR = "+"
"""Stands between two messages of a NOTIFY."""
MOST_OF_A_FILE = 64 << 20
"""Bytes. HAProxy's buffers, and so its frames, are smaller by far."""


def parse_messages(words: Sequence[str]) -> list[Message]:
    """``NAME name=value …``, more messages behind a ``+``.

    Raises:
        click.UsageError: a word is no argument, or a value can't be read.
    """
    messages: list[Message] = []
    for part in _split(words):
        if not part or "=" in part[0]:
            place = f"before {' '.join(part)!r}" if part else f"beside {SEPARATOR!r}"
            raise click.UsageError(f"a message's name is missing {place}")
        messages.append(Message(part[0], [parse_argument(word) for word in part[1:]]))
    return messages


def _split(words: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == SEPARATOR:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def parse_argument(word: str) -> tuple[str, Value]:
    """``name=value`` or ``name:type=value``; no name is ``=value``.

    A name that has a colon itself needs a type: what is behind the last colon is always one.

    Raises:
        click.UsageError: it is neither, or the value is none of the type.
    """
    key, equals, text = word.partition("=")
    if not equals:
        raise click.UsageError(f"{word!r} is no argument: name=value or name:type=value")
    name, colon, type_ = key.rpartition(":")
    try:
        return (name, _of_type(type_)(text)) if colon else (key, natural_value(text))
    except (ValueError, OverflowError, OSError) as error:
        raise click.UsageError(f"{word!r}: {reason(error)}") from None


def _of_type(name: str) -> Callable[[str], Value]:
    """What reads a value of this type."""
    try:
        return _TYPES[name]
    except KeyError:
        raise ValueError(f"{name!r} is no type: {', '.join(_TYPES)}") from None


def read_value(path: str) -> bytes:
    """The value that a file is.

    Raises:
        OSError: it can't be read.
        ValueError: it is too long, maybe without an end, as a device is.
    """
    with Path(path).open("rb") as file:
        data = file.read(MOST_OF_A_FILE + 1)
    if len(data) > MOST_OF_A_FILE:
        raise ValueError(f"{path} has more than {MOST_OF_A_FILE >> 20} MiB: no frame holds this")
    return data


def natural_value(text: str) -> Value:
    """The value that a text most likely means. Raises as `read_value`."""
    if text.startswith("@"):
        return read_value(text[1:])
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _NUMBER.fullmatch(text):
        return _integer(Int64 if -(2**63) <= int(text) < 2**63 else UInt64, text)
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return text


def _integer(type_: Callable[[int], int], text: str) -> int:
    for base in (0, 10):  # A decimal number may have zeros in front.
        with contextlib.suppress(ValueError):
            return type_(int(text, base))
    raise ValueError(f"{text!r} is no integer")


def _bool(text: str) -> bool:
    value = _WORDS.get(text.lower())
    if value is None:
        raise ValueError("true or false is wanted")
    return value


def _null(text: str) -> None:
    if text:
        raise ValueError("null has no value")


def _binary(text: str) -> bytes:
    if text.startswith("@"):
        return read_value(text[1:])
    encoding, colon, rest = text.partition(":")
    if not colon or encoding not in ("hex", "base64"):
        return text.encode()
    try:
        return bytes.fromhex(rest) if encoding == "hex" else base64.b64decode(rest, validate=True)
    except ValueError:
        needs = "two hex digits for each byte" if encoding == "hex" else "base64, with its padding"
        raise ValueError(f"{encoding}: is followed by {needs}") from None


_TYPES: dict[str, Callable[[str], Value]] = {
    "null": _null,
    "bool": _bool,
    "int": partial(_integer, Int64),
    "int32": partial(_integer, Int32),
    "uint32": partial(_integer, UInt32),
    "int64": partial(_integer, Int64),
    "uint64": partial(_integer, UInt64),
    "ip": ipaddress.ip_address,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "str": str,
    "string": str,
    "bin": _binary,
    "binary": _binary,
}


def type_name(value: object) -> str:
    """The SPOP type of a value, for people."""
    for types, name in _NAMES:
        if isinstance(value, types):
            return name
    return type(value).__name__


_NAMES: tuple[tuple[Any, str], ...] = (
    (type(None), "null"),
    (bool, "bool"),
    (int, "int"),
    (ipaddress.IPv4Address, "ipv4"),
    (ipaddress.IPv6Address, "ipv6"),
    ((str, String), "string"),
    ((bytes, Binary), "binary"),
    (type_unset, "unset"),
)


def show(value: object, limit: int = 200) -> str:
    """A value on one line that can be printed anywhere."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, bytes):
        text = "hex:" + value[:limit].hex()
        return text + (f"… ({len(value)} bytes)" if len(value) > limit else "")
    if isinstance(value, str):
        shown = repr(value[:limit].encode("utf-8", "backslashreplace").decode())
        return shown + (f"… ({len(value)} characters)" if len(value) > limit else "")
    return str(value)


def described(value: object) -> str:
    """A value and its type, for people."""
    return f"{show(value)} ({type_name(value)})"


def as_json(value: object) -> dict[str, Any]:
    """A value with its type, as JSON can have it."""
    plain: Any = value
    if isinstance(value, bytes):
        plain = value.hex()
    elif isinstance(value, str):
        plain = value.encode("utf-8", "backslashreplace").decode()
    elif not isinstance(value, int | None):
        plain = str(value)
    return {"type": type_name(value), "value": plain}
