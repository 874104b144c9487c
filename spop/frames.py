"""Frames and what is in them, as plain data. Both codec twins make these same classes.

`Notify` and `Ack` are the frames of the exchange, `Control` the HELLO and DISCONNECT frames
with their key/value list, `RawFrame` all whose payload can't be decoded by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from spop.constants import Capability, FrameType
from spop.values import SCOPES, UNSET, DecodedValue, Value, type_unset


@dataclass(frozen=True, slots=True)
class Peer:
    """What a connection's HELLO agreed on; handlers find it as ``message.connection``.

    Attributes:
        address: of the socket's other end, as a person would write it.
        version: the protocol's, "1.0" or "2.0".
        max_frame_size: in bytes, the lower of both sides' limits.
        capabilities: those that are in force.
        engine_id: names the engine that the connection belongs to, if the peer told.
        healthcheck: the connection is only there to see that the agent lives.
    """

    address: str
    version: str
    max_frame_size: int
    capabilities: frozenset[str]
    engine_id: str | None = None
    healthcheck: bool = False

    @property
    def async_engine_id(self) -> str | None:
        """The engine whose connections may carry each other's ACKs; None without async."""
        return self.engine_id if Capability.ASYNC in self.capabilities else None

    @property
    def software(self) -> str:
        """What the peer seems to be. HAProxy does not tell its version, but what it speaks
        and announces changed with it."""
        if self.version == "1.0":
            return "HAProxy 1.7 or 1.8"
        if Capability.ASYNC in self.capabilities:
            return "HAProxy 1.8 to 3.0"
        return "HAProxy 1.8 or later"


class _Plain:
    """Equality and repr over ``__slots__``, as a dataclass would give them."""

    __slots__ = ()
    _compared: tuple[str, ...] = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._compared)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._compared)
        return f"{type(self).__name__}({fields})"


