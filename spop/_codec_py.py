"""The codec in pure Python: bytes to frames and frames to bytes, no I/O and no state.

`_codec.pyx` is its compiled twin: the same functions, the same bytes, the same errors.
Whoever needs the codec imports `spop.codec`, which chooses between them.

Every ``encode_*`` appends to the bytearray `out` (a new one by default) and returns it; when
it raises, `out` is as it was. Every ``decode_*`` reads any object with the buffer protocol.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from spop.constants import CONTROL_TYPES, DEFAULT_MAX_FRAME_SIZE, FrameType
from spop.errors import FragmentationError, FrameTooBigError, InvalidFrameError
from spop.frames import Ack, Action, Actions, Control, Frame, Message, Notify, RawFrame
from spop.values import (
    SCOPE_NAMES,
    SCOPES,
    UNSET,
    VARIABLE,
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

_FIN, _ABORT = 1, 2

# --- varints (section 3.1) ---------------------------------------------------------------


def encode_varint(value: int, out: bytearray | None = None) -> bytearray:
    """Append `value` as a varint: 1 byte below 240, at most 10.

    Raises:
        OverflowError: `value` is not in 0 to 2**64 - 1.
    """
    if out is None:
        out = bytearray()
    if 0 <= value < 240:
        out.append(value)
        return out
    if not 0 <= value < 1 << 64:
        raise OverflowError(f"{value} is not in 0 to 2**64 - 1, the range of a varint")
    out.append(value & 0xFF | 0xF0)
    value = (value - 240) >> 4
    while value >= 128:
        out.append(value & 0xFF | 0x80)
        value = (value - 128) >> 7
    out.append(value)
    return out


def decode_varint(buffer: Buffer, offset: int = 0) -> tuple[int, int]:
    """Read the varint at `offset`. Returns it and the offset of what follows.

    Raises:
        InvalidFrameError: it is cut short, longer than 10 bytes, or above 2**64 - 1.
    """
    data = _as_bytes(buffer)
    return _varint(data, _checked_offset(data, offset), len(data))


def _varint(data: bytes, offset: int, end: int) -> tuple[int, int]:
    if offset >= end:
        raise InvalidFrameError(f"varint cut short at byte {offset}")
    value = data[offset]
    offset += 1
    if value < 240:
        return value, offset
    shift = 4
    while True:
        if offset >= end:
            raise InvalidFrameError(f"varint cut short at byte {offset}")
        byte = data[offset]
        offset += 1
        value += byte << shift
        shift += 7
        if byte < 128:
            break
        if shift > 60:
            raise InvalidFrameError(f"varint longer than 10 bytes at byte {offset}")
    if value >= 1 << 64:
        raise InvalidFrameError(f"varint above 64 bits at byte {offset}")
    return value, offset


# --- strings and typed data (section 3.1) --------------------------------------------------


def encode_string(value: str | bytes, out: bytearray | None = None) -> bytearray:
    """Append a plain string, as names are: a varint length and the bytes.

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
    """Read the plain string at `offset`. Returns it and the offset of what follows.

    Raises:
        InvalidFrameError: it is cut short.
    """
    data = _as_bytes(buffer)
    return _string(data, _checked_offset(data, offset), len(data))


def _string(data: bytes, offset: int, end: int) -> tuple[str, int]:
    # A call less where the length is one byte and right, as it mostly is.
    if offset < end and (length := data[offset]) < 240 and length < end - offset:
        start = offset + 1
        stop = start + length
    else:
        start, stop = _span(data, offset, end)
    try:
        return data[start:stop].decode(), stop
    except UnicodeDecodeError:
        return data[start:stop].decode("utf-8", "surrogateescape"), stop


def _span(data: bytes, offset: int, end: int) -> tuple[int, int]:
    """Where the bytes start and stop whose length stands at `offset`."""
    if offset < end and data[offset] < 240:
        length = data[offset]
        start = offset + 1
    else:
        length, start = _varint(data, offset, end)
    if length > end - start:
        raise InvalidFrameError(f"{length} bytes announced at byte {start}, {end - start} left")
    return start, start + length


