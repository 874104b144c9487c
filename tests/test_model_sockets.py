"""The same over real sockets: a server with two loops, and another one that takes over on reload.

Threads take part, so where nothing is on its way is waited for: at `rest`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from typing import Any

import hypothesis.strategies as st
import pytest
from haproxy import wait_until
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from wire import hello

from spop import Ack, Agent, Client, Message, SpopError
from spop.connection import Disconnect
from spop.counters import Cell
from spop.server import Server

TIMEOUT = 0.05
KINDS = st.sampled_from(["inline", "waiting", "blocking", "fails", "late"])


def new_agent() -> Agent:
    agent = Agent("model", on_error={"sess.failed": True})

    @agent.message("inline")
    def inline(n: int) -> dict[str, Any]:
        return {"sess.n": n}

    @agent.message("waiting")
    async def waiting(n: int) -> dict[str, Any]:
        await asyncio.sleep(0.001)
        return {"sess.n": n}

    @agent.message("blocking", blocking=True)
    def blocking(n: int) -> dict[str, Any]:
        time.sleep(0.001)
        return {"sess.n": n}

    @agent.message("fails")
    def fails(n: int) -> None:
        raise ValueError(n)

    @agent.message("late", timeout=TIMEOUT, on_timeout={"sess.late": True})
    async def late(n: int) -> None:
        await asyncio.sleep(60)

    return agent


def right(kind: str, n: int) -> dict[str, Any]:
    return {"fails": {"sess.failed": True}, "late": {"sess.late": True}}.get(kind, {"sess.n": n})


class Peer:
    """A connection that pipelines, and what it waits for."""

    def __init__(self, server: Server, engine_id: str | None) -> None:
        self.sock, self.protocol = hello(server, engine_id=engine_id)
        self.asked: dict[tuple[int, int], tuple[str, int]] = {}
        self.ended = False

    def send(self, share: float = 1.0) -> bytes:
        """Send what the protocol has to send, or the first part. Returns the rest."""
        data = bytes(self.protocol.data_to_send())
        end = int(share * len(data))
        with contextlib.suppress(OSError):
            self.sock.sendall(data[:end])
        return data[end:]

    def receive(self, peers: list[Peer]) -> None:
        """Take what has come. Each ACK is that of a NOTIFY of its engine, and right."""
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while not self.ended:
                try:
                    data = self.sock.recv(65536)
                except ConnectionError:
                    data = b""
                for event in self.protocol.receive_data(data) if data else ():
                    self._take(event, peers)
                self.ended = not data or self.ended
        self.sock.setblocking(True)

    def _take(self, event: object, peers: list[Peer]) -> None:
        if isinstance(event, Disconnect):
            self.ended = True
        if not isinstance(event, Ack):
            return
        ids = event.stream_id, event.frame_id
        (owner,) = (peer for peer in peers if ids in peer.asked)
        if owner is not self:
            assert self.protocol.asynchronous
            assert self._engine_id == owner._engine_id
            assert owner.ended
        assert event.variables == right(*owner.asked.pop(ids))

    @property
    def _engine_id(self) -> str | None:
        assert self.protocol.peer is not None
        return self.protocol.peer.engine_id


class Sockets(RuleBasedStateMachine):
    """What may happen to real servers."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = new_agent()
        self.servers = [self._start()]
        self.peers: list[Peer] = []
        self.number = 0
        self.calls: list[threading.Thread] = []
        self.wrong: list[object] = []

    def _start(self) -> Server:
        server = Server(self.agent, "127.0.0.1:0", threads=2, drain_timeout=5.0)
        server.start()
        return server

    @initialize()
    def begin(self) -> None:
        self._new_client()

    def _new_client(self) -> None:
        self.client = Client(str(self.servers[-1].address), engine_id="client", maximum=2)

    def _number(self) -> int:
        self.number += 1
        return self.number

    def _open(self) -> list[Peer]:
        return [peer for peer in self.peers if not peer.ended]

    @rule(kind=KINDS, body=st.sampled_from([0, 40_000]))
    def call(self, kind: str, body: int) -> None:
        thread = threading.Thread(target=self._call, args=[self.client, kind, self._number(), body])
        thread.start()
        self.calls.append(thread)

    def _call(self, client: Client, kind: str, n: int, body: int) -> None:
        try:
            found = client.notify(kind, n=n, body=bytes(body)).variables
        except SpopError:
            return
        if found != right(kind, n):
            self.wrong.append((kind, n, found))

    @precondition(lambda self: len(self._open()) < 6)
    @rule(engine_id=st.sampled_from([None, "a", "a"]))
    def connect(self, engine_id: str | None) -> None:
        self.peers.append(Peer(self.servers[-1], engine_id))

    @precondition(lambda self: self._open())
    @rule(data=st.data(), kinds=st.lists(KINDS, min_size=1, max_size=5), body=st.booleans())
    def notify(self, data: st.DataObject, kinds: list[str], body: bool) -> None:
        peer = data.draw(st.sampled_from(self._open()))
        for kind in kinds:
            n = self._number()
            more = {"body": bytes(40_000)} if body else {}
            peer.protocol.notify(n, 1, [Message(kind, {"n": n, **more})])
            peer.asked[n, 1] = kind, n
        peer.send()

    @precondition(lambda self: self._open())
    @rule(data=st.data())
    def begin_and_abort(self, data: st.DataObject) -> None:
        peer, n = data.draw(st.sampled_from(self._open())), self._number()
        peer.protocol.begin_fragments(n, 1, b"\x06inline")
        peer.protocol.abort(n, 1)
        peer.send()

    @precondition(lambda self: self._open())
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.5]))
    def die(self, data: st.DataObject, share: float) -> None:
        """In the middle of a frame, or not."""
        peer, n = data.draw(st.sampled_from(self._open())), self._number()
        peer.protocol.notify(n, 1, [Message("inline", n=n)])
        peer.send(share)
        peer.receive(self.peers)
        peer.ended = True
        peer.sock.close()

    @rule()
    def receive(self) -> None:
        for peer in self._open():
            peer.receive(self.peers)

    @rule()
    def reload(self) -> None:
        """Another server takes the connections, each at rest."""
        old, new = self.servers[-1], self._start()
        self.servers.append(new)

        def give(sock: socket.socket, state: dict[str, Any], taken: Any) -> None:
            moved = socket.socket(fileno=socket.dup(sock.fileno()))
            new.adopt(moved, json.loads(json.dumps(state)), taken)

        self.client.close()
        old.hand_over(give, threading.Event().wait)
        self._new_client()

    @rule()
    def rest(self) -> None:
        for thread in self.calls:
            thread.join()
        self.calls.clear()
        assert not self.wrong
        wait_until(self._at_rest, f"rest: {[peer.asked for peer in self._open()]}")
        totals = [server.totals() for server in self.servers]
        assert sum(each.counts().running for each in totals) == 0
        cells = [sum(each.cells[cell] for each in totals) for cell in Cell]
        assert cells[Cell.NOTIFIES] == cells[Cell.ACKS] + cells[Cell.ACKS_DROPPED]

    def _at_rest(self) -> bool:
        self.receive()
        in_hand = sum(server.totals().in_hand for server in self.servers)
        return not in_hand and not any(peer.asked for peer in self._open())

    def teardown(self) -> None:
        self.rest()
        self.client.close()
        for peer in self._open():
            peer.sock.close()
        for server in self.servers:
            server.stop()
        for server in self.servers:
            counts = server.totals().counts()
            assert (counts.connections, counts.frames_in_hand) == (0, 0)


@pytest.mark.hypothesis
def test_real_sockets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    run_state_machine_as_test(
        Sockets,
        settings=settings(
            max_examples=max(5, settings.default.max_examples // 100),
            stateful_step_count=20,
            report_multiple_bugs=False,
        ),
    )
