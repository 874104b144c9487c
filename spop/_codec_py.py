"""The codec in pure Python: messages, actions and frames as bytes and back. No I/O, no state.

`_codec.pyx` is the compiled twin: the same functions, the same bytes, the same errors. Other
modules import `spop.codec`, which offers the functions of one of the two.

Every ``encode_*`` appends to the bytearray `out`, a new one by default, and returns it. An
``encode_*`` that raises leaves `out` as it was. Every ``decode_*`` reads any object with the
buffer protocol.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from spop._typed_data_py import as_bytes, read_span, read_string, read_value, read_varint
from spop._typed_data_py import decode_string as decode_string
from spop._typed_data_py import decode_value as decode_value
from spop._typed_data_py import decode_varint as decode_varint
from spop._typed_data_py import encode_string as encode_string
from spop._typed_data_py import encode_value as encode_value
from spop._typed_data_py import encode_varint as encode_varint
from spop.constants import (
    CONTROL_TYPES,
    DEFAULT_MAX_FRAME_SIZE,
    FLAGS_END,
    LENGTH_SIZE,
    LONG_VARINT,
    MAX_MESSAGE_ARGUMENTS,
    MAX_TEXT_SIZE,
    SET_VAR_ARGUMENTS,
    SHORTEST_FRAME,
    TYPE_MASK,
    UNSET_VAR_ARGUMENTS,
    ActionType,
    DataType,
    FrameFlag,
    FrameType,
)
from spop.errors import FragmentationError, FrameTooBigError, InvalidFrameError, too_long
from spop.frames import Ack, Action, Actions, Control, Frame, Message, Notify, RawFrame
from spop.values import (
    SCOPE_NAMES,
    SCOPES,
    UNSET,
    VARIABLE,
    Buffer,
    DecodedValue,
    Value,
    type_unset,
)

# Plain integers: to look up a member of an enum takes ten times as long.
_NOTIFY, _ACK = int(FrameType.NOTIFY), int(FrameType.ACK)
_FIN, _ABORT = int(FrameFlag.FIN), int(FrameFlag.ABORT)
_STRING, _BINARY = int(DataType.STRING), int(DataType.BINARY)

_SET = int(ActionType.SET_VAR), SET_VAR_ARGUMENTS
_UNSET = int(ActionType.UNSET_VAR), UNSET_VAR_ARGUMENTS
_SET_VAR, _UNSET_VAR = bytes(_SET), bytes(_UNSET)
"""The first two bytes of an action."""

T = TypeVar("T")
Head = tuple[int, int, int, int, bool]
"""Type, flags, stream-id and frame-id of a frame, and whether its flags are little-endian."""


def _written(
    write: Callable[[T, bytearray], object],
    content: T,
    out: bytearray | None,
    head: Head | None = None,
) -> bytearray:
    """Append what `write` writes of `content`, in a frame if there is a `head`.

    When it raises, `out` is as it was.
    """
    if out is None:
        out = bytearray()
    start = len(out)
    try:
        if head is not None:
            begin_frame(head, out)
        write(content, out)
    except BaseException:
        del out[start:]
        raise
    return out if head is None else finish_frame(start, out)


# --- key/value lists (section 3.2) ---


def encode_kv_list(
    items: Mapping[str, Value] | Iterable[tuple[str, Value]], out: bytearray | None = None
) -> bytearray:
    """Append a KV-LIST: for each item a string without a type, and typed data.

    Raises:
        TypeError, OverflowError: a value can't be encoded. The error names its key.
    """
    return _written(_write_kv_list, items, out)


def _write_kv_list(
    items: Mapping[str, Value] | Iterable[tuple[str, Value]], out: bytearray
) -> None:
    for name, value in items.items() if isinstance(items, Mapping) else items:
        encode_string(name, out)
        _write_named_value(name, value, out)


def _write_named_value(name: str, value: Value, out: bytearray) -> None:
    try:
        encode_value(value, out)
    except UnicodeError:  # Its constructor takes more than a text.
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{name}: {error}") from None


def decode_kv_list(buffer: Buffer) -> dict[str, DecodedValue]:
    """Read a KV-LIST that fills the buffer. Of a key that repeats, the last value counts.

    Raises:
        InvalidFrameError: it is malformed.
    """
    data = as_bytes(buffer)
    return _read_kv_list(data, 0, len(data), False)


def _read_kv_list(data: bytes, offset: int, end: int, lenient: bool) -> dict[str, DecodedValue]:
    items: dict[str, DecodedValue] = {}
    while offset < end:
        name, offset = read_string(data, offset, end)
        items[name], offset = read_value(data, offset, end, lenient)
    return items


# --- messages (sections 3.2 and 3.3) ---


def encode_messages(messages: Iterable[Message], out: bytearray | None = None) -> bytearray:
    """Append a LIST-OF-MESSAGES, the payload of a NOTIFY.

    Raises:
        TypeError, OverflowError: an argument can't be encoded. The error names it.
        ValueError: a message has more than 255 arguments.
    """
    return _written(_write_messages, messages, out)


def _write_messages(messages: Iterable[Message], out: bytearray) -> None:
    for message in messages:
        names, values = tuple(message.names), tuple(message.values)
        count = len(names)
        if count > MAX_MESSAGE_ARGUMENTS:
            raise ValueError(
                f"message {message.name}: {count} arguments, {MAX_MESSAGE_ARGUMENTS} at most"
            )
        if count != len(values):
            raise ValueError(f"message {message.name}: {count} names, {len(values)} values")
        encode_string(message.name, out)
        out.append(count)
        for name, value in zip(names, values, strict=True):
            encode_string(name, out)
            _write_named_value(name, value, out)


def decode_messages(buffer: Buffer) -> list[Message]:
    """Read a LIST-OF-MESSAGES that fills the buffer.

    Raises:
        InvalidFrameError: it is malformed.
    """
    data = as_bytes(buffer)
    return _read_messages(data, 0, len(data), 0, 0)


def _read_messages(
    data: bytes, offset: int, end: int, stream_id: int, frame_id: int
) -> list[Message]:
    messages = []
    while offset < end:
        message, offset = read_message(data, offset, end, stream_id, frame_id)
        messages.append(message)
    return messages


def read_message(
    data: bytes, offset: int, end: int, stream_id: int, frame_id: int
) -> tuple[Message, int]:
    """The message at `offset` of the payload of a NOTIFY, and the offset behind it."""
    # Without its constructor, which takes a third of the time of a message of one argument.
    message = Message.__new__(Message)
    message.name, offset = read_string(data, offset, end)
    message.stream_id = stream_id
    message.frame_id = frame_id
    message.connection = None
    return message, _read_arguments(message, data, offset, end)


def _read_arguments(message: Message, data: bytes, offset: int, end: int) -> int:
    """Read the arguments of a message. Returns the offset behind them."""
    if offset >= end:
        raise InvalidFrameError(f"message without its argument count at byte {offset}")
    names = []
    values = []
    count = data[offset]
    offset += 1
    for _ in range(count):
        # `read_span` in place for names of less than 240 bytes, which saves its call.
        if offset < end and (length := data[offset]) < LONG_VARINT and length < end - offset:
            start = offset + 1
            offset = start + length
        else:
            start, offset = read_span(data, offset, end)
        name = data[start:offset]
        names.append(_kept_name(name) if len(name) <= MAX_TEXT_SIZE else _name(name))
        # HAProxy sends most samples as STRING: `read_value` would only be one more call.
        if offset < end and data[offset] == _STRING:
            value: DecodedValue
            value, offset = read_string(data, offset + 1, end)
        else:
            value, offset = read_value(data, offset, end)
        values.append(value)
    message.names = tuple(names)
    message.values = tuple(values)
    return offset


def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


_kept_name = functools.lru_cache(maxsize=512)(_name)
"""The text of a name. The few names of a configuration repeat in every frame."""


# --- actions (section 3.4) ---


def encode_actions(actions: Actions, out: bytearray | None = None) -> bytearray:
    """Append a LIST-OF-ACTIONS, the payload of an ACK.

    Raises:
        TypeError, OverflowError: a value can't be encoded. The error names its variable.
        ValueError: a variable has no known scope or no valid name.
    """
    return _written(_write_actions, actions, out)


def encode_answer(answer: Actions, out: bytearray | None = None) -> bytearray:
    """Append the actions that a handler answers: `encode_actions`, but None removes the variable.

    Raises:
        TypeError, OverflowError, ValueError: as `encode_actions`.
    """
    return _written(write_answer, answer, out)


def write_answer(answer: Actions, out: bytearray) -> None:
    """`encode_answer` for a caller that cuts `out` back itself when this raises."""
    # A variable set to NULL makes HAProxy 1.8.0 read freed memory, and 2.2 still shows a value.
    # From 2.6 on NULL removes the variable. UNSET-VAR removes it in every version.
    _write_actions(answer, out, UNSET)


def _write_actions(actions: Actions, out: bytearray, null: type_unset | None = None) -> None:
    """Append actions. `null` replaces a value that is None."""
    if type(actions) is dict or isinstance(actions, Mapping):
        for variable, value in actions.items():
            _write_action(variable, null if value is None else value, out)
    else:
        for action in actions:
            value = action.value
            _write_action(action.variable, null if value is None else value, out)


def _write_action(variable: str, value: Value | type_unset, out: bytearray) -> None:
    target = targets.get(variable) or find_target(variable)
    if value is UNSET:
        out += _UNSET_VAR
        out += target
    else:
        out += _SET_VAR
        out += target
        _write_named_value(variable, value, out)


targets: dict[str, bytes] = {}
"""Encoded variables by their full name. An agent sets the same few in every answer."""

_TARGETS_KEPT = 4096


def find_target(variable: str) -> bytes:
    """Scope and name of a variable as an action has them. Keeps them in `targets`."""
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
    if len(targets) >= _TARGETS_KEPT:
        targets.clear()
    targets[variable] = target
    return target


def decode_actions(buffer: Buffer) -> list[Action]:
    """Read a LIST-OF-ACTIONS that fills the buffer.

    Raises:
        InvalidFrameError: it is malformed, or has an unknown action or scope.
    """
    data = as_bytes(buffer)
    return _read_actions(data, 0, len(data), False).actions


def _read_actions(data: bytes, offset: int, end: int, lenient: bool) -> Ack:
    """An ACK with these actions.

    `lenient` does as HAProxy: it reads up to an action that it can't read, without an error.
    """
    ack = Ack()
    try:
        while offset < end:
            offset = _read_action(data, offset, end, lenient, ack)
    except InvalidFrameError:
        if not lenient:
            raise
        ack.ignored += 1
    return ack


def _read_action(data: bytes, offset: int, end: int, lenient: bool, ack: Ack) -> int:
    """Add an action. Returns the offset behind it."""
    if end - offset < 3:
        raise InvalidFrameError(f"action cut short at byte {offset}")
    type_, count, scope = data[offset : offset + 3]
    if (type_, count) not in (_SET, _UNSET):
        raise InvalidFrameError(f"action {type_} of {count} arguments at byte {offset}")
    if scope >= len(SCOPE_NAMES):
        raise InvalidFrameError(f"unknown variable scope {scope} at byte {offset + 2}")
    name, offset = read_string(data, offset + 3, end)
    value: DecodedValue | type_unset = UNSET
    if (type_, count) == _SET:
        start = offset
        value, offset = read_value(data, offset, end, lenient)
        if lenient and data[start] & TYPE_MASK > _BINARY:
            ack.ignored += 1
            return offset
    ack.actions.append(Action(SCOPE_NAMES[scope], name, value))
    return offset


# --- frames (section 3.2) ---


def encode_notify(
    stream_id: int,
    frame_id: int,
    messages: Iterable[Message],
    out: bytearray | None = None,
    *,
    little_endian: bool = False,
) -> bytearray:
    """Append a NOTIFY frame. Raises the errors of `encode_messages` and `encode_varint`."""
    head = _NOTIFY, _FIN, stream_id, frame_id, little_endian
    return _written(_write_messages, messages, out, head)


def encode_ack(
    stream_id: int,
    frame_id: int,
    actions: Actions = (),
    out: bytearray | None = None,
    *,
    abort: bool = False,
    little_endian: bool = False,
) -> bytearray:
    """Append an ACK frame. Raises the errors of `encode_actions` and `encode_varint`."""
    # ABORT stops a NOTIFY that still arrives in fragments. It needs FIN beside it (section 3.2).
    head = _ACK, _FIN | _ABORT if abort else _FIN, stream_id, frame_id, little_endian
    return _written(_write_actions, actions, out, head)


def encode_control(
    type: int,
    items: Mapping[str, Value],
    out: bytearray | None = None,
    *,
    little_endian: bool = False,
) -> bytearray:
    """Append a HELLO or DISCONNECT frame.

    Raises:
        TypeError, OverflowError: as `encode_kv_list`, or the type is not in 0 to 255.
    """
    # Both identifiers are 0 (sections 3.2.4, 3.2.5, 3.2.8 and 3.2.9).
    return _written(_write_kv_list, items, out, (type, _FIN, 0, 0, little_endian))


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
    """Append any frame whose payload is encoded already, such as a fragment.

    Raises:
        OverflowError: type, flags or an identifier is out of its range.
    """
    head = type, flags, stream_id, frame_id, little_endian
    return _written(_write_buffer, payload, out, head)


def _write_buffer(payload: Buffer, out: bytearray) -> None:
    out += payload


def encode_frame(
    frame: Frame, out: bytearray | None = None, *, little_endian: bool = False
) -> bytearray:
    """Append any frame that `decode_frames` can return. Raises the errors of its kind."""
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


def begin_frame(head: Head, out: bytearray) -> None:
    """Append a frame up to its payload. `finish_frame` fills in the length."""
    type_, flags, stream_id, frame_id, little_endian = head
    out += _frame_start(type_, flags, little_endian)
    encode_varint(stream_id, out)
    encode_varint(frame_id, out)


@functools.lru_cache(maxsize=64)
def _frame_start(type_: int, flags: int, little_endian: bool) -> bytes:
    """A frame up to its identifiers, with 0 for its length."""
    if not 0 <= type_ < 1 << 8:
        raise OverflowError(f"{type_} is not in 0 to 255, the range of a frame's type")
    if not 0 <= flags < 1 << 32:
        raise OverflowError(f"{flags} is not in 0 to 2**32 - 1, the range of flags")
    return bytes([0, 0, 0, 0, type_]) + flags.to_bytes(4, "little" if little_endian else "big")


_NETWORK_ORDER = struct.Struct(">I")
_LITTLE_ENDIAN = struct.Struct("<I")


def finish_frame(start: int, out: bytearray) -> bytearray:
    """Fill in the length of the frame from `start` to the end of `out`."""
    _NETWORK_ORDER.pack_into(out, start, len(out) - start - LENGTH_SIZE)
    return out


def decode_frames(
    buffer: Buffer,
    start: int = 0,
    end: int | None = None,
    *,
    max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
    little_endian: bool = False,
    whole: bool = False,
    lenient: bool = False,
) -> tuple[list[Frame], int]:
    """Read all whole frames between `start` and `end` of the buffer.

    A bad frame ends the reading. The call that begins with it raises its error. A call that
    finds frames in front of it returns these.

    Args:
        max_frame_size: bytes above which a frame is an error, as soon as its length is there.
        little_endian: the order of the flags. SPOP 1.0 (HAProxy 1.7 and early 1.8) had them in
            the host's order, which is little-endian on x86.
        whole: take every frame as if it had FIN. HAProxy 1.7 sets no flags.
        lenient: read HELLO, DISCONNECT and ACK as HAProxy does. Integers may be out of their
            type's range. Malformed actions are passed over and counted in `Ack.ignored`.

    Returns:
        The frames, and the offset behind the last one.

    Raises:
        FrameTooBigError: the first frame is longer than `max_frame_size`.
        FragmentationError: it is a fragment of a frame that may not be fragmented.
        InvalidFrameError: it is malformed otherwise.
        ValueError: `start` and `end` are not in the buffer.
    """
    if end is None:
        end = len(buffer)
    if not 0 <= start <= end <= len(buffer):
        raise ValueError(f"{start} to {end} is outside a buffer of {len(buffer)} bytes")
    data = _part(buffer, start, end)
    frames: list[Frame] = []
    taken = 0
    try:
        while (length := frame_length(data, taken, max_frame_size)) >= 0:
            offset, end = taken + LENGTH_SIZE, taken + LENGTH_SIZE + length
            frames.append(_frame_at(data, offset, end, little_endian, whole, lenient))
            taken = end
    except (FrameTooBigError, FragmentationError, InvalidFrameError):
        if not frames:
            raise
    return frames, start + taken


def _frame_at(
    data: bytes, offset: int, end: int, little_endian: bool, whole: bool, lenient: bool
) -> Frame:
    type_, flags, stream_id, frame_id, payload = read_header(
        data, offset, end, little_endian, whole
    )
    return read_frame(type_, flags, stream_id, frame_id, data, payload, end, lenient)


def frame_length(data: bytes, offset: int, max_frame_size: int) -> int:
    """The length of the frame at `offset`, or -1 if some of it has not arrived."""
    if len(data) - offset < LENGTH_SIZE:
        return -1
    length: int = _NETWORK_ORDER.unpack_from(data, offset)[0]
    # The length alone decides: nothing waits for the rest of a frame that is refused anyway.
    if length > max_frame_size:
        raise too_long(length, max_frame_size)
    if length < SHORTEST_FRAME:
        raise InvalidFrameError(f"frame of {length} bytes, {SHORTEST_FRAME} at least")
    return length if length <= len(data) - offset - LENGTH_SIZE else -1


def read_header(
    data: bytes, offset: int, end: int, little_endian: bool, whole: bool
) -> tuple[int, int, int, int, int]:
    """Type, flags, stream-id and frame-id of a frame, and the offset of its payload."""
    type_ = data[offset]
    # Network order (section 3.2). SPOP 1.0, HAProxy 1.7 and early 1.8, had the host's order.
    flags = (_LITTLE_ENDIAN if little_endian else _NETWORK_ORDER).unpack_from(data, offset + 1)[0]
    if whole:  # HAProxy 1.7 sets no flags.
        flags |= _FIN
    stream_id, offset = read_varint(data, offset + FLAGS_END - LENGTH_SIZE, end)
    frame_id, offset = read_varint(data, offset, end)
    # "When ABORT is set, the FIN bit must also be set" (section 3.2).
    if flags & _ABORT and not flags & _FIN:
        raise InvalidFrameError("ABORT without FIN")
    return type_, flags, stream_id, frame_id, offset


def read_frame(
    type_: int,
    flags: int,
    stream_id: int,
    frame_id: int,
    data: bytes,
    offset: int,
    end: int,
    lenient: bool = False,
) -> Frame:
    """The frame with this header, whose payload is at `offset`."""
    final = flags & _FIN
    if type_ == _NOTIFY and final:
        notify = Notify.__new__(Notify)
        notify.stream_id = stream_id
        notify.frame_id = frame_id
        notify.messages = _read_messages(data, offset, end, stream_id, frame_id)
        return notify
    if type_ == _ACK:
        # Section 3.2.7 allows fragments, but HAProxy neither announces nor sends them.
        if not final:
            raise FragmentationError("an ACK may not be fragmented")
        ack = _read_actions(data, offset, end, lenient)
        ack.stream_id, ack.frame_id, ack.aborted = stream_id, frame_id, flags & _ABORT != 0
        return ack
    if type_ in CONTROL_TYPES:
        # Sections 3.2.4, 3.2.5, 3.2.8 and 3.2.9.
        if not final:
            raise FragmentationError("HELLO and DISCONNECT may not be fragmented")
        if stream_id or frame_id:
            raise InvalidFrameError("stream-id and frame-id of HELLO and DISCONNECT must be 0")
        return Control(FrameType(type_), _read_kv_list(data, offset, end, lenient))
    return RawFrame(type_, flags, stream_id, frame_id, data[offset:end])


def _part(buffer: Buffer, start: int, end: int) -> bytes:
    if type(buffer) is bytes:
        return buffer if start == 0 and end == len(buffer) else buffer[start:end]
    with memoryview(buffer) as view:
        return bytes(view[start:end])