class Message(_Plain):
    """One message of a NOTIFY: a name and arguments (section 3.3).

    Arguments are found by name (``message["ip"]``) or, as HAProxy may send them unnamed,
    by position (``message[0]``). A sample that was not available is None.

    Attributes:
        name: the message's name, as in ``spoe-message``.
        names: the names of the arguments, in order; a name may be empty.
        values: their values.
        stream_id: the stream of the NOTIFY; 0 in a message that no frame brought.
        frame_id: the frame of the NOTIFY inside its stream; 0 as above.
        connection: what is known of the peer that sent it; None as above.
    """

    __slots__ = ("connection", "frame_id", "name", "names", "stream_id", "values")
    _compared = ("name", "args")

    name: str
    names: tuple[str, ...]
    values: tuple[DecodedValue, ...]
    stream_id: int
    frame_id: int
    connection: Peer | None

    def __init__(
        self,
        name: str,
        args: Mapping[str, Value] | Iterable[tuple[str, Value]] = (),
        /,
        **named: Value,
    ) -> None:
        pairs: list[Any] = list(args.items() if isinstance(args, Mapping) else args)
        pairs.extend(named.items())
        self.name = name
        self.names = tuple([name for name, _ in pairs])
        self.values = tuple([value for _, value in pairs])
        self.stream_id = 0
        self.frame_id = 0
        self.connection = None

    @property
    def args(self) -> list[tuple[str, DecodedValue]]:
        """The arguments as (name, value) pairs, in order."""
        return list(zip(self.names, self.values, strict=True))

    @property
    def engine_id(self) -> str | None:
        """The engine-id of the HELLO of the connection, if it had one."""
        return None if self.connection is None else self.connection.engine_id

    def __getitem__(self, key: str | int) -> DecodedValue:
        if isinstance(key, int):
            return self.values[key]
        for name, value in zip(self.names, self.values, strict=True):
            if name == key:
                return value
        raise KeyError(key)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of that name, or `default` where the message has none."""
        try:
            return self[name]
        except KeyError:
            return default


class Action(NamedTuple):
    """One action of an ACK: set a variable or, where the value is `UNSET`, remove it."""

    scope: str
    name: str
    value: Value | type_unset

    @property
    def variable(self) -> str:
        """The variable as handlers write it: ``"sess.ip_score"``."""
        return f"{self.scope}.{self.name}"


class Notify(_Plain):
    """A NOTIFY frame: messages of one event of one stream (section 3.2.6)."""

    __slots__ = ("frame_id", "messages", "stream_id")
    _compared = ("stream_id", "frame_id", "messages")

    stream_id: int
    frame_id: int
    messages: list[Message]

    def __init__(self, stream_id: int, frame_id: int, messages: Iterable[Message]) -> None:
        self.stream_id = stream_id
        self.frame_id = frame_id
        self.messages = list(messages)


class Ack(_Plain):
    """An ACK frame: the actions that answer a NOTIFY (section 3.2.7).

    A handler that takes a parameter annotated `Ack` is given the one to fill in.

    Attributes:
        aborted: the agent gave up a payload that is still arriving in fragments.
    """

    __slots__ = ("aborted", "actions", "frame_id", "stream_id")
    _compared = ("stream_id", "frame_id", "actions", "aborted")

    stream_id: int
    frame_id: int
    actions: list[Action]
    aborted: bool

    def __init__(
        self,
        stream_id: int = 0,
        frame_id: int = 0,
        actions: Iterable[Action] = (),
        aborted: bool = False,
    ) -> None:
        self.stream_id = stream_id
        self.frame_id = frame_id
        self.actions = list(actions)
        self.aborted = aborted

    def set(self, scope: str, name: str, value: Value) -> Self:
        """Have HAProxy set variable `name` of `scope` (``"proc"`` … ``"res"``); None removes it.

        Raises:
            ValueError: there is no such scope.
        """
        return self._act(scope, name, UNSET if value is None else value)

    def unset(self, scope: str, name: str) -> Self:
        """Have HAProxy remove variable `name` of `scope`.

        Raises:
            ValueError: there is no such scope.
        """
        return self._act(scope, name, UNSET)

    def _act(self, scope: str, name: str, value: Value | type_unset) -> Self:
        if scope not in SCOPES:
            raise ValueError(f"no variable scope {scope!r}: it is one of {', '.join(SCOPES)}")
        self.actions.append(Action(scope, name, value))
        return self

    @property
    def variables(self) -> dict[str, Value | type_unset]:
        """The actions as ``{"scope.name": value}``; `UNSET` where one is removed."""
        return {action.variable: action.value for action in self.actions}


class Control(_Plain):
    """A HELLO or DISCONNECT frame of either side, with its key/value list."""

    __slots__ = ("items", "type")
    _compared = ("type", "items")

    type: FrameType
    items: dict[str, DecodedValue]

    def __init__(self, type: FrameType, items: dict[str, DecodedValue]) -> None:
        self.type = type
        self.items = items


class RawFrame(_Plain):
    """A frame whose payload is not decoded: a fragment, or one of an unknown type.

    Attributes:
        type: a `FrameType`, or any number to 255.
        flags: `FrameFlag` bits, the reserved ones as they came.
    """

    __slots__ = ("flags", "frame_id", "payload", "stream_id", "type")
    _compared = ("type", "flags", "stream_id", "frame_id", "payload")

    type: int
    flags: int
    stream_id: int
    frame_id: int
    payload: bytes

    def __init__(
        self, type: int, flags: int, stream_id: int, frame_id: int, payload: bytes
    ) -> None:
        self.type = type
        self.flags = flags
        self.stream_id = stream_id
        self.frame_id = frame_id
        self.payload = payload


Frame = Notify | Ack | Control | RawFrame
"""What `decode_frames` gives."""

Actions = Mapping[str, Value | type_unset] | Iterable[Action]
"""What `encode_ack` takes: ``{"scope.name": value}``, or actions one by one."""
