"""Varints, strings and typed data (section 3.1) as Python values and back, in pure Python.

`_typed_data.pyx` is the compiled twin: the same functions, the same bytes, the same errors.
`_codec_py` builds messages, actions and frames of them, and offers these functions too.

Every ``encode_*`` appends to the bytearray `out`, a new one by default, and returns it. An
``encode_*`` that raises leaves `out` as it was. Every ``decode_*`` reads any object with the
buffer protocol.
"""

from __future__ import annotations

import functools
from ipaddress import IPv4Address, IPv6Address

from spop.constants import BOOL_TRUE, LONG_VARINT, LONGEST_VARINT, TYPE_MASK, DataType
from spop.errors import InvalidFrameError
from spop.values import (
    Buffer,
    DecodedValue,
    Int32,
    Int64,
    SentAsBinary,
    String,
    UInt32,
    UInt64,
    Value,
)

# Plain integers: to look up a member of an enum takes ten times as long.
_NULL, _BOOL, _INT32, _UINT32, _INT64, _UINT64, _IPV4, _IPV6, _STRING, _BINARY = map(int, DataType)
_TRUE = _BOOL | BOOL_TRUE

_UINT64_END = 1 << 64
_INT64_END = 1 << 63
_INT32_END = 1 << 31
"""The first integers that are too large for their type. Signed types begin at the negative one."""

# --- varints ---

# The first byte of a long varint holds 4 bits, each further byte 7. The highest bit of a further
# byte says that one more follows.
_LAST_SHIFT = 4 + 7 * (LONGEST_VARINT - 2)


def encode_varint(value: int, out: bytearray | None = None) -> bytearray:
    """Append `value` as a varint: 1 byte below 240, at most 10.

    Raises:
        OverflowError: `value` is not in 0 to 2**64 - 1.
    """
    if out is None:
        out = bytearray()
    if 0 <= value < LONG_VARINT:
        out.append(value)
        return out
    if not 0 <= value < _UINT64_END:
        raise OverflowError(f"{value} is not in 0 to 2**64 - 1, the range of a varint")
    out.append(value & 0xFF | LONG_VARINT)
    value = (value - LONG_VARINT) >> 4
    while value >= 0x80:
        out.append(value & 0xFF | 0x80)
        value = (value - 0x80) >> 7
    out.append(value)
    return out


def decode_varint(buffer: Buffer, offset: int = 0) -> tuple[int, int]:
    """Read the varint at `offset`. Returns it and the offset behind it.

    Raises:
        InvalidFrameError: it is cut short, longer than 10 bytes, or above 2**64 - 1.
    """
    data = as_bytes(buffer)
    return read_varint(data, _checked_offset(data, offset), len(data))


def read_varint(data: bytes, offset: int, end: int) -> tuple[int, int]:
    """The varint at `offset` and the offset behind it."""
    if offset >= end:
        raise InvalidFrameError(f"varint cut short at byte {offset}")
    value = data[offset]
    offset += 1
    if value < LONG_VARINT:
        return value, offset
    shift = 4
    while True:
        if offset >= end:
            raise InvalidFrameError(f"varint cut short at byte {offset}")
        byte = data[offset]
        offset += 1
        value += byte << shift
        shift += 7
        if byte < 0x80:
            break
        if shift > _LAST_SHIFT:
            raise InvalidFrameError(f"varint longer than {LONGEST_VARINT} bytes at byte {offset}")
    if value >= _UINT64_END:
        raise InvalidFrameError(f"varint above 64 bits at byte {offset}")
    return value, offset


# --- strings ---


def encode_string(value: str | bytes, out: bytearray | None = None) -> bytearray:
    """Append a string without a type, as names are: a varint length and the bytes.

    Raises:
        TypeError: `value` is neither str nor bytes.
    """
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    elif not isinstance(value, bytes):
        raise TypeError(f"a name is str or bytes, not {type(value).__name__}")
    out = encode_varint(len(value), out)
    out += value
    return out


def decode_string(buffer: Buffer, offset: int = 0) -> tuple[str, int]:
    """Read the string at `offset`. Returns it and the offset behind it.

    Raises:
        InvalidFrameError: it is cut short.
    """
    data = as_bytes(buffer)
    return read_string(data, _checked_offset(data, offset), len(data))


def read_string(data: bytes, offset: int, end: int) -> tuple[str, int]:
    """The string at `offset` and the offset behind it."""
    # `read_span` in place for lengths of one byte. The call would take a quarter of the time.
    if offset < end and (length := data[offset]) < LONG_VARINT and length < end - offset:
        start = offset + 1
        stop = start + length
    else:
        start, stop = read_span(data, offset, end)
    try:
        return data[start:stop].decode(), stop
    except UnicodeDecodeError:
        return data[start:stop].decode("utf-8", "surrogateescape"), stop


def read_span(data: bytes, offset: int, end: int) -> tuple[int, int]:
    """Start and stop of the bytes whose length is at `offset`."""
    if offset < end and data[offset] < LONG_VARINT:
        length = data[offset]
        start = offset + 1
    else:
        length, start = read_varint(data, offset, end)
    if length > end - start:
        raise InvalidFrameError(f"{length} bytes announced at byte {start}, {end - start} left")
    return start, start + length


# --- typed data ---


