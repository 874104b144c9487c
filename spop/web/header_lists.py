"""Lists of header fields in variables, as HAProxy 3.4's ``*-headers-bin`` rules read them."""

from __future__ import annotations

import re

from spop import codec
from spop.errors import InvalidFrameError
from spop.headers import Headers

_IMMUTABLE = frozenset(
    (
        b"connection", b"content-length", b"expect", b"keep-alive", b"proxy-authenticate",
        b"proxy-authorization", b"proxy-connection", b"trailer", b"transfer-encoding", b"upgrade",
    )
)  # fmt: skip
"""The fields that HAProxy leaves as they are, without an error."""

_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_UNSAFE = re.compile(rb"[\r\n\0]")


def fields_of(value: object) -> list[tuple[str, str]]:
    """The names and values in a sample, as ``add-headers-bin`` and ``set-headers-bin`` read it.

    A list that is malformed is empty. HAProxy sends any bytes. Here a name that is no token, and a
    value with CR, LF or NUL, are passed over: they could end the message and begin another.
    """
    try:
        pairs = Headers(value).raw if isinstance(value, bytes) else []
    except InvalidFrameError:
        return []
    return [
        (_text(name), _text(content.strip(b" \t")))
        for name, content in pairs
        if _may_change(name) and not _UNSAFE.search(content)
    ]


def names_of(value: object) -> list[str]:
    """The names in a sample, as ``del-headers-bin`` reads it. A malformed list is empty."""
    names: list[str] = []
    offset = 0
    try:
        while isinstance(value, bytes):
            name, offset = codec.decode_string(value, offset)
            if not name:
                return [
                    name for name in names if _may_change(name.encode("utf-8", "surrogateescape"))
                ]
            names.append(name)
    except InvalidFrameError:
        pass
    return []


def _may_change(name: bytes) -> bool:
    return name.lower() not in _IMMUTABLE and _TOKEN.fullmatch(name) is not None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
