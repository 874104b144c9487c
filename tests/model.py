"""A model of server and client together without sockets, for `test_model`.

The ends are the product's: the clients' `Pool` over `EngineConnection`, and `AgentConnection` over
a `Dispatcher`. What is between them is the model's: bytes on their way, in pieces of any size. It
checks each ACK where it leaves the agent, and all counts where nothing is on its way.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from spop import Ack, Agent, Message, SpopError, codec
from spop.address import Address
from spop.client.dial import Endpoint
from spop.client.pool import Driver, Exchange, Link, Pool
from spop.client.servers import Server, Servers, in_turn
from spop.client.settings import Settings
from spop.connection import AgentConnection, Disconnect, EngineConnection, Hello, State
from spop.constants import FrameType
from spop.counters import Cell
from spop.dispatch import Deferred, Dispatcher
from spop.parameters import INLINE

KINDS = ("now", "later", "fails", "nobody-handles-this", "big")
MAX_PAYLOAD_SIZE = 20_000
ANSWERS = {"now": "sess.n", "later": "sess.n", "big": "sess.big"}


def new_agent() -> Agent:
    agent = Agent("model", on_error={"sess.failed": True})

    @agent.message("now")
    def now(n: int) -> dict[str, Any]:
        return {"sess.n": n}

    @agent.message("later", blocking=True)
    def later(n: int) -> dict[str, Any]:
        return {"sess.n": n}

    @agent.message("fails")
    def fails(n: int) -> None:
        raise ValueError(n)

    @agent.message("big")
    def big(n: int) -> dict[str, Any]:
        return {"sess.big": str(n) * 100}

    return agent


def asked(kinds: Iterable[str], n: int, size: int) -> list[Message]:
    """The messages of a NOTIFY. The first has a body."""
    body = {"body": bytes(size)} if size else {}
    return [Message(kind, {"n": n} | (body if not i else {})) for i, kind in enumerate(kinds)]


def check_answer(ack: Ack, messages: list[Message], room: int) -> None:
    """An answer is that of its own NOTIFY, whole, or that of a failure where it fits no frame."""
    if ack.aborted:
        assert sum(len(each.get("body", b"")) for each in messages) > MAX_PAYLOAD_SIZE - 200
        return
    n, found = messages[0]["n"], dict(ack.variables)
    failed = found.pop("sess.failed", None)
    right: dict[str, Any] = {
        ANSWERS[each.name]: str(n) * 100 if each.name == "big" else n
        for each in messages
        if each.name in ANSWERS
    }
    assert found.items() <= right.items()
    if any(each.name not in ANSWERS for each in messages):
        assert failed is True
    elif failed is None:
        assert found == right
    else:
        assert any(each.name == "big" for each in messages)
        assert room < 500 * len(messages)


class Loop:
    """A loop of the server, as far as it answers.

    Attributes:
        held: NOTIFYs whose handlers have not ended, each with its connection.
    """

    def __init__(self, agent: Agent) -> None:
        self.dispatcher: Dispatcher = agent.dispatcher()
        self.held: list[tuple[Deferred, Wire]] = []

    def run(self, deferred: Deferred) -> None:
        """Make the calls of a NOTIFY."""
        for call in deferred.calls:
            room, began = deferred.room - len(deferred.actions), time.monotonic_ns()
            if call.values is None:
                deferred.actions += call.route.on_error
                continue
            returned, error = None, None
            try:
                returned = call.run()
            except ValueError as failure:
                assert call.route.kind == INLINE
                error = failure
            deferred.actions += self.dispatcher.result(call, returned, error, began, room)


class ModelEngine(EngineConnection):
    """The engine's end. It tells its `wire` what it has sent."""

    wire: Wire

    def notify(self, stream_id: int, frame_id: int, messages: Iterable[Message]) -> None:
        messages = list(messages)
        super().notify(stream_id, frame_id, messages)
        self.wire.sent[stream_id, frame_id] = messages


@dataclass(eq=False)
class Wire:
    """A connection: both ends and the bytes on their way.

    Attributes:
        engine: None: the model writes the bytes itself.
        sent: the messages of each NOTIFY without an ACK.
        ended: the engine's end, or the agent's, is closed.
        begun: ids of a payload in fragments of which not all were sent, and the rest of it.
        spoilt: bytes that break the protocol were sent. What the agent makes of them is not
            foreseen, but for NOTIFYs before them.
        aborted: ids of payloads that were given up.
    """

    loop: Loop
    agent: AgentConnection
    engine: ModelEngine | None = None
    endpoint: Endpoint | None = None
    link: Link | None = None
    little_endian: bool = False
    whole: bool = False
    to_agent: bytearray = field(default_factory=bytearray)
    to_engine: bytearray = field(default_factory=bytearray)
    sent: dict[tuple[int, int], list[Message]] = field(default_factory=dict)
    engine_ended: bool = False
    agent_ended: bool = False
    begun: tuple[tuple[int, int], bytes, list[Message]] | None = None
    spoilt: bool = False
    aborted: set[tuple[int, int]] = field(default_factory=set)
    hello: Hello | None = None

    @property
    def async_engine_id(self) -> str | None:
        return self.hello.peer.async_engine_id if self.hello else None

    @property
    def open(self) -> bool:
        return self.agent.state is State.OPEN