def encode_value(value: Value, out: bytearray | None = None) -> bytearray:
    """Append `value` as typed data; `spop.values` says which type.

    Raises:
        TypeError: no SPOP type can hold the value.
        OverflowError: an integer outside -2**63 to 2**64 - 1.
        ValueError: `Headers` that can't be sent.
    """
    if out is None:
        out = bytearray()
    if type(value) is int and 0 <= value < 240:
        out.append(2)
        out.append(value)
    elif value is None:
        out.append(0)
    elif value is True:
        out.append(0x11)
    elif value is False:
        out.append(0x01)
    elif isinstance(value, int):
        type_ = _integer_type(value)
        out.append(type_)
        encode_varint(value & 0xFFFF_FFFF_FFFF_FFFF, out)
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape")
        out.append(8)
        encode_varint(len(raw), out)
        out += raw
    elif isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        out.append(8 if isinstance(value, String) else 9)
        encode_varint(len(raw), out)
        out += raw
    elif isinstance(value, IPv4Address):
        packed = _packed(value, 4)
        out.append(6)
        out += packed
    elif isinstance(value, IPv6Address):
        packed = _packed(value, 16)
        out.append(7)
        out += packed
    else:
        raw = _binary(value)
        out.append(9)
        encode_varint(len(raw), out)
        out += raw
    return out


def _binary(value: SentAsBinary) -> bytes:
    """What is sent for a value of a class that the codec does not know."""
    pack = getattr(type(value), "__spop_binary__", None)
    if pack is None:
        raise TypeError(f"{type(value).__name__} has no SPOP type")
    return bytes(pack(value))


def _packed(address: IPv4Address | IPv6Address, size: int) -> bytes:
    """The bytes of an address, which a subclass may have of any type and length."""
    packed = address.packed
    if type(packed) is not bytes or len(packed) != size:
        raise TypeError(f"{type(address).__name__}.packed is not {size} bytes")
    return packed


def _integer_type(value: int) -> int:
    if isinstance(value, (Int32, UInt32, Int64, UInt64)):
        return value.data_type
    if -(1 << 31) <= value < 1 << 31:
        return 2
    if -(1 << 63) <= value < 1 << 63:
        return 4
    if 0 <= value < 1 << 64:
        return 5
    raise OverflowError(f"{value} is not in -2**63 to 2**64 - 1")


def decode_value(buffer: Buffer, offset: int = 0) -> tuple[DecodedValue, int]:
    """Read the typed data at `offset`. Returns the value and the offset of what follows.

    Raises:
        InvalidFrameError: it is cut short, of a reserved type, or out of its type's range.
    """
    data = _as_bytes(buffer)
    return _value(data, _checked_offset(data, offset), len(data))


def _value(data: bytes, offset: int, end: int) -> tuple[DecodedValue, int]:
    if offset >= end:
        raise InvalidFrameError(f"typed data cut short at byte {offset}")
    type_ = data[offset] & 0x0F
    if type_ == 8:
        return _string(data, offset + 1, end)
    if type_ == 9:
        start, stop = _span(data, offset + 1, end)
        return data[start:stop], stop
    if type_ == 0:
        return None, offset + 1
    if type_ == 1:
        return data[offset] & 0x10 != 0, offset + 1
    if type_ <= 5:
        return _integer(data, offset, end, type_)
    if type_ == 6:
        if end - offset < 5:
            raise InvalidFrameError(f"address cut short at byte {offset + 1}")
        return _ipv4(data[offset + 1 : offset + 5]), offset + 5
    if type_ == 7:
        if end - offset < 17:
            raise InvalidFrameError(f"address cut short at byte {offset + 1}")
        return IPv6Address(data[offset + 1 : offset + 17]), offset + 17
    raise InvalidFrameError(f"reserved data type {type_} at byte {offset}")


@functools.lru_cache(maxsize=4096)
def _ipv4(packed: bytes) -> IPv4Address:
    """Addresses never change, and the same ones come again and again."""
    return IPv4Address(packed)


_RANGES = {
    2: (-(1 << 31), 1 << 31),
    3: (0, 1 << 32),
    4: (-(1 << 63), 1 << 63),
    5: (0, 1 << 64),
}


