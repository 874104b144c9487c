"""Streams of frames as a peer may send them, and connections that take them in any pieces."""

from __future__ import annotations

import contextlib
import importlib
import select
import socket
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from hypothesis import strategies as st
from implementations import intake_class, route_class

from spop import Message, codec
from spop.constants import FrameType
from spop.counters import Cell
from spop.errors import ProtocolError
from spop.frames import Control
from spop.parameters import INLINE, LEFT, Parameter

READ = 1
MAX_FRAME_SIZE = 400
MAX_PAYLOAD_SIZE = 500
COUNTED = (
    Cell.NOTIFIES,
    Cell.ACKS,
    Cell.UNKNOWN_MESSAGES,
    Cell.PAYLOADS_TOO_BIG,
    Cell.TOO_MANY_MESSAGES,
)


class Encoding(NamedTuple):
    """How a HAProxy writes the flags of its frames."""

    little_endian: bool = False
    none: bool = False

    def frame(self, type_: int, flags: int, stream_id: int, payload: bytes) -> bytes:
        return bytes(
            codec.encode_raw_frame(
                type_,
                0 if self.none else flags,
                stream_id,
                1 if stream_id else 0,
                payload,
                little_endian=self.little_endian,
            )
        )


ENCODINGS = {
    "HAProxy 1.8 and later": Encoding(),
    "SPOP 1.0": Encoding(little_endian=True),
    "HAProxy 1.7": Encoding(none=True),
}

values = st.one_of(st.none(), st.integers(0, 5000), st.text(max_size=40), st.binary(max_size=80))
messages = st.builds(
    Message,
    st.sampled_from(["inline", "inline", "left", "failing", "large", "unknown"]),
    st.lists(st.tuples(st.sampled_from("aaabc"), values), min_size=1, max_size=3),
)
lists = st.lists(messages, min_size=1, max_size=4)
payloads = lists.map(lambda sent: bytes(codec.encode_messages(sent)))
stream_ids = st.sampled_from([1, 2, 300])
controls = st.sampled_from(
    [
        (FrameType.HAPROXY_DISCONNECT, {"status-code": 0, "message": "normal"}),
        (FrameType.HAPROXY_HELLO, {"supported-versions": "2.0"}),
        (FrameType.AGENT_HELLO, {"version": "2.0"}),
    ]
)


def rarely(draw: st.DrawFn) -> bool:
    """True for one draw in ten. (Numbers at the ends of a range are drawn more often.)"""
    return draw(st.integers(0, 9)) == 5


@st.composite
def fragmented(draw: st.DrawFn, encoding: Encoding) -> bytes:
    """A NOTIFY in fragments: whole, cancelled, too large, or with one that is lost or strange."""
    payload = draw(payloads)
    cuts = draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=4))
    if rarely(draw):
        payload += bytes(MAX_PAYLOAD_SIZE)
    cuts = sorted({*cuts, *range(300, len(payload), 300)})
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    stream_id = draw(stream_ids)
    types = [FrameType.NOTIFY] + [FrameType.UNSET] * len(cuts)
    flags = [0] * len(cuts) + [3 if rarely(draw) else 1]
    frames = [
        encoding.frame(type_, flag, stream_id, part)
        for type_, flag, part in zip(types, flags, parts, strict=True)
    ]
    if rarely(draw):
        del frames[draw(st.integers(0, len(frames) - 1))]
    if rarely(draw):
        frames.insert(1, encoding.frame(draw(st.integers(0, 9)), 0, draw(stream_ids), b""))
    return b"".join(frames)


def frames_of(encoding: Encoding) -> st.SearchStrategy[bytes]:
    """Frames as bytes."""
    notify = st.builds(encoding.frame, st.just(3), st.just(1), stream_ids, payloads)
    control = controls.map(lambda c: encoding.frame(c[0], 1, 0, bytes(codec.encode_kv_list(c[1]))))
    unknown = st.builds(encoding.frame, st.just(77), st.just(1), stream_ids, st.binary(max_size=9))
    often = [notify] * 6 + ([] if encoding.none else [fragmented(encoding)] * 6)
    return st.one_of(*often, control, unknown)


