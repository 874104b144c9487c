"""Limits, timeouts and back-pressure of the server, and peers that go against them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import stat
import struct
import threading
import types
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from wire import assert_acks_leave_on_another_connection, connect, count, hello

from spop import Ack, Agent, Client, DisconnectedError, Message, SpopError, SpopTimeoutError, codec
from spop.connection import AgentConnection, EngineConnection
from spop.constants import Status
from spop.counters import Cell, RouteCell
from spop.frames import engine_digest
from spop.poller import new_poller
from spop.server import Server, accepting
from spop.server.loop import Connection


@pytest.fixture
def agent() -> Agent:
    agent = Agent()

    @agent.message("check")
    def check(ip: IPv4Address) -> dict[str, Any]:
        return {"sess.score": ip.packed[-1]}

    return agent


@pytest.fixture
def opened() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def received(sock: socket.socket) -> list[Any]:
    """The frames until the end of the connection."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            data += chunk
    return codec.decode_frames(data)[0]


def serves(server: Server) -> bool:
    """Whether it answers; also if a moment without a processor makes our HELLO late."""

    def answers() -> bool:
        with contextlib.suppress(SpopError), Client(str(server.address)) as client:
            return client.notify("check", ip=IPv4Address(5)).variables == {"sess.score": 5}
        return False

    wait_until(answers, "an answer", timeout=15)
    return True


# --- connections ---


def test_connections_over_the_limit_are_refused(agent: Agent) -> None:
    with agent.serve_in_background(max_connections=3) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(Client(str(server.address)))
            with connect(server) as sock:
                assert received(sock) == []
            assert count(server, Cell.REFUSED_CONNECTIONS) == 1
        wait_until(lambda: server.admission.connections == 0, "the connections' end")
        assert serves(server)


def test_connections_of_one_peer_are_limited(agent: Agent) -> None:
    with (
        agent.serve_in_background(max_connections_per_peer=1) as server,
        Client(str(server.address)),
        connect(server) as second,
    ):
        assert received(second) == []
        other = ("127.0.0.2", 0)
        address = server.address.host, server.address.port
        with socket.create_connection(address, 10, other) as third:
            third.sendall(EngineConnection().data_to_send())
            assert third.recv(4096)
        assert count(server, Cell.REFUSED_PER_PEER) == 1


@pytest.mark.parametrize(
    ("networks", "served"),
    [(["127.0.0.0/8"], True), (["10.0.0.0/8", "::1"], False), (["127.0.0.1", "10.0.0.0/8"], True)],
)
def test_only_allowed_networks_may_connect(agent: Agent, networks: list[str], served: bool) -> None:
    with agent.serve_in_background(allow=tuple(networks)) as server:
        if served:
            assert serves(server)
        else:
            with connect(server) as sock:
                assert received(sock) == []
            assert count(server, Cell.REFUSED_NOT_ALLOWED) == 1


@pytest.mark.parametrize(("often", "accepted"), [(0.0, 3), (3600.0, 1)])
def test_connections_that_come_often_are_accepted_one_in_a_round(
    often: float, accepted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "OFTEN", often)
    poller, taken = new_poller(), []

    def take(listener: socket.socket) -> bool:
        taken.append(listener.accept()[0])
        return True

    with contextlib.ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop = types.SimpleNamespace(poller=poller, cells={})
        accepting.Acceptor(loop, take).add(listener)  # type: ignore[arg-type]
        for _ in range(4):
            stack.enter_context(socket.create_connection(listener.getsockname(), 10))
        poller.run(10)
        assert len(taken) == 4, "the first time all that wait"
        for _ in range(3):
            stack.enter_context(socket.create_connection(listener.getsockname(), 10))
        poller.run(10)
        assert len(taken) == 4 + accepted
        for sock in taken:
            sock.close()
    poller.close()


def test_a_flood_of_connections_without_a_hello_ends_with_the_handshake_timeout(
    agent: Agent,
) -> None:
    with agent.serve_in_background(handshake_timeout=0.3) as server:
        flood = [connect(server) for _ in range(200)]
        assert serves(server)
        for sock in flood:
            (goodbye,) = received(sock)
            assert goodbye.items["status-code"] == Status.TIMEOUT
            sock.close()
        assert count(server, Cell.HANDSHAKE_TIMEOUTS) >= 200