class World:
    """Server, client, and all between them."""

    def __init__(self, settings: Settings) -> None:
        agent = new_agent()
        self.loops = [Loop(agent), Loop(agent)]
        self.wires: list[Wire] = []
        self.calls: list[tuple[Exchange, list[Message]]] = []
        self.now = 0.0
        self.numbers = itertools.count(1)
        self._next_loop = itertools.cycle(self.loops)
        self._settings = settings
        endpoint = Endpoint(Address.parse("127.0.0.1:1"))
        driver = Driver(self._open, self._send, self._close, lambda _: None, lambda _: None)
        self.pool = Pool(driver, Servers([Server(endpoint)], in_turn), settings)

    # --- the client's driver ---

    def _open(self, endpoint: Endpoint) -> None:
        given = self._settings
        engine = ModelEngine(
            max_frame_size=given.max_frame_size,
            capabilities=given.capabilities,
            fragments=given.fragments,
            engine_id=given.engine_id,
        )
        engine.wire = self.connect(engine=engine, endpoint=endpoint)
        engine.wire.to_agent += engine.data_to_send()

    def _send(self, link: Link) -> None:
        data = link.protocol.data_to_send()
        if not link.transport.engine_ended:
            link.transport.to_agent += data
        link.starting.clear()

    def _close(self, link: Link) -> None:
        self._send(link)
        link.transport.engine_ended = True

    # --- what happens ---

    def connect(self, **fields: Any) -> Wire:
        loop = next(self._next_loop)
        wire = Wire(loop, self._agent_end(loop), **fields)
        self.wires.append(wire)
        return wire

    def _agent_end(self, loop: Loop) -> AgentConnection:
        return AgentConnection(
            max_payload_size=MAX_PAYLOAD_SIZE, max_in_flight=5, dispatcher=loop.dispatcher
        )

    def call(self, messages: list[Message]) -> None:
        exchange = self.pool.exchange(messages)
        self.calls.append((exchange, messages))
        self.pool.call(exchange, self.now)

    def deliver_to_agent(self, wire: Wire, size: int) -> None:
        data = bytes(wire.to_agent[:size])
        del wire.to_agent[:size]
        if data and not wire.agent_ended:
            self._events(wire, wire.agent.receive_data(data))
        if wire.engine_ended and not wire.to_agent and not wire.agent_ended:
            self._events(wire, wire.agent.receive_eof())
            wire.agent_ended = True

    def deliver_to_engine(self, wire: Wire, size: int) -> None:
        data = bytes(wire.to_engine[:size])
        del wire.to_engine[:size]
        if wire.engine is None or wire.engine_ended:
            return
        events = wire.engine.receive_data(data) if data else []
        if wire.agent_ended and not wire.to_engine:
            events += wire.engine.receive_eof()
        if wire.link is None and events:
            first = events.pop(0)
            assert wire.endpoint is not None
            if isinstance(first, Disconnect):
                wire.engine_ended = True
                error = SpopError(first.message)
                self.pool.opening_failed(wire.endpoint, error, self.now)
                return
            wire.link = Link(wire.endpoint, wire.engine, wire)
            self.pool.opened(wire.link, self.now)
        if wire.link is not None:
            self.pool.received(wire.link, events, self.now)

    def finish(self, loop: Loop, index: int) -> None:
        """The handlers of a NOTIFY have ended. Its ACK leaves where section 3.2.1 allows it."""
        deferred, own = loop.held.pop(index)
        loop.run(deferred)
        target = own if own.open else self._another(own)
        if target is None:
            loop.dispatcher.cells[Cell.ACKS_DROPPED] += 1
            return
        dispatcher = target.loop.dispatcher
        dispatcher.acknowledge(target.agent.intake, deferred, target)
        dispatcher.settled.clear()
        if target is own:
            own.agent.intake.in_flight -= 1
        self._events(target, target.agent.resume())

    def _another(self, own: Wire) -> Wire | None:
        engine_id = own.async_engine_id
        same = (w for w in self.wires if w.open and w.async_engine_id == engine_id is not None)
        return next(same, None)

    def cut(self, wire: Wire) -> None:
        """The network cuts a connection. What was on its way is lost."""
        wire.to_agent.clear()
        wire.to_engine.clear()
        if not wire.agent_ended:
            self._events(wire, wire.agent.receive_eof())
            wire.agent_ended = True
        self.deliver_to_engine(wire, 0)
        wire.engine_ended = True

    def disconnect(self, wire: Wire, code: int) -> None:
        """The agent ends a connection."""
        wire.agent.disconnect(code, "the model says so")
        self._events(wire, [])

    def move(self, wire: Wire) -> None:
        """Another loop goes on with a connection at rest, as after a reload."""
        state = json.loads(json.dumps(wire.agent.negotiated()))
        wire.loop = next(self._next_loop)
        wire.agent = self._agent_end(wire.loop)
        wire.agent.resume_from(state)

    def _events(self, wire: Wire, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Deferred):
                wire.loop.held.append((event, wire))
            elif isinstance(event, Hello):
                wire.hello = event
            else:
                assert isinstance(event, Disconnect)
        sent = wire.agent.data_to_send()
        self._check(wire, bytes(sent))
        wire.to_engine += sent
        if wire.agent.stalled:
            self._events(wire, wire.agent.resume())
        elif wire.agent.should_close:
            wire.agent_ended = True

    # --- what must hold ---

    def _check(self, wire: Wire, sent: bytes) -> None:
        """Each ACK is that of a NOTIFY without one, and leaves where it is allowed."""
        flags = {"little_endian": wire.little_endian, "whole": wire.whole}
        frames, consumed = codec.decode_frames(sent, max_frame_size=2**20, **flags)
        assert consumed == len(sent)
        for frame in frames:
            if not isinstance(frame, Ack):
                continue
            ids, room = (frame.stream_id, frame.frame_id), wire.agent.max_frame_size
            assert wire.hello is not None
            assert not wire.hello.peer.healthcheck
            assert frame.aborted or ids not in wire.aborted
            if ids in wire.sent:
                check_answer(frame, wire.sent.pop(ids), room)
                continue
            if wire.spoilt:
                continue
            assert wire.async_engine_id is not None
            (other,) = (
                each
                for each in self.wires
                if ids in each.sent and each.async_engine_id == wire.async_engine_id
            )
            assert not other.open
            check_answer(frame, other.sent.pop(ids), room)

    def check_counts(self) -> None:
        for loop in self.loops:
            for wire in self.wires:
                held = sum(1 for _, own in loop.held if own is wire)
                if wire.loop is loop and wire.open:
                    assert wire.agent.in_flight == held
        cells = [sum(loop.dispatcher.cells[cell] for loop in self.loops) for cell in Cell]
        held = sum(len(loop.held) for loop in self.loops)
        assert cells[Cell.NOTIFIES] == cells[Cell.ACKS] + cells[Cell.ACKS_DROPPED] + held

    def check_calls(self) -> None:
        """A call that has ended has its own answer or an error."""
        for exchange, messages in self.calls:
            if exchange.done and exchange.ack is not None:
                room = min(self._settings.max_frame_size, 2**20)
                check_answer(exchange.ack, messages, room)
            elif exchange.done and exchange.error is not None:
                assert isinstance(exchange.error, SpopError)

    def rest(self) -> None:
        """Let all arrive and all handlers end. Then nothing may be left."""
        busy = True
        while busy:
            busy = False
            for wire in list(self.wires):
                ends = wire.engine_ended != wire.agent_ended and wire.engine is not None
                if wire.to_agent or wire.to_engine or ends:
                    self.deliver_to_agent(wire, len(wire.to_agent))
                    self.deliver_to_engine(wire, len(wire.to_engine))
                    busy = busy or bool(wire.to_agent or wire.to_engine)
            for loop in self.loops:
                while loop.held:
                    self.finish(loop, 0)
                    busy = True
        self.check_counts()
        self.check_calls()
        assert all(exchange.done for exchange, _ in self.calls)
        assert self.pool.queued == self.pool.waiting == 0
        for wire in self.wires:
            if wire.open:
                unfinished = {wire.begun[0]} if wire.begun else set()
                assert wire.sent.keys() <= unfinished | wire.aborted
                assert wire.agent.at_rest is (wire.begun is None)
            elif wire.async_engine_id is None:
                wire.sent.clear()  # Their connection's end.
        self.calls.clear()


def raw_hello(variant: str, items: dict[str, Any]) -> bytes:
    """A HELLO as of SPOP 2.0, of SPOP 1.0 with flags in host order, or of HAProxy 1.7."""
    hello = codec.encode_control(FrameType.HAPROXY_HELLO, items, little_endian=variant != "2.0")
    return _without_flags(hello) if variant == "1.7" else bytes(hello)


def raw_notify(wire: Wire, ids: tuple[int, int], messages: list[Message]) -> bytes:
    frame = codec.encode_notify(*ids, messages, little_endian=wire.little_endian)
    return _without_flags(frame) if wire.whole else bytes(frame)


def _without_flags(frame: bytearray) -> bytes:
    return bytes(frame[:5] + bytes(4) + frame[9:])
