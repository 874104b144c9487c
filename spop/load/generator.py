"""The load of one process: its connections, their frames, and the loop that sends and matches.

Each connection has a range of stream-ids, one for each frame that it may have in flight. The bytes
of each NOTIFY are made once. An ACK frees its stream-id for the next frame. With async an ACK may
come on any connection.

Without a rate each ACK is followed by the next NOTIFY (closed loop). With a rate NOTIFY frames fall
due at fixed times, even if the agent is too slow. The latency counts from the time at which a frame
was due (open loop), so that a slow agent can't hide its slowness.
"""

from __future__ import annotations

import select
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spop import codec
from spop.address import Address
from spop.client.dial import Endpoint, connect
from spop.connection import EngineConnection
from spop.constants import FLAGS_END, HAPROXY_FRAME_SIZE, LENGTH_SIZE, Capability, FrameType
from spop.errors import ProtocolError
from spop.frames import Ack, Message
from spop.haproxy_version import MAX_STREAMS, Version
from spop.load.acks import take_acks
from spop.load.connections import RING, Connection, Counting
from spop.load.histogram import Histogram
from spop.options import check_seconds

RECV_SIZE = 256 * 1024
RECONNECT = 0.1
"""Seconds until a lost connection is opened again."""
TICK = 0.05
"""Seconds after which the loop reads the clock at the latest."""
SPIN = 0.0001
"""The loop does not sleep in the last seconds before a frame is due, as it could oversleep."""