def _integer(data: bytes, offset: int, end: int, type_: int) -> tuple[int, int]:
    value, after = _varint(data, offset + 1, end)
    if value < 0x80000000:
        return value, after
    if type_ in (2, 4) and value >= 1 << 63:
        value -= 1 << 64
    low, high = _RANGES[type_]
    if not low <= value < high:
        raise InvalidFrameError(f"integer out of the range of its type at byte {offset}")
    return value, after


# --- key/value lists, messages, actions (sections 3.2 to 3.4) --------------------------------


def encode_kv_list(
    items: Mapping[str, Value] | Iterable[tuple[str, Value]], out: bytearray | None = None
) -> bytearray:
    """Append a KV-LIST: for each item a plain string and typed data.

    Raises:
        TypeError, OverflowError: a value can't be encoded; the error names its key.
    """
    if out is None:
        out = bytearray()
    start = len(out)
    try:
        for name, value in items.items() if isinstance(items, Mapping) else items:
            encode_string(name, out)
            _named_value(name, value, out)
    except BaseException:
        del out[start:]
        raise
    return out


def _named_value(name: str, value: Value, out: bytearray) -> None:
    try:
        encode_value(value, out)
    except UnicodeError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{name}: {error}") from None


def decode_kv_list(buffer: Buffer) -> dict[str, DecodedValue]:
    """Read a KV-LIST that fills the buffer. Where a key repeats, the last value counts.

    Raises:
        InvalidFrameError: it is malformed.
    """
    data = _as_bytes(buffer)
    return _kv_list(data, 0, len(data))


def _kv_list(data: bytes, offset: int, end: int) -> dict[str, DecodedValue]:
    items: dict[str, DecodedValue] = {}
    while offset < end:
        name, offset = _string(data, offset, end)
        items[name], offset = _value(data, offset, end)
    return items


def encode_messages(messages: Iterable[Message], out: bytearray | None = None) -> bytearray:
    """Append a LIST-OF-MESSAGES, the payload of a NOTIFY.

    Raises:
        TypeError, OverflowError: an argument can't be encoded; the error names it.
        ValueError: a message has more than 255 arguments.
    """
    if out is None:
        out = bytearray()
    start = len(out)
    try:
        for message in messages:
            _message(message, out)
    except BaseException:
        del out[start:]
        raise
    return out


def _message(message: Message, out: bytearray) -> None:
    if len(message) > 255:
        raise ValueError(f"message {message.name}: {len(message)} arguments, 255 at most")
    encode_string(message.name, out)
    out.append(len(message))
    for name, value in zip(message.names, message.values, strict=True):
        encode_string(name, out)
        _named_value(name, value, out)


def decode_messages(buffer: Buffer) -> list[Message]:
    """Read a LIST-OF-MESSAGES that fills the buffer.

    Raises:
        InvalidFrameError: it is malformed.
    """
    data = _as_bytes(buffer)
    return _messages(data, 0, len(data), 0, 0)


def _messages(data: bytes, offset: int, end: int, stream_id: int, frame_id: int) -> list[Message]:
    messages = []
    while offset < end:
        message, offset = _message_at(data, offset, end, stream_id, frame_id)
        messages.append(message)
    return messages


def _message_at(
    data: bytes, offset: int, end: int, stream_id: int, frame_id: int
) -> tuple[Message, int]:
    message = Message.__new__(Message)
    message.name, offset = _string(data, offset, end)
    message.stream_id = stream_id
    message.frame_id = frame_id
    message.connection = None
    return message, _args(message, data, offset, end)


def _args(message: Message, data: bytes, offset: int, end: int) -> int:
    """Read the arguments of a message. Returns the offset of what follows."""
    if offset >= end:
        raise InvalidFrameError(f"message without its argument count at byte {offset}")
    names = []
    values = []
    count = data[offset]
    offset += 1
    for _ in range(count):
        # A call less where the length is one byte and right, as it mostly is.
        if offset < end and (length := data[offset]) < 240 and length < end - offset:
            start = offset + 1
            offset = start + length
        else:
            start, offset = _span(data, offset, end)
        names.append(_name(data[start:offset]))
        if offset < end and data[offset] == 8:
            value: DecodedValue
            value, offset = _string(data, offset + 1, end)
        else:
            value, offset = _value(data, offset, end)
        values.append(value)
    message.names = tuple(names)
    message.values = tuple(values)
    return offset