def test_a_hello_a_byte_at_a_time_does_not_outlast_the_handshake_timeout(agent: Agent) -> None:
    data = EngineConnection().data_to_send()
    with agent.serve_in_background(handshake_timeout=0.3) as server, connect(server) as sock:
        sock.settimeout(0.05)
        frames: list[Any] = []
        for byte in data * 3:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.send(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                frames += codec.decode_frames(sock.recv(4096))[0]
                break
        assert frames[0].items["status-code"] == Status.TIMEOUT
        assert serves(server)


def test_a_flood_of_hellos_on_a_connection_is_an_error(agent: Agent) -> None:
    with agent.serve_in_background() as server, connect(server) as sock:
        sock.sendall(EngineConnection().data_to_send() * 1000)
        frames = received(sock)
        assert frames[-1].items["status-code"] == Status.INVALID
        assert len(frames) == 2
        assert serves(server)


def test_idle_connections_are_closed(agent: Agent) -> None:
    with agent.serve_in_background(idle_timeout=0.4) as server:
        sock, _ = hello(server)
        with sock:
            sock.sendall(b"\0")  # A frame's first byte is no frame.
            (goodbye,) = received(sock)
        assert goodbye.items["status-code"] == Status.TIMEOUT
        assert count(server, Cell.IDLE_TIMEOUTS) == 1


def test_a_connection_whose_handler_runs_is_not_idle(agent: Agent, opened: threading.Event) -> None:
    @agent.message("slow", blocking=True)
    def slow() -> dict[str, Any]:
        opened.wait(10)
        return {"sess.x": 1}

    with agent.serve_in_background(idle_timeout=0.2) as server:
        greeting = EngineConnection().data_to_send()
        with connect(server) as sock, connect(server) as idle:
            sock.sendall(greeting + codec.encode_notify(1, 1, [Message("slow")]))
            idle.sendall(greeting)
            _, goodbye = received(idle)
            assert goodbye.items["status-code"] == Status.TIMEOUT
            opened.set()
            _, ack, _ = received(sock)
            assert isinstance(ack, Ack)


def end_by_closing(sock: socket.socket, protocol: EngineConnection, _: list[str]) -> None:
    protocol.begin_fragments(1, 1, bytes(16_000))
    sock.sendall(protocol.data_to_send())


def end_by_reset(sock: socket.socket, protocol: EngineConnection, _: list[str]) -> None:
    end_by_closing(sock, protocol, _)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def end_by_disconnect(sock: socket.socket, protocol: EngineConnection, _: list[str]) -> None:
    protocol.disconnect()
    sock.sendall(protocol.data_to_send())
    assert received(sock)


def end_by_garbage(sock: socket.socket, protocol: EngineConnection, _: list[str]) -> None:
    sock.sendall(b"\0" * 100)
    assert received(sock)


def end_by_idling(sock: socket.socket, protocol: EngineConnection, _: list[str]) -> None:
    sock.sendall(b"\0")
    assert received(sock)


def end_in_handlers(sock: socket.socket, protocol: EngineConnection, running: list[str]) -> None:
    protocol.notify(1, 1, [Message("slow")])
    protocol.notify(2, 1, [Message("slow-async")])
    sock.sendall(protocol.data_to_send())
    wait_until(lambda: len(running) == 2, "the handlers")


def end_after_timeouts(sock: socket.socket, protocol: EngineConnection, running: list[str]) -> None:
    end_in_handlers(sock, protocol, running)
    while protocol.waiting:
        protocol.receive_data(sock.recv(4096))


def end_after_failures(sock: socket.socket, protocol: EngineConnection, _: list[str]) -> None:
    protocol.notify(1, 1, [Message("check"), Message("broken"), Message("broken-async")])
    sock.sendall(protocol.data_to_send())
    while protocol.waiting:
        protocol.receive_data(sock.recv(4096))


ENDS = [end_by_closing, end_by_reset, end_by_disconnect, end_by_garbage, end_by_idling,
        end_in_handlers, end_after_timeouts, end_after_failures]  # fmt: skip


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("end", ENDS)
def test_what_a_connection_had_is_free_once_it_ended(
    agent: Agent, opened: threading.Event, end: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "spop.agent")  # pytest keeps errors, and so their frames.
    running: list[str] = []
    timeout = 0.1 if end is end_after_timeouts else 60

    @agent.message("slow", blocking=True, timeout=timeout)
    def slow() -> None:
        running.append("slow")
        opened.wait(10)

    @agent.message("slow-async", timeout=timeout)
    async def slow_async() -> None:
        running.append("slow-async")
        await asyncio.sleep(10)

    @agent.message("broken", blocking=True)
    def broken() -> None:
        raise ValueError

    @agent.message("broken-async")
    async def broken_async() -> None:
        raise ValueError

    def kept() -> list[object]:
        return [found for found in gc.get_objects() if type(found) in (Connection, AgentConnection)]

    others = kept()  # Of other tests, and alive while this one runs.
    with agent.serve_in_background(idle_timeout=0.2 if end is end_by_idling else 300) as server:
        for _ in range(3):
            running.clear()
            sock, protocol = hello(server)
            with sock:
                end(sock, protocol, running)
        wait_until(lambda: not server.connections(), "the connections' end")
        opened.set()
        wait_until(lambda: len(kept()) == len(others), "the end of what they had")


# --- frames ---


def test_messages_and_arguments_of_a_frame_are_limited(agent: Agent) -> None:
    with agent.serve_in_background(max_messages=3, max_arguments=5) as server:
        for messages in (
            [Message("check", ip=IPv4Address(1))] * 4,
            [Message("check", {f"a{n}": n for n in range(6)})],
        ):
            with Client(str(server.address)) as client:
                with pytest.raises(DisconnectedError) as caught:
                    client.notify(messages)
                assert caught.value.code == Status.TOO_BIG
        assert serves(server)
        assert count(server, Cell.TOO_MANY_MESSAGES) == 2


def test_the_servers_limits_take_the_place_of_the_agents(agent: Agent) -> None:
    with (
        agent.serve_in_background(max_frame_size=300, max_payload_size=1000) as server,
        Client(str(server.address)) as client,
    ):
        assert client.peer.max_frame_size == 300
        assert client.notify("check", body=bytes(2000)).aborted
        assert count(server, Cell.PAYLOADS_TOO_BIG) == 1


def test_frames_larger_than_64_kib_need_no_setting(agent: Agent) -> None:
    @agent.message("length")
    def length(body: bytes) -> dict[str, Any]:
        return {"sess.length": len(body), "sess.echo": body}

    with (
        agent.serve_in_background() as server,
        Client(str(server.address), max_frame_size=1_000_000) as client,
    ):
        answer = client.notify("length", body=bytes(900_000))
        assert answer.variables == {"sess.length": 900_000, "sess.echo": bytes(900_000)}


def test_frames_over_the_in_flight_limit_are_left_in_the_socket(
    agent: Agent, opened: threading.Event
) -> None:
    running: list[int] = []

    @agent.message("slow", blocking=True)
    def slow(n: int) -> dict[str, Any]:
        running.append(n)
        opened.wait(10)
        return {"sess.n": n}

    with agent.serve_in_background(max_in_flight=2) as server:
        sock, protocol = hello(server)
        with sock:
            for number in range(10):
                protocol.notify(number, 1, [Message("slow", n=number)])
            sock.sendall(protocol.data_to_send())
            wait_until(lambda: len(running) == 2, "two handlers")
            assert serves(server)
            assert server.connections()[0]["in_flight"] <= 2
            assert len(running) == 2
            assert count(server, Cell.PAUSED_IN_FLIGHT) == 1
            opened.set()
            while protocol.waiting:
                protocol.receive_data(sock.recv(4096))
        assert sorted(running) == list(range(10))


def test_a_slow_reader_is_not_read_from(agent: Agent) -> None:
    @agent.message("big")
    def big() -> dict[str, Any]:
        return {"sess.x": bytes(15_000)}

    frame = codec.encode_notify(1, 1, [Message("big", padding=bytes(1000))])
    with agent.serve_in_background(max_unsent=64 * 1024) as server:
        sock, _ = hello(server)
        with sock:
            sock.settimeout(0.1)
            rest = b""
            for _ in range(50_000):
                rest = rest or frame
                with contextlib.suppress(TimeoutError):
                    rest = rest[sock.send(rest) :]
                if count(server, Cell.PAUSED_UNSENT):
                    break
            assert count(server, Cell.PAUSED_UNSENT) >= 1
            sock.settimeout(1)
            with pytest.raises(TimeoutError):
                sock.sendall(rest + frame * 50_000)
            assert serves(server)
            (slow,) = (c for c in server.connections() if c["unsent"])
            assert slow["unsent"] < 2 * 64 * 1024


# --- handlers' limits ---


def test_a_handler_that_takes_too_long_is_answered_for(
    agent: Agent, opened: threading.Event
) -> None:
    late: list[str] = []

    @agent.message("slow", blocking=True, timeout=0.1, on_timeout={"txn.late": True})
    def slow() -> dict[str, Any]:
        opened.wait(10)
        late.append("done")
        return {"txn.late": False}

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        answer = client.notify([Message("slow"), Message("check", ip=IPv4Address(3))])
        assert answer.variables == {"txn.late": True, "sess.score": 3}
        opened.set()
        wait_until(lambda: bool(late), "the late handler's end")
        assert client.notify("check", ip=IPv4Address(4)).variables == {"sess.score": 4}
        assert server.totals().routes["slow"][RouteCell.TIMEOUTS] == 1
        assert server.totals().in_hand == 0
    assert agent.errors == {"slow": 1}


def test_a_timeout_without_on_timeout_is_an_empty_ack(
    agent: Agent, opened: threading.Event
) -> None:
    @agent.message("slow", blocking=True, timeout=0.05, on_error={"txn.failed": True})
    def slow() -> None:
        opened.wait(10)

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("slow").actions == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 1}, TypeError),
        ({"concurrency": 1}, TypeError),
        ({"blocking": True, "timeout": 0}, ValueError),
        ({"blocking": True, "concurrency": 0}, ValueError),
    ],
)
def test_handlers_limits_are_checked(
    agent: Agent, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match="message 'm': "):
        agent.message("m", **options)(lambda: None)


