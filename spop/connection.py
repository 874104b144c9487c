"""The protocol's two ends as state machines without I/O: bytes in, events and bytes out.

`AgentConnection` is the agent's end, `EngineConnection` HAProxy's. The caller has the socket. It
gives the received bytes to ``receive_data()``, acts on the events that it returns, and sends all
of ``data_to_send()``. When `should_close` is true and those bytes are sent, it closes the socket.

A table has what is allowed in a state: state, frame type, next state. A known frame that is not
in it is an error (status 4). A frame of an unknown type is skipped (section 3.2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from spop import codec
from spop.agreement import Agreement, agree
from spop.constants import (
    DEFAULT_MAX_FRAME_SIZE,
    DEFAULT_MAX_PAYLOAD_SIZE,
    HAPROXY_FRAME_SIZE,
    LENGTH_SIZE,
    MAX_TEXT_SIZE,
    MIN_FRAME_SIZE,
    Capability,
    FrameFlag,
    FrameType,
    Status,
)
from spop.dispatch import Deferred, Dispatcher, Intake
from spop.errors import (
    FrameTooBigError,
    HandshakeError,
    InvalidFrameError,
    LocalProtocolError,
    ProtocolError,
)
from spop.frames import Ack, Actions, Control, Frame, Message, Notify, Peer
from spop.handshake import agent_hello, disconnect_reason
from spop.values import Buffer, DecodedValue, UInt32

__all__ = [
    "AgentConnection",
    "AgentEvent",
    "Disconnect",
    "EngineConnection",
    "EngineEvent",
    "Hello",
    "State",
]

ALL_CAPABILITIES = frozenset({Capability.FRAGMENTATION, Capability.PIPELINING, Capability.ASYNC})
MAX_IN_FLIGHT = 1000
"""The default number of NOTIFY frames of one connection that may wait for their handlers."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The handshake succeeded. NOTIFY frames may follow, but not after a health check."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The connection ends: a DISCONNECT frame came, or we send one.

    Attributes:
        code: the status code (section 3.5); a peer may use others.
        message: the text of the peer or of our error.
        remote: the peer ended the connection.
    """

    code: int
    message: str
    remote: bool


class State(Enum):
    """Where a connection is in its life (section 3.2.3)."""

    HELLO = auto()
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


_OPEN, _CLOSED = State.OPEN, State.CLOSED
UNORDERED = frozenset({Capability.PIPELINING, Capability.ASYNC})
"""With either of these, more than one NOTIFY may wait for its ACK."""

_AGENT_STATES = {
    State.HELLO: {
        FrameType.HAPROXY_HELLO: State.OPEN,
        FrameType.HAPROXY_DISCONNECT: State.CLOSING,
    },
    State.OPEN: {
        FrameType.NOTIFY: State.OPEN,
        FrameType.UNSET: State.OPEN,
        FrameType.HAPROXY_DISCONNECT: State.CLOSING,
    },
}

_ENGINE_STATES = {
    State.HELLO: {
        FrameType.AGENT_HELLO: State.OPEN,
        FrameType.AGENT_DISCONNECT: State.CLOSED,
    },
    State.OPEN: {
        FrameType.ACK: State.OPEN,
        FrameType.AGENT_DISCONNECT: State.CLOSED,
    },
    State.CLOSING: {
        FrameType.ACK: State.CLOSING,
        FrameType.AGENT_HELLO: State.CLOSING,
        FrameType.AGENT_DISCONNECT: State.CLOSED,
    },
}

_FRAME_TYPES = frozenset(FrameType)

AgentEvent = Hello | Notify | Deferred | Disconnect
EngineEvent = Hello | Ack | Disconnect


class _Connection:
    """The state and the bytes to send, of both ends."""

    __slots__ = ("_out", "state")
    _states: dict[State, dict[FrameType, State]]
    _disconnect_type: FrameType

    def __init__(self, max_frame_size: int) -> None:
        if max_frame_size < MIN_FRAME_SIZE:
            raise ValueError(f"max_frame_size is {max_frame_size}, {MIN_FRAME_SIZE} at least")
        self.state: State = State.HELLO
        self._out: list[bytes | bytearray] = []

    @property
    def should_close(self) -> bool:
        """Close the socket once `data_to_send` is sent."""
        return self.state in (State.CLOSING, State.CLOSED)

    def data_to_send(self) -> bytes | bytearray:
        """The bytes to send now, empty if there are none. The next call does not return them."""
        out = self._out
        if not out:
            return b""
        if len(out) == 1:
            return out.pop()
        data = b"".join(out)
        out.clear()
        return data

    def _advance(self, frame: Frame) -> bool:
        """Go to the frame's next state. False: its type is unknown, skip it (section 3.2.2)."""
        type_ = frame.type
        state = self._states[self.state].get(type_)  # type: ignore[call-overload]
        if state is None:
            if type_ not in _FRAME_TYPES:
                return False
            name = FrameType(type_).name.replace("_", "-")
            raise InvalidFrameError(f"{name} frame in state {self.state.name}")
        self.state = state
        return True

    def _send_control(self, type_: FrameType, items: dict[str, Any]) -> None:
        self._out.append(codec.encode_control(type_, items))

    def _send_disconnect(self, code: int, message: str) -> None:
        items = {"status-code": UInt32(code), "message": message}
        self._send_control(self._disconnect_type, items)