@functools.lru_cache(maxsize=512)
def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def encode_actions(actions: Actions, out: bytearray | None = None) -> bytearray:
    """Append a LIST-OF-ACTIONS, the payload of an ACK.

    Raises:
        TypeError, OverflowError: a value can't be encoded; the error names its variable.
        ValueError: a variable has no known scope or no valid name.
    """
    return _encode_actions(actions, None, out)


def encode_answer(answer: Actions, out: bytearray | None = None) -> bytearray:
    """Append what a handler answers: as `encode_actions`, but None removes the variable.

    A variable that is set to NULL makes HAProxy 1.8.0 read freed memory, and misleads 2.2.0. From
    2.6 on it is removed, as every version does with UNSET-VAR.
    """
    return _encode_actions(answer, UNSET, out)


def _encode_actions(actions: Actions, null: Any, out: bytearray | None) -> bytearray:
    """Append actions, with `null` in the place of None."""
    if out is None:
        out = bytearray()
    start = len(out)
    try:
        if type(actions) is dict or isinstance(actions, Mapping):
            for variable, value in actions.items():
                _action(variable, null if value is None else value, out)
        else:
            for action in actions:
                value = action.value
                _action(action.variable, null if value is None else value, out)
    except BaseException:
        del out[start:]
        raise
    return out


def _action(variable: str, value: Any, out: bytearray) -> None:
    target = _targets.get(variable) or _target(variable)
    if value is UNSET:
        out += b"\x02\x02"
        out += target
    else:
        out += b"\x01\x03"
        out += target
        _named_value(variable, value, out)


_TARGETS_KEPT = 4096
_targets: dict[str, bytes] = {}


def _target(variable: str) -> bytes:
    """Scope and name of a variable as an action has them. Agents use few: they are kept."""
    if not isinstance(variable, str):
        raise TypeError(f"a variable is named by a str, not {type(variable).__name__}")
    match = VARIABLE.fullmatch(variable)
    if match is None:
        raise ValueError(
            f"{variable!r} names no variable: write scope.name, the scope one of "
            f"{', '.join(SCOPE_NAMES)}, the name of A-Z, a-z, 0-9, '.' and '_'"
        )
    scope, name = match.groups()
    target = bytes([SCOPES[scope]]) + encode_string(name)
    if len(_targets) >= _TARGETS_KEPT:
        _targets.clear()
    _targets[variable] = target
    return target


def decode_actions(buffer: Buffer) -> list[Action]:
    """Read a LIST-OF-ACTIONS that fills the buffer.

    Raises:
        InvalidFrameError: it is malformed, or has an action or a scope that is unknown.
    """
    data = _as_bytes(buffer)
    return _actions(data, 0, len(data))


def _actions(data: bytes, offset: int, end: int) -> list[Action]:
    actions = []
    while offset < end:
        if end - offset < 3:
            raise InvalidFrameError(f"action cut short at byte {offset}")
        type_, count, scope = data[offset : offset + 3]
        if (type_, count) not in ((1, 3), (2, 2)):
            raise InvalidFrameError(f"action {type_} of {count} arguments at byte {offset}")
        if scope >= len(SCOPE_NAMES):
            raise InvalidFrameError(f"unknown variable scope {scope} at byte {offset + 2}")
        name, offset = _string(data, offset + 3, end)
        if type_ == 1:
            value, offset = _value(data, offset, end)
            actions.append(Action(SCOPE_NAMES[scope], name, value))
        else:
            actions.append(Action(SCOPE_NAMES[scope], name, UNSET))
    return actions


# --- frames (section 3.2) --------------------------------------------------------------------


def encode_notify(
    stream_id: int,
    frame_id: int,
    messages: Iterable[Message],
    out: bytearray | None = None,
    *,
    little_endian: bool = False,
) -> bytearray:
    """Append a NOTIFY frame. Raises what `encode_messages` and `encode_varint` raise."""
    if out is None:
        out = bytearray()
    start = len(out)
    try:
        _begin(3, _FIN, stream_id, frame_id, out, little_endian)
        encode_messages(messages, out)
    except BaseException:
        del out[start:]
        raise
    return _finish(start, out)