def encode_value(value: Value, out: bytearray | None = None) -> bytearray:
    """Append `value` as typed data. `spop.values` lists the type of each class.

    Raises:
        TypeError: no SPOP type can hold the value.
        OverflowError: an integer outside -2**63 to 2**64 - 1.
        ValueError: `Headers` that can't be sent.
    """
    if out is None:
        out = bytearray()
    if type(value) is int and 0 <= value < LONG_VARINT:
        out.append(_INT32)
        out.append(value)
    elif value is None:
        out.append(_NULL)
    elif value is True:
        out.append(_TRUE)
    elif value is False:
        out.append(_BOOL)
    elif isinstance(value, int):
        out.append(_integer_type(value))
        # All four types carry the 64 bits of the two's complement, INT32 and UINT32 too.
        encode_varint(value & 0xFFFF_FFFF_FFFF_FFFF, out)
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape")
        out.append(_STRING)
        encode_varint(len(raw), out)
        out += raw
    elif isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        out.append(_STRING if isinstance(value, String) else _BINARY)
        encode_varint(len(raw), out)
        out += raw
    elif isinstance(value, IPv4Address):
        packed = _packed(value, 4)
        out.append(_IPV4)
        out += packed
    elif isinstance(value, IPv6Address):
        packed = _packed(value, 16)
        out.append(_IPV6)
        out += packed
    else:
        raw = binary_of(value)
        out.append(_BINARY)
        encode_varint(len(raw), out)
        out += raw
    return out


def binary_of(value: SentAsBinary) -> bytes:
    """The bytes of an object whose class the codec does not know."""
    pack = getattr(type(value), "__spop_binary__", None)
    if pack is None:
        raise TypeError(f"{type(value).__name__} has no SPOP type")
    return bytes(pack(value))


def _packed(address: IPv4Address | IPv6Address, size: int) -> bytes:
    packed = address.packed
    # A subclass may define `packed` with any type and length.
    if type(packed) is not bytes or len(packed) != size:
        raise TypeError(f"{type(address).__name__}.packed is not {size} bytes")
    return packed


def _integer_type(value: int) -> int:
    if isinstance(value, (Int32, UInt32, Int64, UInt64)):
        return value.data_type
    if -_INT32_END <= value < _INT32_END:
        return _INT32
    if -_INT64_END <= value < _INT64_END:
        return _INT64
    if 0 <= value < _UINT64_END:
        return _UINT64
    raise OverflowError(f"{value} is not in -2**63 to 2**64 - 1")


def decode_value(buffer: Buffer, offset: int = 0) -> tuple[DecodedValue, int]:
    """Read the typed data at `offset`. Returns the value and the offset behind it.

    Raises:
        InvalidFrameError: it is cut short, of a reserved type, or out of its type's range.
    """
    data = as_bytes(buffer)
    return read_value(data, _checked_offset(data, offset), len(data))


def read_value(
    data: bytes, offset: int, end: int, lenient: bool = False
) -> tuple[DecodedValue, int]:
    """The value of the typed data at `offset` and the offset behind it.

    `lenient` takes what HAProxy takes of an agent: integers out of their type's range, and a
    reserved type, which it reads as a NULL.
    """
    if offset >= end:
        raise InvalidFrameError(f"typed data cut short at byte {offset}")
    type_ = data[offset] & TYPE_MASK
    if type_ == _STRING:
        return read_string(data, offset + 1, end)
    if type_ == _BINARY:
        start, stop = read_span(data, offset + 1, end)
        return data[start:stop], stop
    if type_ == _NULL:
        return None, offset + 1
    if type_ == _BOOL:
        return data[offset] & BOOL_TRUE != 0, offset + 1
    if type_ <= _UINT64:
        return _read_integer(data, offset, end, type_, lenient)
    if type_ == _IPV4:
        if end - offset < 5:
            raise InvalidFrameError(f"address cut short at byte {offset + 1}")
        return _ipv4(data[offset + 1 : offset + 5]), offset + 5
    if type_ == _IPV6:
        if end - offset < 17:
            raise InvalidFrameError(f"address cut short at byte {offset + 1}")
        return IPv6Address(data[offset + 1 : offset + 17]), offset + 17
    if lenient:
        return None, offset + 1
    raise InvalidFrameError(f"reserved data type {type_} at byte {offset}")


@functools.lru_cache(maxsize=4096)
def _ipv4(packed: bytes) -> IPv4Address:
    """The address object. Addresses are immutable, and clients come back."""
    return IPv4Address(packed)


_RANGES = {
    _INT32: (-_INT32_END, _INT32_END),
    _UINT32: (0, 1 << 32),
    _INT64: (-_INT64_END, _INT64_END),
    _UINT64: (0, _UINT64_END),
}


def _read_integer(data: bytes, offset: int, end: int, type_: int, lenient: bool) -> tuple[int, int]:
    value, after = read_varint(data, offset + 1, end)
    if value < _INT32_END:
        return value, after
    if value >= _INT64_END and type_ in (_INT32, _INT64):
        value -= _UINT64_END
    low, high = _RANGES[type_]
    if not low <= value < high and not lenient:
        raise InvalidFrameError(f"integer out of the range of its type at byte {offset}")
    return value, after


# --- buffers ---


def as_bytes(buffer: Buffer) -> bytes:
    """The bytes of a buffer, without a copy if it is bytes."""
    return buffer if isinstance(buffer, bytes) else bytes(buffer)


def _checked_offset(data: bytes, offset: int) -> int:
    if not 0 <= offset <= len(data):
        raise ValueError(f"offset {offset} is outside a buffer of {len(data)} bytes")
    return offset
