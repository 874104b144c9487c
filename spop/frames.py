"""Frames and their contents as plain data. Both twins of the codec make these classes.

`Notify` and `Ack` are the two frames of an exchange. `Control` is a HELLO or a DISCONNECT.
`RawFrame` is any other frame: a fragment, or a frame of an unknown type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Self

from spop.constants import Capability, FrameType
from spop.values import SCOPES, UNSET, DecodedValue, Value, type_unset

__all__ = [
    "Ack",
    "Action",
    "Actions",
    "Control",
    "Frame",
    "Message",
    "Notify",
    "Peer",
    "RawFrame",
]


@lru_cache(32)  # All connections of a HAProxy have the same few.
def engine_digest(engine_id: str) -> str:
    """What logs and pages show of an engine-id: who knows one can take the ACKs of its engine."""
    return hashlib.sha256(engine_id.encode("utf-8", "surrogateescape")).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection, as HELLO described it. Handlers find it as
    ``message.connection``.

    Attributes:
        address: the address of the other end, such as ``127.0.0.1:51234``.
        version: the version of SPOP that both ends use, "1.0" or "2.0".
        max_frame_size: the lower of both ends' limits in bytes.
        capabilities: those that both ends announced.
        engine_id: the id of HAProxy's SPOE engine; None if HELLO had none. It is not for logs:
            `engine` is.
        healthcheck: the connection is a health check (section 3.2.3).
    """

    address: str
    version: str
    max_frame_size: int
    capabilities: frozenset[str]
    engine_id: str | None = field(default=None, repr=False)
    healthcheck: bool = False

    @property
    def engine(self) -> str | None:
        """A digest of the engine-id, the same for all connections of an engine."""
        return engine_digest(self.engine_id) if self.engine_id else None

    @property
    def async_engine_id(self) -> str | None:
        """The engine-id, if ACKs may use any connection with the same one; None without async
        (section 3.2.1)."""
        return self.engine_id if Capability.ASYNC in self.capabilities else None

    @property
    def software(self) -> str:
        """The HAProxy that the peer seems to be. HAProxy does not send its version."""
        # HAProxy 1.7 and early 1.8 announce SPOP 1.0. From 3.1 on there is no async.
        if self.version == "1.0":
            return "HAProxy 1.7 or 1.8"
        if Capability.ASYNC in self.capabilities:
            return "HAProxy 1.8 to 3.0"
        return "HAProxy 1.8 or later"


class _Plain:
    """Equality and repr by the fields in `_compared`, as in a dataclass."""

    __slots__ = ()
    _compared: tuple[str, ...] = ()
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._compared)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._compared)
        return f"{type(self).__name__}({fields})"


class Message(_Plain):
    """One message of a NOTIFY: a name and arguments (section 3.3).

    An argument is found by its name (``message["ip"]``) or by its position (``message[0]``), as
    HAProxy sends arguments without a name too. The value of a sample that failed is None.

    Attributes:
        name: the message's name, as in ``spoe-message``.
        names: the names of the arguments, in order. A name may be empty.
        values: the values of the arguments, in the same order.
        stream_id: the stream-id of the NOTIFY; 0 in a message that was not received.
        frame_id: the frame-id of the NOTIFY; 0 in a message that was not received.
        connection: the peer that sent it; None in a message that was not received.
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
        """The engine-id of the connection; None if its HELLO had none."""
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
        """The first argument of this name, or `default`."""
        try:
            return self[name]
        except KeyError:
            return default


class Action(NamedTuple):
    """One action of an ACK (section 3.4): set a variable, or remove it if the value is `UNSET`."""

    scope: str
    name: str
    value: Value | type_unset

    @property
    def variable(self) -> str:
        """The full name of the variable, such as ``"sess.ip_score"``."""
        return f"{self.scope}.{self.name}"


class Notify(_Plain):
    """A NOTIFY frame: the messages of one event (section 3.2.6)."""

    __slots__ = ("frame_id", "messages", "stream_id")
    type: ClassVar[FrameType] = FrameType.NOTIFY
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

    A handler with a parameter annotated `Ack` receives the one that it may add actions to.

    Attributes:
        aborted: the agent stopped a payload that still arrives in fragments.
        ignored: number of malformed actions that were passed over, as HAProxy passes over them.
    """

    __slots__ = ("aborted", "actions", "frame_id", "ignored", "stream_id")
    type: ClassVar[FrameType] = FrameType.ACK
    _compared = ("stream_id", "frame_id", "actions", "aborted", "ignored")

    stream_id: int
    frame_id: int
    actions: list[Action]
    aborted: bool
    ignored: int

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
        self.ignored = 0

    def set(self, scope: str, name: str, value: Value) -> Self:
        """Set variable `name` of `scope`, which is ``"proc"`` to ``"res"``. None removes it.

        Raises:
            ValueError: there is no such scope.
        """
        return self._act(scope, name, UNSET if value is None else value)

    def unset(self, scope: str, name: str) -> Self:
        """Remove variable `name` of `scope`.

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
        """The actions as ``{"scope.name": value}``. The value of a removed one is `UNSET`."""
        return {action.variable: action.value for action in self.actions}


@dataclass(slots=True)
class Control:
    """A HELLO or DISCONNECT frame of either side, with its KV-LIST."""

    type: FrameType
    items: dict[str, DecodedValue]


@dataclass(slots=True)
class RawFrame:
    """A frame whose payload is not decoded: a fragment, or a frame of an unknown type.

    Attributes:
        type: a `FrameType`, or another number up to 255.
        flags: bits of `FrameFlag`. Reserved bits are kept.
    """

    type: int
    flags: int
    stream_id: int
    frame_id: int
    payload: bytes


Frame = Notify | Ack | Control | RawFrame
"""The classes of frame that `decode_frames` returns."""

Actions = Mapping[str, Value | type_unset] | Iterable[Action]
"""The actions of an ACK to encode: ``{"scope.name": value}``, or `Action` objects."""