def encode_ack(
    stream_id: int,
    frame_id: int,
    actions: Actions = (),
    out: bytearray | None = None,
    *,
    abort: bool = False,
    little_endian: bool = False,
) -> bytearray:
    """Append an ACK frame. Raises what `encode_actions` and `encode_varint` raise."""
    if out is None:
        out = bytearray()
    start = len(out)
    try:
        _begin(103, _FIN | _ABORT if abort else _FIN, stream_id, frame_id, out, little_endian)
        encode_actions(actions, out)
    except BaseException:
        del out[start:]
        raise
    return _finish(start, out)


def encode_control(
    type: int,
    items: Mapping[str, Value],
    out: bytearray | None = None,
    *,
    little_endian: bool = False,
) -> bytearray:
    """Append a HELLO or DISCONNECT frame. Raises what `encode_kv_list` raises."""
    if out is None:
        out = bytearray()
    start = len(out)
    try:
        _begin(type, _FIN, 0, 0, out, little_endian)
        encode_kv_list(items, out)
    except BaseException:
        del out[start:]
        raise
    return _finish(start, out)


def encode_raw_frame(
    type: int,
    flags: int,
    stream_id: int,
    frame_id: int,
    payload: Buffer,
    out: bytearray | None = None,
    *,
    little_endian: bool = False,
) -> bytearray:
    """Append any frame, the payload being encoded already: a fragment, for one.

    Raises:
        OverflowError: an identifier is not in 0 to 2**64 - 1.
    """
    if out is None:
        out = bytearray()
    start = len(out)
    try:
        _begin(type, flags, stream_id, frame_id, out, little_endian)
        out += payload
    except BaseException:
        del out[start:]
        raise
    return _finish(start, out)


def encode_frame(
    frame: Frame, out: bytearray | None = None, *, little_endian: bool = False
) -> bytearray:
    """Append any frame that `decode_frames` can give. Raises what encoding its kind raises."""
    if isinstance(frame, Notify):
        return encode_notify(
            frame.stream_id, frame.frame_id, frame.messages, out, little_endian=little_endian
        )
    if isinstance(frame, Ack):
        return encode_ack(
            frame.stream_id,
            frame.frame_id,
            frame.actions,
            out,
            abort=frame.aborted,
            little_endian=little_endian,
        )
    if isinstance(frame, Control):
        return encode_control(frame.type, frame.items, out, little_endian=little_endian)
    return encode_raw_frame(
        frame.type,
        frame.flags,
        frame.stream_id,
        frame.frame_id,
        frame.payload,
        out,
        little_endian=little_endian,
    )


def _begin(
    type_: int, flags: int, stream_id: int, frame_id: int, out: bytearray, little_endian: bool
) -> None:
    out += _frame_start(type_, flags, little_endian)
    encode_varint(stream_id, out)
    encode_varint(frame_id, out)


@functools.lru_cache(maxsize=64)
def _frame_start(type_: int, flags: int, little_endian: bool) -> bytes:
    """A frame up to its identifiers, the length left open."""
    return bytes([0, 0, 0, 0, type_]) + flags.to_bytes(4, "little" if little_endian else "big")


_LENGTH = struct.Struct(">I")
_LITTLE_ENDIAN = struct.Struct("<I")


def _finish(start: int, out: bytearray) -> bytearray:
    _LENGTH.pack_into(out, start, len(out) - start - 4)
    return out