def test_concurrency_limits_how_many_run(agent: Agent) -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def enter() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])

    @agent.message("m", blocking=True, concurrency=2)
    def handler(n: int) -> dict[str, Any]:
        enter()
        threading.Event().wait(0.01)
        running[0] -= 1
        return {"sess.n": n}

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        sent = [client.send([Message("m", n=n)]) for n in range(20)]
        for n, stream_id in enumerate(sent):
            assert client.wait(stream_id).variables == {"sess.n": n}
    assert most[0] == 2


def test_a_full_queue_fails_at_once(agent: Agent, opened: threading.Event) -> None:
    @agent.message("slow", blocking=True, on_error={"txn.overload": True})
    def slow() -> dict[str, Any]:
        opened.wait(10)
        return {"txn.done": True}

    with (
        agent.serve_in_background(pool_size=1, max_queue=2) as server,
        Client(str(server.address)) as client,
    ):
        first = client.send([Message("slow")])
        wait_until(lambda: server.executor.busy == 1, "the first handler")
        others = [client.send([Message("slow")]) for _ in range(3)]
        assert client.wait(others[2]).variables == {"txn.overload": True}
        assert count(server, Cell.QUEUED) == 2
        opened.set()
        for stream_id in (first, *others[:2]):
            assert client.wait(stream_id).variables == {"txn.done": True}
        assert count(server, Cell.REJECTED) == 1