class AgentConnection(_Connection):
    """The agent's end of one connection.

    Args:
        max_frame_size: the largest frame in bytes that is offered to the peer.
        max_payload_size: the largest payload in bytes that is put together from fragments. A
            larger one is answered with ACK and ABORT.
        capabilities: announced if the peer has them, too.
        max_in_flight: number of NOTIFY events without an ACK at which no further ones are
            given. It is 1 while pipelining is not in force, so that ACKs keep their order.
        dispatcher: answers NOTIFY frames at once. Without it each becomes a `Notify` event.
        address: the peer's address, for `Peer`.
        is_ready: asked when a health check comes; one that is not ready is refused with status 13.

    Attributes:
        agreement: what this connection answered to HELLO.
        intake: the received bytes. A fast path shares it.
    """

    __slots__ = (
        "_capabilities", "_dispatcher", "_is_ready", "_max_in_flight", "_says_why", "address",
        "agreement", "intake",
    )  # fmt: skip

    state: State

    _states = _AGENT_STATES
    _disconnect_type = FrameType.AGENT_DISCONNECT

    def __init__(
        self,
        *,
        max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
        max_payload_size: int = DEFAULT_MAX_PAYLOAD_SIZE,
        capabilities: frozenset[str] = ALL_CAPABILITIES,
        max_in_flight: int = MAX_IN_FLIGHT,
        dispatcher: Dispatcher | None = None,
        address: str = "",
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(max_frame_size)
        self._is_ready = is_ready
        self._says_why = True
        self._capabilities = capabilities
        self._max_in_flight = max_in_flight
        self._dispatcher = dispatcher or Dispatcher()
        self.address: str = address
        self.agreement: Agreement | None = None
        self.intake: Intake = Intake(max_frame_size, max_payload_size)

    @property
    def peer(self) -> Peer | None:
        """What HELLO agreed on; None before it."""
        return self.intake.peer

    @property
    def max_frame_size(self) -> int:
        """The largest frame in bytes: our own limit until HELLO, then the lower of both."""
        return self.intake.max_frame_size

    @property
    def in_flight(self) -> int:
        """Number of NOTIFY events that are not acknowledged."""
        return self.intake.in_flight

    @property
    def stalled(self) -> bool:
        """The bytes to send must be sent before more frames are answered. Then call `resume`."""
        return self.intake.suspended

    @property
    def paused(self) -> bool:
        """No more frames are answered until an `acknowledge`, or, if `stalled`, until the bytes
        to send are sent. Stop reading the socket until then, and call `resume`."""
        return self.intake.paused

    @property
    def at_rest(self) -> bool:
        """Open, with no partial frame, no NOTIFY that waits for a handler, nothing to send."""
        return self.intake.at_rest and not self._out

    def data_to_send(self) -> bytes | bytearray:
        """As for both ends. First come the ACKs that the dispatcher has written."""
        acks, data = self.intake.take_acks(), super().data_to_send()
        return acks + data if acks else data

    def negotiated(self) -> dict[str, Any]:
        """What HELLO agreed on, in types of JSON, for `resume_from` in another process."""
        assert self.peer is not None
        return {
            "address": self.peer.address,
            "version": self.peer.version,
            "max_frame_size": self.peer.max_frame_size,
            "capabilities": sorted(self.peer.capabilities),
            "engine_id": self.peer.engine_id,
            "little_endian": self.intake.little_endian,
            "whole": self.intake.whole,
        }

    def resume_from(self, negotiated: dict[str, Any]) -> Peer:
        """Be open, in place of a connection that is `at_rest` in another process."""
        peer = Peer(
            negotiated["address"],
            negotiated["version"],
            negotiated["max_frame_size"],
            frozenset(negotiated["capabilities"]),
            negotiated["engine_id"],
        )
        self.intake.little_endian = negotiated["little_endian"]
        self.intake.whole = negotiated["whole"]
        self._open(peer)
        return peer

    def _open(self, peer: Peer) -> None:
        """NOTIFY frames may come, within the limits of HELLO (section 3.2.1)."""
        self.state = State.OPEN
        intake = self.intake
        intake.peer = peer
        intake.max_frame_size = peer.max_frame_size
        intake.takes_fragments = Capability.FRAGMENTATION in peer.capabilities
        if not peer.capabilities.isdisjoint(UNORDERED):
            intake.max_in_flight = self._max_in_flight
        intake.is_open = True

    def _close(self) -> None:
        """Skip all further frames."""
        self.state = State.CLOSING
        self.intake.close()

    def receive_data(self, data: Buffer, end: int | None = None) -> list[AgentEvent]:
        """Take received bytes: `data`, or its first `end` bytes.

        Returns:
            The events. NOTIFY frames that the dispatcher has answered make none.
        """
        if self.should_close:
            return []
        try:
            frames, acks = self._dispatcher.receive(self.intake, data, end)
        except ProtocolError as error:
            return self.go_on([], b"", error)
        # Bytes that complete no frame make neither.
        return self.go_on(frames, acks) if acks or frames else []

    def go_on(
        self,
        frames: list[Frame | Deferred],
        acks: bytes,
        error: ProtocolError | None = None,
    ) -> list[AgentEvent]:
        """Go on after `Dispatcher.receive` has returned `frames` and `acks`, or raised an error.

        A fast path that shares this connection's `intake` stops there.
        """
        events: list[AgentEvent] = []
        intake = self.intake
        if error is not None:
            self._fail(error, events)
        try:
            while acks or frames:
                if acks:
                    self._out.append(acks)
                    intake.suspended |= len(acks) >= self._dispatcher.max_answer_size
                for frame in frames:
                    self._handle(frame, events)
                if self.should_close or intake.paused or not intake.unread:
                    break
                frames, acks = self._dispatcher.receive(intake, b"")
        except ProtocolError as failure:
            self._fail(failure, events)
        return events

    def resume(self) -> list[AgentEvent]:
        """Go on with the frames that were held back while `paused`."""
        self.intake.suspended = False
        return self.receive_data(b"") if self.intake.unread else []

    def receive_eof(self) -> list[AgentEvent]:
        """The peer has closed its side. A partial frame or payload is dropped."""
        if self.state is State.CLOSED:
            return []
        was_open = not self.should_close
        self.state = State.CLOSED
        self.intake.close()
        return [Disconnect(Status.IO, "connection closed by peer", True)] if was_open else []

    def acknowledge(self, stream_id: int, frame_id: int, actions: Actions = ()) -> None:
        """Answer a NOTIFY event (section 3.2.7). Then call `resume`.

        Raises:
            FrameTooBigError: the ACK does not fit a frame. Nothing was sent: answer with fewer
                actions.
            LocalProtocolError: the connection is no longer open.
            TypeError, OverflowError, ValueError: an action can't be encoded.
        """
        ack = codec.encode_ack(
            stream_id, frame_id, actions, little_endian=self.intake.little_endian
        )
        length = len(ack) - LENGTH_SIZE
        if length > self.max_frame_size:
            raise FrameTooBigError(f"ACK of {length} bytes, {self.max_frame_size} at most")
        if self.state is not _OPEN:
            raise LocalProtocolError(f"no ACK in state {self.state.name}")
        self._out.append(ack)
        self.intake.in_flight -= 1

    def disconnect(self, code: int = Status.NORMAL, message: str = "normal") -> None:
        """End the connection with an AGENT-DISCONNECT frame (section 3.2.9), if it is not
        ending."""
        if not self.should_close:
            self._send_disconnect(code, message)
            self._close()

    def _send_control(self, type_: FrameType, items: dict[str, Any]) -> None:
        little_endian = self.intake.little_endian
        self._out.append(codec.encode_control(type_, items, little_endian=little_endian))

    def _handle(self, frame: Frame | Deferred, events: list[AgentEvent]) -> None:
        if isinstance(frame, Deferred) or (isinstance(frame, Notify) and self.state is _OPEN):
            events.append(frame)
        elif self._advance(frame) and isinstance(frame, Control):
            self._control(frame, events)

    def _control(self, frame: Control, events: list[AgentEvent]) -> None:
        if frame.type is FrameType.HAPROXY_HELLO:
            events.append(self._hello(frame.items))
            # A peer has to wait for the answer (section 3.2.4). One that does not waits for its turn.
            self.intake.suspended = self.intake.unread > 0
            return
        code, message = disconnect_reason(frame.items)
        self._send_disconnect(Status.NORMAL, Status.NORMAL.message)
        self._close()
        events.append(Disconnect(code, message, True))

    def _hello(self, items: dict[str, DecodedValue]) -> Hello:
        """Answer HAPROXY-HELLO with AGENT-HELLO (sections 3.2.4 and 3.2.5)."""
        intake = self.intake
        agreed = agree(
            items,
            whole=intake.whole,
            little_endian=intake.little_endian,
            max_frame_size=intake.max_frame_size,
            capabilities=self._capabilities,
        )
        if agreed.healthcheck and not self._is_ready():
            # HAProxy 1.7 crashes on a DISCONNECT in answer to its health check.
            self._says_why = agreed.version != "1.0"
            raise HandshakeError("the agent is not ready", Status.RESOURCE)
        self._out.append(agreed.answer)
        peer = self.agree_as(agreed)
        if peer.healthcheck:
            self._close()
        return Hello(peer)

    def agree_as(self, agreement: Agreement) -> Peer:
        """HAPROXY-HELLO was answered with this agreement: be open."""
        self.agreement = agreement
        peer = Peer(self.address, *agreement[:-1])
        self._open(peer)
        return peer

    def _fail(self, error: ProtocolError, events: list[AgentEvent]) -> None:
        text = str(error)[:MAX_TEXT_SIZE]
        # HAProxy 1.7.0 crashes if a health check is answered with a status that it doesn't know.
        if self.peer is not None or (self._says_why and not self.intake.whole):
            self._send_disconnect(error.status, text)
        self._close()
        events.append(Disconnect(error.status, text, False))


class EngineConnection(_Connection):
    """HAProxy's end of one connection.

    Args:
        max_frame_size: the largest frame in bytes that is offered to the agent.
        capabilities: announced to the agent. Fragmentation makes no difference here: ACKs are
            never fragmented.
        fragments: send a payload that fits no frame in fragments, if the agent takes them.
        engine_id: names the engine of this connection. Async needs it.
        healthcheck: only check the agent's health.

    Attributes:
        waiting: stream-id and frame-id of each NOTIFY whose ACK has not come.
        pipelined: more than one NOTIFY may wait for its ACK.
        asynchronous: an ACK may come on any connection of the engine.
    """

    __slots__ = (
        "_capabilities",
        "_engine_id",
        "_fragments",
        "_healthcheck",
        "_max_frame_size",
        "_partial",
        "asynchronous",
        "peer",
        "pipelined",
        "waiting",
    )

    state: State
    pipelined: bool
    asynchronous: bool

    _states = _ENGINE_STATES
    _disconnect_type = FrameType.HAPROXY_DISCONNECT

    def __init__(
        self,
        *,
        max_frame_size: int = HAPROXY_FRAME_SIZE,
        capabilities: frozenset[str] = ALL_CAPABILITIES,
        fragments: bool = True,
        engine_id: str | None = None,
        healthcheck: bool = False,
    ) -> None:
        super().__init__(max_frame_size)
        self.peer: Peer | None = None
        self._max_frame_size = max_frame_size
        self._partial = bytearray()
        self._capabilities = capabilities
        self._fragments = fragments
        self._engine_id = engine_id
        self._healthcheck = healthcheck
        self.waiting: set[tuple[int, int]] = set()
        self.pipelined = self.asynchronous = False
        self._send_hello()

    @property
    def max_frame_size(self) -> int:
        """The largest frame in bytes: one's own limit until HELLO, then what was agreed on."""
        return self._max_frame_size

    def _send_hello(self) -> None:
        items: dict[str, Any] = {
            "supported-versions": "2.0",
            "max-frame-size": UInt32(self._max_frame_size),
            # HAProxy's health checks announce none.
            "capabilities": "" if self._healthcheck else ",".join(sorted(self._capabilities)),
        }
        if self._engine_id is not None:
            items["engine-id"] = self._engine_id
        if self._healthcheck:
            items["healthcheck"] = True
        self._send_control(FrameType.HAPROXY_HELLO, items)

    def notify(self, stream_id: int, frame_id: int, messages: Iterable[Message]) -> None:
        """Send a NOTIFY, in fragments if it does not fit a frame (section 3.2.6).

        Raises:
            FrameTooBigError: it does not fit a frame, and fragments can't be sent.
            LocalProtocolError: the connection is not open, or the last NOTIFY was not
                answered yet and pipelining is not in force.
            TypeError, OverflowError, ValueError: an argument can't be encoded.
        """
        if self.state is not _OPEN or (self.waiting and not self.pipelined):
            raise self._not_free()
        frame = codec.encode_notify(stream_id, frame_id, messages)
        if len(frame) - LENGTH_SIZE <= self._max_frame_size:
            self._out.append(frame)
        else:
            self._send_fragments(stream_id, frame_id, frame)
        self.waiting.add((stream_id, frame_id))

    def _not_free(self) -> LocalProtocolError:
        if self.state is not State.OPEN:
            return LocalProtocolError(f"no NOTIFY in state {self.state.name}")
        return LocalProtocolError("the last NOTIFY was not answered; pipelining is off")

    def _send_fragments(self, stream_id: int, frame_id: int, frame: bytearray) -> None:
        size = f"NOTIFY of {len(frame) - LENGTH_SIZE} bytes, {self._max_frame_size} at most"
        peer = self.peer
        if not self._fragments:
            raise FrameTooBigError(f"{size}, and fragments are not to be sent")
        if peer is None or Capability.FRAGMENTATION not in peer.capabilities:
            raise FrameTooBigError(
                f"{size}, and the agent takes no fragments", Status.FRAGMENTATION_NOT_SUPPORTED
            )
        header = len(codec.encode_raw_frame(FrameType.NOTIFY, 0, stream_id, frame_id, b""))
        room = self._max_frame_size - header + LENGTH_SIZE
        with memoryview(frame)[header:] as payload:
            for offset in range(0, len(payload), room):
                type_ = FrameType.NOTIFY if offset == 0 else FrameType.UNSET
                flags = FrameFlag.FIN if offset + room >= len(payload) else 0
                part = payload[offset : offset + room]
                self._send_raw(type_, flags, stream_id, frame_id, part)

    def _send_raw(self, *frame: Any) -> None:
        self._out.append(codec.encode_raw_frame(*frame))

    def begin_fragments(self, stream_id: int, frame_id: int, payload: Buffer) -> None:
        """Send a first fragment by hand; `continue_fragments` or `abort` must follow."""
        if self.state is not _OPEN or (self.waiting and not self.pipelined):
            raise self._not_free()
        self._send_raw(FrameType.NOTIFY, 0, stream_id, frame_id, payload)
        self.waiting.add((stream_id, frame_id))

    def continue_fragments(
        self, stream_id: int, frame_id: int, payload: Buffer, *, final: bool
    ) -> None:
        """Send a further fragment of a payload that was begun."""
        flags = FrameFlag.FIN if final else 0
        self._send_raw(FrameType.UNSET, flags, stream_id, frame_id, payload)

    def abort(self, stream_id: int, frame_id: int) -> None:
        """Give up a payload whose last fragment was not sent. No ACK will come for it."""
        flags = FrameFlag.FIN | FrameFlag.ABORT
        self._send_raw(FrameType.UNSET, flags, stream_id, frame_id, b"")
        self.waiting.discard((stream_id, frame_id))

    def disconnect(self, code: int = Status.NORMAL, message: str = "normal") -> None:
        """Send HAPROXY-DISCONNECT; the agent answers it and closes."""
        if self.state in (State.HELLO, State.OPEN):
            self._send_disconnect(code, message)
            self.state = State.CLOSING

    @property
    def should_close(self) -> bool:
        """Close the socket once `data_to_send` is sent: the agent's last word was heard."""
        return self.state is State.CLOSED

    def receive_data(self, data: Buffer, end: int | None = None) -> list[EngineEvent]:
        """Take what arrived: `data`, or its first `end` bytes. Returns what happened."""
        if end is None:
            end = len(data)
        if self._partial:
            self._partial += memoryview(data)[:end]
            data, end = self._partial, len(self._partial)
        events: list[EngineEvent] = []
        waiting, consumed = self.waiting, 0
        try:
            while consumed < end and self.state is not _CLOSED:
                before = consumed
                # HAProxy passes over what it can't read in an ACK.
                frames, consumed = codec.decode_frames(
                    data, consumed, end, max_frame_size=self._max_frame_size, lenient=True
                )
                for frame in frames:
                    if type(frame) is not Ack or self.state is not _OPEN:
                        self._handle(frame, events)
                    elif (ids := (frame.stream_id, frame.frame_id)) in waiting:
                        waiting.remove(ids)  # As `_ack` does.
                        events.append(frame)
                    else:
                        self._ack(frame, events)
                if consumed == before:
                    break
        except ProtocolError as error:
            message = shown = str(error)[:MAX_TEXT_SIZE]
            if self.state is State.HELLO:  # Mostly an agent that speaks HTTP or TLS.
                shown += f"; it begins with {bytes(memoryview(data)[:end][:16])!r}"
            self.disconnect(error.status, message)
            self.state = State.CLOSED
            events.append(Disconnect(error.status, shown, False))
        if self.state is _CLOSED:
            consumed = end
        if data is self._partial:
            del self._partial[:consumed]
        elif consumed < end:
            self._partial += memoryview(data)[consumed:end]
        return events

    def receive_eof(self) -> list[EngineEvent]:
        """The agent closed its side."""
        if self.state is State.CLOSED:
            return []
        self.state = State.CLOSED
        return [Disconnect(Status.IO, "connection closed by the agent", True)]

    def _handle(self, frame: Frame, events: list[EngineEvent]) -> None:
        # Behind HELLO, HAProxy skips frames that may not come now.
        unexpected = frame.type not in self._states.get(self.state, ())
        if (unexpected and self.state is not State.HELLO) or not self._advance(frame):
            return
        if isinstance(frame, Ack):
            self._ack(frame, events)
        elif isinstance(frame, Control):
            if frame.type is FrameType.AGENT_DISCONNECT:
                events.append(Disconnect(*disconnect_reason(frame.items), True))
            elif self.state is State.OPEN:
                events.append(self._hello(frame.items))

    def _ack(self, ack: Ack, events: list[EngineEvent]) -> None:
        ids = ack.stream_id, ack.frame_id
        if ids in self.waiting:
            self.waiting.remove(ids)
        elif not self.asynchronous:
            # One that was given up may still be answered; in lock step there is no such one.
            if self.waiting and not self.pipelined:
                raise ProtocolError(f"ACK for {ids}", Status.FRAME_ID_NOT_FOUND)
            return
        events.append(ack)

    def _hello(self, items: dict[str, DecodedValue]) -> Hello:
        """Check AGENT-HELLO (section 3.2.5)."""
        version, self._max_frame_size, theirs = agent_hello(items, self._max_frame_size)
        capabilities = theirs & (self._capabilities | {Capability.FRAGMENTATION})
        size, engine_id = self._max_frame_size, self._engine_id
        self.peer = Peer("", version, size, capabilities, engine_id, self._healthcheck)
        self.pipelined = not capabilities.isdisjoint(UNORDERED)
        self.asynchronous = Capability.ASYNC in capabilities
        return Hello(self.peer)