def decode_frames(
    buffer: Buffer,
    start: int = 0,
    end: int | None = None,
    *,
    max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
    little_endian: bool = False,
    whole: bool = False,
) -> tuple[list[Frame], int]:
    """Read all whole frames between `start` and `end` of the buffer.

    Nothing that was decoded is lost to a bad frame behind it: the frames before it are
    returned, and the error is raised by the call that begins with it.

    Args:
        max_frame_size: a frame announced as longer is an error, before it has arrived.
        little_endian: how flags are written; true for HAProxy 1.7 and early 1.8 on x86,
            whose SPOP 1.0 had them in the host's order.
        whole: take every frame as if it had FIN; true for HAProxy 1.7, which sets no flags.

    Returns:
        The frames, and the offset of the first byte that belongs to none of them.

    Raises:
        FrameTooBigError: the first frame is longer than `max_frame_size`.
        FragmentationError: it is a fragment of what may not be fragmented.
        InvalidFrameError: it is malformed otherwise.
    """
    if end is None:
        end = len(buffer)
    if not 0 <= start <= end <= len(buffer):
        raise ValueError(f"{start} to {end} is outside a buffer of {len(buffer)} bytes")
    data = _part(buffer, start, end)
    frames: list[Frame] = []
    offset = 0
    try:
        while (length := _whole_frame(data, offset, max_frame_size)) >= 0:
            end_of_frame = offset + 4 + length
            type_, flags, stream_id, frame_id, payload = _header(
                data, offset + 4, end_of_frame, little_endian, whole
            )
            frames.append(_frame(type_, flags, stream_id, frame_id, data, payload, end_of_frame))
            offset = end_of_frame
    except (FrameTooBigError, FragmentationError, InvalidFrameError):
        if not frames:
            raise
    return frames, start + offset


def _whole_frame(data: bytes, offset: int, max_frame_size: int) -> int:
    """The length of the frame at `offset`, or -1 when it has not all arrived."""
    if len(data) - offset < 4:
        return -1
    length: int = _LENGTH.unpack_from(data, offset)[0]
    if length > max_frame_size:
        raise FrameTooBigError(f"frame of {length} bytes, {max_frame_size} at most")
    if length < 7:
        raise InvalidFrameError(f"frame of {length} bytes, 7 at least")
    return length if length <= len(data) - offset - 4 else -1


def _header(
    data: bytes, offset: int, end: int, little_endian: bool, whole: bool
) -> tuple[int, int, int, int, int]:
    """Type, flags, stream-id and frame-id of a frame, and the offset of its payload."""
    type_ = data[offset]
    flags = (_LITTLE_ENDIAN if little_endian else _LENGTH).unpack_from(data, offset + 1)[0]
    if whole:
        flags |= _FIN
    stream_id, offset = _varint(data, offset + 5, end)
    frame_id, offset = _varint(data, offset, end)
    if flags & _ABORT and not flags & _FIN:
        raise InvalidFrameError("ABORT without FIN")
    return type_, flags, stream_id, frame_id, offset


def _frame(
    type_: int, flags: int, stream_id: int, frame_id: int, data: bytes, offset: int, end: int
) -> Frame:
    """The frame whose payload is at `offset`."""
    final = flags & _FIN
    if type_ == 3 and final:
        notify = Notify.__new__(Notify)
        notify.stream_id = stream_id
        notify.frame_id = frame_id
        notify.messages = _messages(data, offset, end, stream_id, frame_id)
        return notify
    if type_ == 103:
        if not final:
            raise FragmentationError("an ACK may not be fragmented")
        actions = _actions(data, offset, end)
        return Ack(stream_id, frame_id, actions, flags & _ABORT != 0)
    if type_ in CONTROL_TYPES:
        if not final:
            raise FragmentationError("HELLO and DISCONNECT may not be fragmented")
        if stream_id or frame_id:
            raise InvalidFrameError("stream-id and frame-id of HELLO and DISCONNECT must be 0")
        return Control(FrameType(type_), _kv_list(data, offset, end))
    return RawFrame(type_, flags, stream_id, frame_id, data[offset:end])


def _part(buffer: Buffer, start: int, end: int) -> bytes:
    if type(buffer) is bytes:
        return buffer if start == 0 and end == len(buffer) else buffer[start:end]
    with memoryview(buffer) as view:
        return bytes(view[start:end])


def _as_bytes(buffer: Buffer) -> bytes:
    return buffer if isinstance(buffer, bytes) else bytes(buffer)


def _checked_offset(data: bytes, offset: int) -> int:
    if not 0 <= offset <= len(data):
        raise ValueError(f"offset {offset} is outside a buffer of {len(data)} bytes")
    return offset
