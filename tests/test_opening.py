"""How connections begin: HELLOs that came before, and what accepted sockets inherit."""

from __future__ import annotations

import socket
import threading
from functools import partial
from ipaddress import IPv4Address
from types import ModuleType
from typing import Any

import pytest
from haproxy import wait_until
from implementations import intake_class

from spop import Agent, Message, codec
from spop.agreement import agree
from spop.connection import ALL_CAPABILITIES
from spop.constants import FrameType
from spop.frames import Peer
from spop.poller import READ, new_poller
from spop.server import Server, opening
from spop.server.loop import Connection
from spop.values import UInt32

USUAL = {"supported-versions": "2.0", "max-frame-size": UInt32(16380), "capabilities": "pipelining"}


def hello(*, little_endian: bool = False, **more: Any) -> bytes:
    items = {**USUAL, **{name.replace("_", "-"): value for name, value in more.items()}}
    return bytes(codec.encode_control(FrameType.HAPROXY_HELLO, items, little_endian=little_endian))


def without_flags(**more: Any) -> bytes:
    """As HAProxy 1.7 writes it."""
    data = bytearray(hello(**more))
    data[5:9] = bytes(4)
    return bytes(data)


HELLOS = {
    "pipelining": hello(),
    "small frames": hello(max_frame_size=UInt32(300)),
    "an engine": hello(capabilities="async", engine_id="engine"),
    "a health check": hello(capabilities="", healthcheck=True),
    "early 1.8": hello(little_endian=True, supported_versions="1.0"),
    "1.7": without_flags(supported_versions="1.0", capabilities=""),
    "no version in common": hello(supported_versions="9.0"),
    "no capabilities": hello(capabilities=None),
    "followed by a second": hello() * 2,
}


@pytest.fixture
def agent() -> Agent:
    agent = Agent()
    agent.message("check")(lambda ip: {"sess.score": ip.packed[-1]})
    return agent


def connect(server: Server) -> socket.socket:
    return socket.create_connection((server.address.host, server.address.port), 10)


def answer(server: Server, *pieces: bytes) -> bytes:
    """What a peer that sends these pieces and closes its side gets."""
    with connect(server) as sock:
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        data = bytearray()
        while chunk := sock.recv(65536):
            data += chunk
    return bytes(data)


@pytest.mark.parametrize("name", HELLOS)
def test_a_hello_has_the_same_answer_each_time(agent: Agent, name: str) -> None:
    with agent.serve_in_background() as server:
        first = answer(server, HELLOS[name])
        for _ in range(3):
            assert answer(server, HELLOS["pipelining"])[:5]
            assert answer(server, HELLOS[name]) == first


def test_hellos_in_pieces_have_the_answer_of_whole_ones(agent: Agent) -> None:
    data = HELLOS["pipelining"]
    with agent.serve_in_background() as server:
        whole = answer(server, data)
        for place in (1, 20, len(data) - 1):
            with connect(server) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                before = received(server)
                sock.sendall(data[:place])
                wait_until(
                    lambda before=before, place=place: received(server) == before + place,
                    "the first piece was received",
                )
                sock.sendall(data[place:])
                assert sock.recv(4096) == whole
            # A first piece must not be taken for a HELLO.
            assert answer(server, data[:place]) == b""
            assert answer(server, data) == whole


def received(server: Server) -> int:
    """Number of bytes."""
    return server.totals().counts().bytes_received


def test_each_connection_that_says_the_same_has_its_own_address(agent: Agent) -> None:
    peers: list[Peer] = []
    agent.on_connect(peers.append)
    with agent.serve_in_background() as server:
        for _ in range(3):
            with connect(server) as sock:
                sock.sendall(HELLOS["an engine"])
                assert sock.recv(4096)
                host, port = sock.getsockname()
                sock.sendall(codec.encode_notify(1, 1, [Message("check", ip=IPv4Address(7))]))
                assert codec.decode_frames(sock.recv(4096))[0][0].variables == {"sess.score": 7}
            wait_until(lambda: not server.connections(), "the connection is forgotten")
            assert peers[-1].address == f"{host}:{port}"
    assert len({peer.address for peer in peers}) == len(peers) == 3
    assert {peer.engine_id for peer in peers} == {"engine"}


