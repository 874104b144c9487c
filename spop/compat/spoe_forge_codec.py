"""Functions in place of those of the codec of ``spoe-forge``."""

from __future__ import annotations

from asyncio import IncompleteReadError
from collections.abc import Callable, Coroutine
from typing import Any

from spop.codec import decode_frames, decode_messages, encode_raw_frame
from spop.compat import samples
from spop.compat.codecs import Replacement, outcomes
from spop.compat.spoe_forge import Actions, arguments, as_latin_1
from spop.constants import FLAGS_END, LENGTH_SIZE, FrameFlag, FrameType
from spop.errors import ProtocolError
from spop.frames import Message, Notify

_IDS_END = 2**63
_NOTIFY, _ACK = int(FrameType.NOTIFY), int(FrameType.ACK)


def replacements() -> list[Replacement]:
    from spoe_forge.server import handler
    from spoe_forge.spop import frame

    actions = Actions(handler)
    encode = lambda original: _encode_actions(actions, original)  # noqa: E731
    return [
        Replacement("spoe_forge.spop.frame", "decode_list_of_messages", _decode_messages, _decoded),
        Replacement("spoe_forge.spop.frame", "encode_action_list", encode, _encoded),
        Replacement("spoe_forge.server.handler", "encode_action_list", encode, _encoded),
        Replacement(
            "spoe_forge.spop.frame.Frame",
            "decode",
            lambda original: classmethod(_decode_frame(frame, original.__func__)),
            lambda method: _frames_decoded(frame.Frame, method.__func__),
        ),
        Replacement(
            "spoe_forge.spop.frame.Frame",
            "encode",
            lambda original: _encode_frame(frame.Ack, original),
            lambda function: _frames_encoded(frame, function),
        ),
    ]


# --- messages and actions ---


def _messages(messages: list[Message]) -> list[tuple[str, dict[str, Any]]]:
    return [(as_latin_1(message.name), arguments(message)) for message in messages]


def _decode_messages(original: Any) -> Callable[..., Any]:
    def decode_list_of_messages(buf: bytes, offset: int = 0, end: int = 0) -> Any:
        if end == len(buf):
            try:
                return _messages(decode_messages(buf[offset:])), end
            except ProtocolError:
                pass
        return original(buf, offset, end)

    return decode_list_of_messages


def _decoded(function: Any) -> list[Any]:
    return outcomes(function, [(each, 0, len(each)) for each in samples.PAYLOADS])


def _encode_actions(actions: Actions, original: Any) -> Callable[[list[Any]], bytes]:
    def encode_action_list(listed: list[Any]) -> bytes:
        try:
            return bytes(actions.encode(listed))
        except Exception:
            encoded: bytes = original(listed)
            return encoded

    return encode_action_list


def _action_lists() -> list[list[Any]]:
    # `spoe_forge` itself has these names later: it is being imported.
    from spoe_forge.spop.constants import ActionScope
    from spoe_forge.spop.spop_types import SetVarAction, UnsetVarAction

    lists: list[list[Any]] = [
        [SetVarAction(ActionScope.TRANSACTION, "name", value)] for value in samples.VALUES
    ]
    removed = [UnsetVarAction(scope, "gone") for scope in ActionScope]
    odd: Any = [SetVarAction("txn", "a", 1), SetVarAction(ActionScope.SESSION, "\u20ac", 1), None]
    return [*lists, removed, [*removed, *lists[0]], *([each] for each in odd)]


def _encoded(function: Any) -> list[Any]:
    return outcomes(function, [(each,) for each in _action_lists()])


# --- frames ---


class _Again:
    """A reader that gives once more what was read."""

    def __init__(self, reader: Any, parts: list[Any]) -> None:
        self._parts = iter(parts)
        self.at_eof = reader.at_eof

    async def readexactly(self, _: int) -> bytes:
        part = next(self._parts)
        if isinstance(part, BaseException):
            raise part
        data: bytes = part
        return data


class _Bytes:
    """A reader of bytes that are there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def readexactly(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        if len(data) < size:
            raise IncompleteReadError(data, size)
        return data

    def at_eof(self) -> bool:
        return not self._data


def _decode_frame(frame_module: Any, original: Any) -> Any:
    async def decode(cls: Any, reader: Any, max_frame_size: int) -> Any:
        parts: list[Any] = []
        try:
            parts.append(await reader.readexactly(LENGTH_SIZE))
            length = int.from_bytes(parts[0], "big")
            if length <= max_frame_size:
                parts.append(await reader.readexactly(length))
                frame = _notify(frame_module, b"".join(parts))
                if frame is not None:
                    return frame
        except IncompleteReadError as error:
            parts.append(error)
        return await original(cls, _Again(reader, parts), max_frame_size)

    return decode


def _notify(module: Any, data: bytes) -> Any:
    """The package's frame of a well-formed NOTIFY, else None."""
    if data[LENGTH_SIZE : LENGTH_SIZE + 1] != bytes((_NOTIFY,)):
        return None
    try:
        frames, _ = decode_frames(data, max_frame_size=len(data), whole=True)
        frame = frames[0]
        assert isinstance(frame, Notify)
        messages = _messages(frame.messages)
    except ProtocolError:
        return None
    if frame.stream_id >= _IDS_END or frame.frame_id >= _IDS_END:
        return None
    bits = data[FLAGS_END - 1]
    flags = module.Flags(FIN=bool(bits & FrameFlag.FIN), ABORT=bool(bits & FrameFlag.ABORT))
    metadata = module.MetaData(flags, frame.stream_id, frame.frame_id)
    notify = module.Notify(module.FrameType.NOTIFY, metadata)
    notify.messages = messages
    return notify


def _encode_frame(ack_class: Any, original: Any) -> Callable[[Any, int], Any]:
    def encode(self: Any, max_frame_size: int) -> Any:
        if type(self) is ack_class:
            metadata = self.metadata
            flags = FrameFlag.FIN * metadata.flags.FIN | FrameFlag.ABORT * metadata.flags.ABORT
            ids = metadata.stream_id, metadata.frame_id
            encoded = encode_raw_frame(_ACK, flags, *ids, self.encode_payload())
            if len(encoded) - LENGTH_SIZE <= max_frame_size:
                return bytes(encoded)
        return original(self, max_frame_size)

    return encode


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def _frames_decoded(frame_class: Any, function: Any) -> list[Any]:
    def decode(data: bytes) -> tuple[str, dict[str, Any]]:
        frame = _run(function(frame_class, _Bytes(data), 2000))
        return type(frame).__name__, vars(frame)

    whole = [
        bytes(encode_raw_frame(3, flags, 7, 300, payload))
        for payload in samples.PAYLOADS
        for flags in (0, 1, 3)
    ]
    others = [bytes(encode_raw_frame(type_, 1, 0, 0, b"")) for type_ in (0, 1, 2, 77, 103)]
    huge = [
        bytes(encode_raw_frame(3, 1, 2**64 - 1, 1, b"")),
        bytes(encode_raw_frame(3, 1, 1, 1, bytes(2000))),
    ]
    return outcomes(
        decode, [(each,) for each in (*whole, *others, *huge, b"", b"\0\0", whole[3][:9])]
    )


def _frames_encoded(module: Any, function: Any) -> list[Any]:
    def encode(stream_id: int, actions: list[Any]) -> bytes:
        ack = module.Frame.construct(module.FrameType.ACK, stream_id, 300, actions=actions)
        encoded: bytes = function(ack, 200)
        return encoded

    return outcomes(encode, [(id_, each) for each in _action_lists() for id_ in (0, 2**40)])
