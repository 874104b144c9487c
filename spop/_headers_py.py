"""Header fields, in pure Python: kept as they came, and looked up there.

`_headers.pyx` is the compiled twin, `spop.headers` chooses. The dispatcher makes a `Headers` of
an argument, the codec sends one as BINARY; neither needs to know how it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

from spop import _codec_py as codec
from spop._typed_data_py import read_span
from spop.errors import InvalidFrameError
from spop.values import Buffer

Default = TypeVar("Default")
Text = str | bytes
Fields = str | Buffer | Mapping[str, Text] | Mapping[bytes, Text] | Iterable[tuple[Text, Text]]

_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_UNSAFE = re.compile(rb"[\r\n\0]")
_ABSENT: Any = object()


class Headers:
    """Header fields, in order. Names are compared without case.

    Text is UTF-8 with surrogateescape, as in a STRING. The value of a variable that is a
    `Headers` is sent as HAProxy's ``add-headers-bin`` and ``set-headers-bin`` take it. A name
    that is no token (RFC 9110, section 5.6.2), and CR, LF or NUL in a value, are a ValueError
    then: HAProxy checks neither, and such a field can end the request and begin another.

    Args:
        fields: pairs of a name and a value, a mapping, or another `Headers`. A str is read as
            ``req.hdrs``, bytes as ``req.hdrs_bin``.

    Raises:
        InvalidFrameError: the bytes are no ``req.hdrs_bin``.
        TypeError: a name or a value is neither str nor bytes.
    """

    # `_lines` are "name: value" lines, as bytes, until they are read into `_fields`.
    __slots__ = ("_fields", "_lines")

    def __init__(self, fields: Headers | Fields = ()) -> None:
        self._fields: list[tuple[bytes, bytes]] = []
        self._lines = b""
        if isinstance(fields, str):
            self._lines = _raw(fields)
        elif isinstance(fields, (bytes, bytearray, memoryview)):
            self._fields = _of_strings(bytes(fields))
        else:
            pairs = fields.items() if isinstance(fields, (Mapping, Headers)) else fields
            self._fields = [_pair(name, value) for name, value in pairs]

    def _read(self) -> list[tuple[bytes, bytes]]:
        if self._lines:
            self._fields, self._lines = list(_of_lines(self._lines)), b""
        return self._fields

    def _values(self, name: Text) -> Iterator[str]:
        wanted = _raw(name).lower()
        if self._lines:
            return (_text(value) for value in _in_lines(self._lines, wanted))
        return (_text(value) for found, value in self._fields if found.lower() == wanted)

    @overload
    def get(self, name: Text) -> str | None: ...
    @overload
    def get(self, name: Text, default: Default) -> str | Default: ...
    def get(self, name: Text, default: Any = None) -> Any:
        """The value of the first field of this name. Values are never joined."""
        return next(self._values(name), default)

    def getlist(self, name: Text) -> list[str]:
        """The values of all fields of this name."""
        return list(self._values(name))

    def __getitem__(self, name: Text) -> str:
        value: str = self.get(name, _ABSENT)
        if value is _ABSENT:
            raise KeyError(name)
        return value

    def __contains__(self, name: Text) -> bool:
        return self.get(name) is not None

    def __len__(self) -> int:
        return len(self._read())

    def __iter__(self) -> Iterator[str]:
        """The name of each field, as often as it comes."""
        return iter([_text(name) for name, _ in self._read()])

    def items(self) -> list[tuple[str, str]]:
        """Name and value of each field, as often as a name comes."""
        return [(_text(name), _text(value)) for name, value in self._read()]

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        """Name and value of each field, as bytes."""
        return list(self._read())

    def add(self, name: Text, value: Text) -> None:
        """Add a field behind the others."""
        pair = _pair(name, value)
        self._read().append(pair)

    def names(self) -> bytes:
        """The names alone, as ``del-headers-bin`` takes them.

        Raises:
            ValueError: a name is no token.
        """
        out = bytearray()
        for name, _ in self._read():
            _check_name(name)
            codec.encode_string(name, out)
        return bytes(out + b"\0")

    def __spop_binary__(self) -> bytes:
        """What the codec sends."""
        out = bytearray()
        for name, value in self._read():
            _check_name(name)
            if _UNSAFE.search(value):
                raise ValueError(f"header {_text(name)!r}: CR, LF or NUL in its value")
            codec.encode_string(name, out)
            codec.encode_string(value, out)
        return bytes(out + b"\0\0")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Headers):
            return NotImplemented
        return [(name.lower(), value) for name, value in self.raw] == [
            (name.lower(), value) for name, value in other.raw
        ]

    def __repr__(self) -> str:
        return f"Headers({self.items()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.raw,)


def _raw(text: Text) -> bytes:
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    if isinstance(text, bytes):
        return text
    raise TypeError(f"a header is str or bytes, not {type(text).__name__}")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _pair(name: Text, value: Text) -> tuple[bytes, bytes]:
    raw = _raw(value)
    return _raw(name), raw


def _of_lines(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The fields of ``name: value`` lines. One without a name or a colon is passed over."""
    for line in data.split(b"\n"):
        name, colon, value = line.partition(b":")
        if name and colon:
            yield name, _stripped(value)


def _in_lines(data: bytes, wanted: bytes) -> Iterator[bytes]:
    """The values of one name, in lower case; of the other lines nothing is made."""
    if not wanted or b":" in wanted or b"\n" in wanted:
        return
    lines, key = b"\n" + data.lower(), b"\n" + wanted + b":"
    start = lines.find(key)
    while start >= 0:
        start += len(key) - 1
        stop = data.find(b"\n", start)
        yield _stripped(data[start : stop if stop >= 0 else None])
        start = lines.find(key, start)


def _stripped(value: bytes) -> bytes:
    return value.removesuffix(b"\r").strip(b" \t")


def _of_strings(data: bytes) -> list[tuple[bytes, bytes]]:
    """The fields before two empty strings, which end a list. HAProxy looks no further, either."""
    fields: list[tuple[bytes, bytes]] = []
    offset, end = 0, len(data)
    while True:
        start, stop = read_span(data, offset, end)
        value, after = read_span(data, stop, end)
        if start == stop:
            if value != after:
                raise InvalidFrameError(f"header without a name at byte {offset}")
            return fields
        fields.append((data[start:stop], data[value:after]))
        offset = after


def _check_name(name: bytes) -> None:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"header name {_text(name)!r} is no token")