def test_few_hellos_are_kept(agent: Agent) -> None:
    with agent.serve_in_background() as server:
        (loop,) = server._loops
        for number in range(opening.MOST_KEPT + 1):
            assert answer(server, hello(engine_id=f"{number}"))
        kept = loop._fast_paths.hellos
        assert list(kept) == [hello(engine_id=f"{opening.MOST_KEPT}")]
        for name in ("a health check", "early 1.8", "1.7", "followed by a second"):
            assert answer(server, HELLOS[name])
        assert len(kept) == 1


def test_a_fast_path_answers_hellos_that_it_has(dispatch: ModuleType, port: ModuleType) -> None:
    told: list[Any] = []
    intake = intake_class(dispatch)(2**16)
    shared = port.FastPaths(
        dispatch.Dispatcher(), bytearray(4096), None, lambda *what: told.append(what[1]), None,
        lambda *what: told.append(what),
    )  # fmt: skip
    agreement = agree(
        {**USUAL}, whole=False, little_endian=False, max_frame_size=2**14,
        capabilities=ALL_CAPABILITIES,
    )  # fmt: skip
    shared.hellos[HELLOS["pipelining"]] = agreement
    ours, engine = socket.socketpair()
    with ours, engine:
        ours.setblocking(False)
        path = port.FastPath(shared, intake, ours.fileno(), "it")
        path.enabled = True
        engine.sendall(HELLOS["pipelining"])
        path(READ)
        assert told.pop() == ("it", agreement, b"")
        assert engine.recv(4096) == agreement.answer
        engine.sendall(HELLOS["an engine"])
        path(READ)
        ((frame,),) = told
        assert (frame.type, path.hello) == (FrameType.HAPROXY_HELLO, HELLOS["an engine"])


def test_notify_frames_are_answered_before_and_between_others(
    dispatch: ModuleType, port: ModuleType
) -> None:
    """A connection that begins or ends takes longer than a frame."""
    if port.__name__ != type(new_poller()).__module__:
        pytest.skip("the poller in Python knows no fast paths")
    order: list[str] = []
    intake = intake_class(dispatch)(2**16)
    intake.is_open = True
    shared = port.FastPaths(
        dispatch.Dispatcher(), bytearray(4096), None, lambda *_: order.append("frame"), None
    )
    poller = new_poller()
    pairs = [socket.socketpair() for _ in range(3)]
    (ours, engine), *others = pairs

    def serve(_: int) -> None:
        order.append("other")
        engine.send(codec.encode_notify(1, 1, [Message("any")]))

    for other, peer in others:
        poller.register(other.fileno(), READ, serve)
        peer.send(b"x")
    path = port.FastPath(shared, intake, ours.fileno(), "it")
    path.enabled = True
    intake.max_in_flight = 10
    poller.register(ours.fileno(), READ, path)
    engine.send(codec.encode_notify(1, 1, [Message("any")]))
    poller.run(10)
    poller.close()
    assert order == ["frame", "other", "frame", "other"]
    for sock in (sock for pair in pairs for sock in pair):
        sock.close()


def test_each_step_has_a_round_of_its_own(agent: Agent) -> None:
    """Sockets that are ready have their turn between two of them."""
    order: list[Any] = []
    ended = threading.Event()
    ours, peer = socket.socketpair()
    with ours, peer, agent.serve_in_background() as server:
        (loop,) = server._loops
        peer.send(b"x")

        def begin() -> None:
            loop.poller.register(ours.fileno(), READ, lambda _: order.append("socket"))
            for number in range(3):
                loop.steps.add(partial(order.append, number))
            loop.steps.add(partial(loop.poller.unregister, ours.fileno()))
            loop.steps.add(ended.set)

        loop.call_soon(begin)
        assert ended.wait(15)
    assert order == ["socket", 0, "socket", 1, "socket", 2, "socket"]


def test_a_loop_that_ends_takes_the_steps_that_are_left(agent: Agent) -> None:
    taken: list[int] = []
    with agent.serve_in_background() as server:
        (loop,) = server._loops

        def end() -> None:
            loop.end()
            for number in range(3):
                loop.steps.add(partial(taken.append, number))

        loop.call_soon(end)
        loop.thread.join(15)
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_accepted_sockets_send_at_once_and_find_dead_peers(agent: Agent, address: str) -> None:
    with agent.serve_in_background(address) as server, connect(server):
        (loop,) = server._loops
        wait_until(lambda: loop.connections, "the connection is accepted")
        (connection,) = loop.connections
        assert isinstance(connection, Connection)
        assert isinstance(connection.sock, socket.socket)
        assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