no_frames = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"", bytes(4)]),
    st.sampled_from([6, MAX_FRAME_SIZE, MAX_FRAME_SIZE + 1, 2**32 - 1]).map(
        lambda length: length.to_bytes(4, "big") + bytes(500)
    ),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """The bytes that a HAProxy sends, from its HELLO on. Some streams end in garbage, and a few
    are damaged."""
    encoding = ENCODINGS[draw(st.sampled_from(sorted(ENCODINGS)))]
    hello = codec.encode_kv_list({"supported-versions": "2.0"})
    data = bytearray(encoding.frame(FrameType.HAPROXY_HELLO, 1, 0, bytes(hello)))
    for frame in draw(st.lists(frames_of(encoding), min_size=1, max_size=8)):
        data += frame
    data += draw(no_frames)
    if rarely(draw):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The pieces between places in the data. Some may be empty."""
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def implementations() -> list[tuple[ModuleType, ModuleType]]:
    """The modules of the dispatcher and of the fast path, of each implementation there is."""
    suffixes = ["_py"] if codec.IMPLEMENTATION == "python" else ["_py", ""]
    return [
        (
            importlib.import_module(f"spop._dispatch{suffix}"),
            importlib.import_module(f"spop._port{suffix}"),
        )
        for suffix in suffixes
    ]


class Taken:
    """A connection that takes a stream in, as the server does, and what came of it.

    HELLO opens it and DISCONNECT ends it. What the dispatcher leaves is answered at once.
    """

    def __init__(self, dispatch: ModuleType, max_in_flight: int = 1, **limits: int) -> None:
        self.frames: list[Any] = []
        self.acks = bytearray()
        self.calls: list[Any] = []
        self.failures: list[str] = []
        self.error: Any = None
        self.ended = False
        parameters = [Parameter("a"), Parameter("b", default=None), Parameter("c", default=0)]
        routes = [
            route_class(dispatch)("inline", self._inline, parameters),
            route_class(dispatch)("large", self._large),
            route_class(dispatch)("failing", self._failing, (), INLINE, b"on error"),
            route_class(dispatch)("left", self._inline, parameters, LEFT),
        ]
        self.dispatcher = dispatch.Dispatcher(
            routes, self._failed, max_messages=5, max_arguments=10, **limits
        )
        self.intake = intake_class(dispatch)(MAX_FRAME_SIZE, MAX_PAYLOAD_SIZE)
        self.intake.max_in_flight = max_in_flight

    def _inline(self, a: Any, b: Any, c: Any) -> dict[str, Any]:
        self.calls.append((a, b, c))
        return {"sess.a": a, "txn.c": c}

    def _large(self) -> dict[str, Any]:
        return {"txn.large": "x" * 300}

    def _failing(self) -> None:
        raise ValueError("no")

    def _failed(self, name: str, error: BaseException) -> None:
        self.failures.append(f"{name}: {error}")

    def feed(self, piece: bytes) -> None:
        """Take a piece of the stream in, and all that it makes possible."""
        more = self.receive(piece)
        assert self.intake.size <= MAX_FRAME_SIZE + MAX_PAYLOAD_SIZE + len(piece)
        while more:
            more = self.receive(b"")
        assert self.intake.size <= MAX_FRAME_SIZE + MAX_PAYLOAD_SIZE or self.is_over

    @property
    def is_over(self) -> bool:
        return self.ended or self.error is not None

    def receive(self, data: bytes) -> bool:
        """Give data to the dispatcher. Returns whether it may have more to give."""
        try:
            frames, acks = self.dispatcher.receive(self.intake, data)
        except ProtocolError as error:
            self.fail(error)
            return False
        self.send(acks)
        for frame in frames:
            self.take(frame)
        return bool(frames or acks) and not self.ended

    def send(self, acks: bytes) -> None:
        self.acks += acks

    def fail(self, error: Exception) -> None:
        self.error = type(error), str(error), getattr(error, "status", None)

    def take(self, frame: Any) -> None:
        """Do what the server does with a frame that the dispatcher left."""
        if hasattr(frame, "calls"):
            calls = [(call.route.name, call.values) for call in frame.calls]
            frame = frame.stream_id, frame.frame_id, frame.actions, calls
            self.intake.in_flight -= 1
        self.frames.append(frame)
        if isinstance(frame, Control):
            self.ended = frame.type is not FrameType.HAPROXY_HELLO
            self.intake.takes_fragments = True
            self.intake.is_open = True
            if self.ended:
                self.intake.close()

    def outcome(self) -> dict[str, Any]:
        """All that may not depend on how the stream was cut, nor on the implementation."""
        intake = self.intake
        # A first frame of a wrong length may be refused before its flags have come.
        refused = self.error is not None and not self.frames
        flags = None if refused else (intake.little_endian, intake.whole)
        state = intake.begun, intake.in_flight, flags
        # Behind an error or a DISCONNECT nobody looks at what is kept.
        kept = None if self.is_over else (intake.unread, intake.size, intake.at_rest)
        return {
            "frames": list(self.frames),
            "acks": bytes(self.acks),
            "calls": self.calls,
            "failures": self.failures,
            "error": self.error,
            "ended": self.ended,
            "state": (*state, kept),
            "counted": {cell.name: self.dispatcher.cells[cell] for cell in COUNTED},
            "unknown": self.dispatcher.unknown,
        }


class TakenFromSocket(Taken):
    """A connection whose stream comes through a socket and the fast path.

    Args:
        buffer: bytes that the fast path reads at once.
        is_full: what was sent before fills the socket, so that no ACK can be sent at first.
    """

    def __init__(
        self,
        dispatch: ModuleType,
        port: ModuleType,
        buffer: int = 65536,
        is_full: bool = False,
        **limits: int,
    ) -> None:
        super().__init__(dispatch, **limits)
        self.engine, self.ours = socket.socketpair()
        self.ours.setblocking(False)
        self.engine.setblocking(False)
        self.sent_before = self._fill() if is_full else 0
        shared = port.FastPaths(self.dispatcher, bytearray(buffer), self._ready, self._go_on, None)
        self.fast_path = port.FastPath(shared, self.intake, self.ours.fileno(), "connection")
        self.fast_path.enabled = True

    def __enter__(self) -> TakenFromSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.ours.close()

    def _fill(self) -> int:
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        size = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                size += self.ours.send(b"before")
        return size

    def feed(self, piece: bytes) -> None:
        self.engine.sendall(piece)
        self._see_to_the_socket()

    def finish(self) -> None:
        """Close the engine's side. Whoever reads finds the end, unless all is over before."""
        self.engine.shutdown(socket.SHUT_WR)
        self._see_to_the_socket()
        self.drain()

    def _see_to_the_socket(self) -> None:
        while not self.is_over and select.select([self.ours], [], [], 0)[0]:
            self.fast_path(READ)
            self._take_back()

    def _take_back(self) -> None:
        """Take what the dispatcher keeps for the fast path, as if it had left it."""
        if self._take_kept():
            self._receive_more()

    def _take_kept(self) -> bool:
        kept = self.dispatcher.take_back(self.intake)
        for deferred in kept:
            self.take(deferred)
        return bool(kept)

    def _receive_more(self) -> None:
        while not self.is_over and self.receive(b""):
            pass

    def _ready(self, connection: object, events: int) -> None:
        assert (connection, events) == ("connection", READ)
        data = self.ours.recv(65536)
        if not data:
            self.fail(EOFError())
            return
        super().feed(data)

    def _go_on(
        self, connection: object, frames: list[Any], unsent: bytes, error: Exception | None
    ) -> None:
        assert connection == "connection"
        self._take_kept()  # What comes behind `frames` waits until they are taken.
        if error is not None:
            assert (frames, unsent) == ([], b"")
            self.fail(error)
            return
        self.send(unsent)
        for frame in frames:
            self.take(frame)
        self._receive_more()

    def send(self, acks: bytes) -> None:
        while acks:
            try:
                acks = acks[self.ours.send(acks) :]
            except BlockingIOError:
                self.drain()

    def drain(self) -> None:
        for data in self._arrived():
            before = min(self.sent_before, len(data))
            self.sent_before -= before
            self.acks += data[before:]

    def _arrived(self) -> Iterator[bytes]:
        while select.select([self.engine], [], [], 0)[0]:
            yield self.engine.recv(65536)