MODES = {
    "ping-pong": frozenset({Capability.FRAGMENTATION}),
    "pipelined": frozenset({Capability.FRAGMENTATION, Capability.PIPELINING}),
    "async": frozenset({Capability.FRAGMENTATION, Capability.PIPELINING, Capability.ASYNC}),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a generator.

    Attributes:
        depth: number of NOTIFY frames that a connection may have in flight; 1 in ping-pong.
        duration: seconds to measure. Either this or `count` is given.
        count: number of frames to measure.
        timeout: seconds to wait for a connection, a HELLO or an ACK. With a count, the
            generator ends when no ACK has come for this time.
        rate: frames a second; None: as many as are answered.
        expected: the actions that each ACK must have; None accepts any. An integer without a
            type may have any.
        engine_id: the engine-id of all connections.
        haproxy_version: connect as this HAProxy. Since 3.1 there is no async, `depth` is 20 at
            most, and each connection counts its stream-ids: 1, 3, 5 and so on.

    Raises:
        TypeError: a time is no number.
        ValueError: a time is out of range, or that HAProxy has no such mode.
    """

    address: Address
    mode: str = "pipelined"
    connections: int = 16
    depth: int = 20
    messages: Sequence[Message] = ()
    warm_up: float = 0.5
    duration: float | None = 5.0
    count: int | None = None
    rate: float | None = None
    timeout: float = 5.0
    max_frame_size: int = HAPROXY_FRAME_SIZE
    expected: dict[str, Any] | None = None
    engine_id: str = "spop-bench"
    haproxy_version: str | None = None

    def __post_init__(self) -> None:
        for name in ("warm_up", "duration", "timeout"):
            if getattr(self, name) is not None:
                check_seconds(name, getattr(self, name))
        if self.numbered and self.mode == "async":
            raise ValueError(f"HAProxy {self.haproxy_version} has no async")

    @property
    def numbered(self) -> bool:
        """Whether each connection counts its stream-ids."""
        version = self.haproxy_version and Version.of_haproxy(self.haproxy_version)
        return bool(version and version.rewritten)

    @property
    def capabilities(self) -> frozenset[str]:
        """What HELLO announces."""
        found = MODES[self.mode]
        return found - {Capability.FRAGMENTATION} if self.numbered else found

    @property
    def in_flight(self) -> int:
        """NOTIFY frames of a connection that may wait for their ACKs."""
        if self.mode == "ping-pong":
            return 1
        return min(self.depth, MAX_STREAMS) if self.numbered else self.depth


@dataclass(kw_only=True)
class Result:
    """The measurements after the warm-up.

    Attributes:
        frames: number of frames that were answered.
        seconds: duration of the measurement.
        cpu_seconds: processor time of the generator's processes.
        busy: the highest share of a processor that one of them used.
        agent_cpu_seconds: processor time of the agent's processes; None if not measured.
        errors: number of errors by kind.
        interrupted: it ended early, by Ctrl-C.
        with_actions: number of ACKs that were not empty, if any ACK was accepted.
    """

    frames: int = 0
    with_actions: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    busy: float = 0.0
    agent_cpu_seconds: float | None = None
    errors: Counter[str] = field(default_factory=Counter)
    histogram: Histogram = field(default_factory=Histogram)
    interrupted: bool = False

    def merge(self, other: Result) -> None:
        """Add the result of another process in the same time."""
        self.frames += other.frames
        self.with_actions += other.with_actions
        self.seconds = max(self.seconds, other.seconds)
        self.cpu_seconds += other.cpu_seconds
        self.busy = max(self.busy, other.busy)
        self.errors += other.errors
        self.histogram.merge(other.histogram)


class Generator:
    """Runs a plan in this thread.

    Args:
        progress: called five times a second with the number of answered frames, warm-up
            included, and whether they are measured now.
    """

    def __init__(
        self, plan: Plan, progress: Callable[[int, bool], object] = lambda frames, measuring: None
    ) -> None:
        self._plan = plan
        self._progress = progress
        kind = Counting if plan.numbered else Connection
        places = RING if plan.numbered else plan.in_flight
        self._sent = array("q", bytes(8 * (1 + plan.connections * places)))
        self._connections = deque(
            kind(1 + number * places, 1 + (number + 1) * places)
            for number in range(plan.connections)
        )
        self._by_fd: dict[int, Connection] = {}
        self._by_stream = [self._connections[0]] + [
            connection for connection in self._connections for _ in range(places)
        ]
        self._expected = bytes(codec.encode_actions(plan.expected or {}))
        self._learns = bool(plan.expected)
        self.stopped = False
        self._buffer = bytearray(RECV_SIZE)
        self._epoll = select.epoll()
        self._lost: deque[tuple[float, Connection]] = deque()
        self._due: deque[int] = deque()
        self._answered = 0
        self._result = Result()

    def run(self) -> Result:
        """Connect, warm up, measure, disconnect.

        Raises:
            OSError, SpopTimeoutError, DisconnectedError: a first connection can't be opened.
            FrameTooBigError: the messages fit no frame and the agent takes no fragments.
        """
        try:
            plan = self._plan
            for connection in self._connections:
                self._open(connection, plan.timeout)
            self._begin()
            if plan.warm_up:
                self._loop(plan.warm_up, None, False)
            self._result = Result()
            started, cpu = time.monotonic(), time.process_time()
            before = self._answered
            if plan.count is None:
                self._loop(plan.duration or 0.0, None, True)
            else:
                due = 0.0 if plan.rate is None else 1 / plan.rate
                self._loop(plan.timeout + due, before + plan.count, True)
            result = self._result
            result.seconds = time.monotonic() - started
            result.cpu_seconds = time.process_time() - cpu
            result.busy = result.cpu_seconds / result.seconds
            result.frames = self._answered - before
            self._count_unanswered()
            return result
        finally:
            for connection in self._connections:
                if connection.sock is not None:
                    connection.sock.close()
            self._epoll.close()

    # --- connections ---

    def _open(self, connection: Connection, timeout: float) -> None:
        plan = self._plan
        protocol = EngineConnection(
            max_frame_size=plan.max_frame_size,
            capabilities=plan.capabilities,
            fragments=not plan.numbered,
            engine_id=plan.engine_id,
        )
        sock = connect(Endpoint(plan.address), protocol, timeout, timeout).sock
        try:
            _check_mode(plan.mode, protocol)
            connection.make_frames(protocol, plan.messages)
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        connection.begin(sock, protocol, plan.in_flight)
        if len(self._buffer) < LENGTH_SIZE + protocol.max_frame_size:
            self._buffer = bytearray(LENGTH_SIZE + protocol.max_frame_size)
        self._by_fd[sock.fileno()] = connection
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _learn(self, data: bytes, max_frame_size: int) -> None:
        """Expect the encoding of the first ACK, if its values are those that are expected.

        The values of actions are not decoded later on, and an integer has several encodings.
        """
        end = LENGTH_SIZE + int.from_bytes(data[:LENGTH_SIZE], "big")
        if not FLAGS_END < end <= len(data) or data[LENGTH_SIZE] != FrameType.ACK:
            return
        self._learns = False
        (ack,), _ = codec.decode_frames(data, 0, end, max_frame_size=max_frame_size)
        if isinstance(ack, Ack) and _has(ack, data[:end], self._plan.expected or {}):
            _, offset = codec.decode_varint(data, FLAGS_END)
            _, offset = codec.decode_varint(data, offset)
            self._expected = data[offset:end]

    def _lose(self, connection: Connection, kind: str) -> None:
        """A connection has ended, and its frames in flight are lost. It is opened again later."""
        assert connection.sock is not None
        self._epoll.unregister(connection.sock.fileno())
        del self._by_fd[connection.sock.fileno()]
        connection.sock.close()
        connection.sock = None
        self._result.errors[kind] += 1
        if self._plan.mode != "async":
            for stream_id in range(connection.first, connection.last):
                if self._sent[stream_id]:
                    self._result.errors["lost"] += 1
                    self._sent[stream_id] = 0
        connection.free.clear()
        self._lost.append((time.monotonic() + RECONNECT, connection))

    def _reopen(self, end: int) -> None:
        """Open lost connections again, one by one, until the end of the measurement."""
        while self._lost and self._lost[0][0] <= time.monotonic():
            left = (end - time.monotonic_ns()) / 1e9
            if left <= 0:
                return
            _, connection = self._lost.popleft()
            try:
                self._open(connection, min(left, self._plan.timeout))
            except (OSError, ProtocolError):
                self._result.errors["not connected"] += 1
                self._lost.append((time.monotonic() + RECONNECT, connection))
            else:
                self._fill(connection)

    # --- the loop ---

    def _begin(self) -> None:
        if self._plan.rate is not None:
            self._interval = int(1e9 / self._plan.rate)
            self._next_due = time.monotonic_ns()
            return
        for connection in self._connections:
            self._fill(connection)

    def _loop(self, seconds: float, goal: int | None, measuring: bool) -> None:
        """Run for so many seconds. With a goal: until so many frames are answered, or none was
        for so many seconds."""
        limit = int(seconds * 1e9)
        shown, answered, now = 0, self._answered, time.monotonic_ns()
        end = now + limit
        while not self.stopped and now < end and (goal is None or self._answered < goal):
            if now - shown > 200_000_000:
                shown = now
                self._progress(self._answered, measuring)
            for fd, events in self._wait(now):
                connection = self._by_fd.get(fd)
                if connection is not None:
                    self._ready(connection, events)
            now = time.monotonic_ns()
            if goal is not None and self._answered > answered:
                answered, end = self._answered, now + limit
            if self._lost and now < end:
                self._reopen(end)

    def _wait(self, now: int) -> list[tuple[int, int]]:
        if self._plan.rate is None:
            return self._epoll.poll(TICK)
        # The timeout of epoll has whole milliseconds, which is too coarse for frames that are due.
        select.select([self._epoll], [], [], max(0.0, self._fall_due(now) - SPIN))
        return self._epoll.poll(0)

    def _ready(self, connection: Connection, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._send(connection, b"")
            if events & ~select.EPOLLOUT and connection.sock is not None:
                self._receive(connection)
        except ProtocolError:
            self._lose(connection, "damaged")
        except OSError:
            self._lose(connection, "disconnected")

    def _receive(self, connection: Connection) -> None:
        assert connection.sock is not None
        buffer, held = self._buffer, len(connection.held)
        buffer[:held] = connection.held
        try:
            size = connection.sock.recv_into(memoryview(buffer)[held:])
        except BlockingIOError:
            return
        if not size:
            self._lose(connection, "disconnected")
            return
        end = held + size
        if self._learns:
            self._learn(bytes(memoryview(buffer)[:end]), connection.max_frame_size)
        answered: list[int] = []
        try:
            taken, strays, wrong = take_acks(
                buffer, end, connection.max_frame_size, connection.first if connection.ring else 1,
                self._sent, time.monotonic_ns(), self._result.histogram.counts, self._expected,
                answered, connection.ring,
            )  # fmt: skip
        finally:
            self._answered += len(answered)
        connection.held = rest = bytes(memoryview(buffer)[taken:end])
        if strays:
            self._result.errors["stray ACK"] += strays
        if self._plan.expected is None:
            self._result.with_actions += wrong
        elif wrong:
            self._result.errors["not as expected"] += wrong
        if len(rest) > LENGTH_SIZE and rest[LENGTH_SIZE] != FrameType.ACK:
            goodbye = rest[LENGTH_SIZE] == FrameType.AGENT_DISCONNECT
            self._lose(connection, "disconnected" if goodbye else "damaged")
            return
        self._again(connection, answered)

    def _again(self, connection: Connection, answered: list[int]) -> None:
        """Send the next frames in place of the answered ones."""
        if self._plan.mode == "async":
            for stream_id in answered:
                self._by_stream[stream_id].free.append(stream_id)
            targets = {self._by_stream[stream_id] for stream_id in answered}
            for each in targets:
                self._fill(each)
        elif self._plan.rate is None and not connection.ring:
            now, sent, frame = time.monotonic_ns(), self._sent, connection.frame
            for stream_id in answered:
                sent[stream_id] = now
            self._send(connection, b"".join(map(frame, answered)))
        else:
            connection.free.extend(answered)
            self._fill(connection)

    def _fill(self, connection: Connection, most: int | None = None) -> None:
        """Send the frames that are due on a connection; without a rate, as many as it may have."""
        if connection.sock is None:
            return
        sent, rate, data = self._sent, self._plan.rate, list[bytes]()
        now = time.monotonic_ns()
        while connection.can_send(sent) and len(data) != most and (rate is None or self._due):
            place, frame = connection.take()
            sent[place] = now if rate is None else self._due.popleft()
            data.append(frame)
        if data:
            self._send(connection, b"".join(data))

    def _fall_due(self, now: int) -> float:
        """Send the frames that are due. Returns the seconds until the next one is."""
        while self._next_due <= now:
            self._due.append(self._next_due)
            self._next_due += self._interval
        for _ in range(len(self._connections)):
            if not self._due:
                break
            self._connections.rotate(-1)
            self._fill(self._connections[-1], 1)  # One frame on each, so that they take turns.
        return min(TICK, max(0.0, (self._next_due - time.monotonic_ns()) / 1e9))

    def _send(self, connection: Connection, data: bytes) -> None:
        assert connection.sock is not None
        was_unsent = bool(connection.unsent)
        data = connection.unsent + data if was_unsent else data
        try:
            sent = connection.sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose(connection, "disconnected")
            return
        connection.unsent = data[sent:]
        if bool(connection.unsent) != was_unsent:
            events = select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0)
            self._epoll.modify(connection.sock.fileno(), events)

    def _count_unanswered(self) -> None:
        """Count the frames that wait for longer than the timeout.

        If none was answered by the end of the run, it is all of them.
        """
        kind, limit = "timeout", time.monotonic_ns() - int(self._plan.timeout * 1e9)
        if not self._result.frames and not self.stopped:
            kind, limit = "no ACK", time.monotonic_ns()
        late = sum(1 for at in self._sent if 0 < at <= limit)
        if late:
            self._result.errors[kind] += late


def _has(ack: Ack, frame: bytes, expected: dict[str, Any]) -> bool:
    """Whether an ACK sets these variables and no other. A typed integer must have its type."""
    if len(ack.actions) != len(expected) or ack.variables != expected:
        return False
    return all(
        isinstance(ack.variables[name], bool) is isinstance(value, bool)
        and (type(value) in (int, bool) or bytes(codec.encode_actions({name: value})) in frame)
        for name, value in expected.items()
    )


def _check_mode(mode: str, protocol: EngineConnection) -> None:
    """Raise ProtocolError if the agent does not allow the mode."""
    if mode == "async" and not protocol.asynchronous:
        raise ProtocolError("the agent has no async: use another --mode")
    if mode == "pipelined" and not protocol.pipelined:
        raise ProtocolError("the agent does not pipeline: use --mode ping-pong")