# --- async exchanges ---


@pytest.mark.parametrize("threads", [1, 3])
def test_an_ack_leaves_on_another_connection_when_its_own_is_lost(
    agent: Agent, opened: threading.Event, threads: int
) -> None:
    @agent.message("slow", blocking=True)
    def slow(n: int) -> dict[str, Any]:
        opened.wait(10)
        return {"sess.n": n}

    with agent.serve_in_background(threads=threads) as server:
        assert_acks_leave_on_another_connection(server, "slow", opened.set)


# --- what handlers and their logs know ---


@pytest.mark.usefixtures("context_filter")
@pytest.mark.parametrize("kind", ["inline", "blocking", "async"])
def test_handlers_and_logs_know_their_message(
    agent: Agent, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    from spop.context import current

    def look() -> dict[str, Any]:
        running = current()
        assert running is not None
        logging.getLogger("mine").warning("seen")
        return {"sess.who": f"{running.name} {running.stream_id} {running.connection.engine_id}"}

    if kind == "async":

        @agent.message("look")
        async def look_async() -> dict[str, Any]:
            return look()
    else:
        agent.message("look", blocking=kind == "blocking")(look)
    with (
        agent.serve_in_background() as server,
        Client(str(server.address), engine_id="e1") as client,
    ):
        ack = client.notify("look")
        assert ack.variables == {"sess.who": f"look {ack.stream_id} e1"}
    assert current() is None
    (record,) = (r for r in caplog.records if r.name == "mine")
    assert record.spop_message == "look"  # type: ignore[attr-defined]
    assert record.spop_engine == engine_digest("e1")  # type: ignore[attr-defined]


def test_frames_are_logged_when_asked_for(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spop.frames")
    with (
        agent.serve_in_background(log_frames=True) as server,
        Client(str(server.address)) as client,
    ):
        client.notify("check", ip=IPv4Address(5))
    logged = [r.getMessage() for r in caplog.records if r.name == "spop.frames"]
    assert any("from 127.0.0.1" in line and "IPv4Address('0.0.0.5')" in line for line in logged)
    assert any("to 127.0.0.1" in line and "Ack(" in line for line in logged)


# --- files ---


def test_unix_sockets_have_the_mode_and_owner_that_were_asked_for(
    agent: Agent, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    owner = f"{os.getuid()}:{os.getgid()}"
    with agent.serve_in_background(f"unix:{path}", unix_mode="660", unix_owner=owner):
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())


def test_a_socket_file_is_removed_by_the_server_that_owns_it_alone(
    agent: Agent, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    with agent.serve_in_background(f"unix:{path}") as first:
        path.unlink()
        with agent.serve_in_background(f"unix:{path}") as second:
            first.stop()
            assert serves(second)
        assert not path.exists()


@pytest.mark.parametrize("state", [{}, {"address": "unix"}], ids=["socket", "protocol"])
def test_a_connection_that_cannot_be_adopted_does_not_count(
    agent: Agent, state: dict[str, Any]
) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with agent.serve_in_background() as server, ours:
        taken: list[bool] = []
        server.adopt(theirs, {"host": None, "port": None, **state}, taken.append)
        assert received(ours) == []
        wait_until(lambda: taken == [False], "the answer")
        assert server.admission.connections == 0
        assert server.connections() == []
        assert serves(server)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"max_frame_size": 100}, "max_frame_size is 100"),
        ({"unix_mode": "999"}, "unix_mode is '999'"),
        ({"event_loop": "trio"}, "event_loop is 'trio', not one of asyncio, uvloop"),
        ({"allow": ("nowhere",)}, "'nowhere' is no network"),
        ({"tls_key": "key.pem"}, "need tls_cert"),
        ({"tls_cert": "/nowhere/cert.pem"}, "cannot use /nowhere/cert.pem"),
        ({"admin": "nowhere"}, "neither HOST:PORT nor"),
    ],
)
def test_options_are_checked(agent: Agent, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        agent.serve_in_background(**options)


@pytest.mark.parametrize(
    ("owner", "complaint"),
    [
        ("nobody-of-that-name", "no user 'nobody-of-that-name'"),
        ("4294967295", "4294967295 is no user or group"),
        (":" + "9" * 20, "99999999999999999999 is no user or group"),
    ],
)
def test_unknown_users_are_told(agent: Agent, owner: str, complaint: str, tmp_path: Path) -> None:
    server = agent.serve_in_background(f"unix:{tmp_path}/s", unix_owner=owner)
    with pytest.raises(ValueError, match=complaint):
        server.start()


def test_a_client_that_waits_too_long_says_so(agent: Agent, opened: threading.Event) -> None:
    @agent.message("slow", blocking=True)
    def slow() -> None:
        opened.wait(10)

    with (
        agent.serve_in_background() as server,
        Client(str(server.address), timeout=0.1) as client,
        pytest.raises(SpopTimeoutError),
    ):
        client.notify("slow")
