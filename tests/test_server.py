"""The server over real sockets: exchanges, order, endings, misbehaving peers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import haproxy_1_7
import pytest
from haproxy import wait_until
from serving import served, wait_until_serving

from spop import (
    UNSET,
    Ack,
    Agent,
    Client,
    DisconnectedError,
    LocalProtocolError,
    Message,
    SpopTimeoutError,
    codec,
)
from spop.connection import Disconnect, EngineConnection, Peer
from spop.constants import FrameType, Status
from spop.server import Server


class Gate:
    """Lets a test decide when a handler goes on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def wait(self) -> None:
        self.entered.release()
        assert self.opened.wait(10)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def agent(gate: Gate) -> Agent:
    agent = Agent()

    @agent.message("check")
    def check(ip: IPv4Address) -> dict[str, Any]:
        return {"sess.score": ip.packed[-1]}

    @agent.message("blocking", blocking=True)
    def blocking(n: int, ack: Ack) -> None:
        gate.wait()
        ack.set("sess", "n", n)

    @agent.message("async")
    async def asynchronous(n: int) -> dict[str, Any]:
        await asyncio.get_running_loop().run_in_executor(None, gate.wait)
        return {"sess.n": n}

    @agent.message("big")
    def big(size: int) -> dict[str, Any]:
        return {"sess.x": bytes(size)}

    @agent.message("failing-async")
    async def failing() -> None:
        raise ValueError("broken")

    return agent


@pytest.fixture(params=["127.0.0.1:0", "[::1]:0", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/agent.sock" if request.param == "unix" else request.param


def connect(server: Server) -> socket.socket:
    sock = socket.create_connection((server.address.host, server.address.port), 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_until_eof(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            data += chunk
    return bytes(data)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exchange(agent: Agent, address: str, threads: int) -> None:
    with agent.serve_in_background(address, threads=threads) as server:
        for number in range(6):
            with Client(str(server.address)) as client:
                ack = client.notify("check", ip=IPv4Address(number))
                assert ack.variables == {"sess.score": number}


def test_several_addresses(agent: Agent, tmp_path: Path) -> None:
    with agent.serve_in_background(["127.0.0.1:0", f"unix:{tmp_path}/a"]) as server:
        for address in server.addresses:
            with Client(str(address)) as client:
                assert len(client.notify("check", ip=IPv4Address(1)).actions) == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_slow_handlers_let_others_pass_when_pipelined(agent: Agent, gate: Gate, kind: str) -> None:
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        slow = [client.send([Message(kind, n=number)]) for number in range(3)]
        assert client.notify("check", ip=IPv4Address(9)).variables == {"sess.score": 9}
        gate.opened.set()
        for number in (2, 0, 1):
            assert client.wait(slow[number]).variables == {"sess.n": number}


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_acks_keep_their_order_without_pipelining(agent: Agent, gate: Gate, kind: str) -> None:
    protocol = EngineConnection(capabilities=frozenset())
    with agent.serve_in_background() as server, connect(server) as sock:
        sock.sendall(protocol.data_to_send())
        protocol.receive_data(sock.recv(4096))
        frames = codec.encode_notify(1, 1, [Message(kind, n=1)])
        codec.encode_notify(2, 1, [Message("check", ip=IPv4Address(2))], frames)
        sock.sendall(frames)
        assert gate.entered.acquire(timeout=5)
        gate.opened.set()
        data = b""
        while len(acks := codec.decode_frames(data)[0]) < 2:
            data += sock.recv(4096)
        assert [ack.stream_id for ack in acks if isinstance(ack, Ack)] == [1, 2]


def test_kinds_of_handlers_may_be_mixed_in_a_notify(agent: Agent, gate: Gate) -> None:
    gate.opened.set()
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        ack = client.notify(
            [
                Message("blocking", n=1),
                Message("failing-async"),
                Message("check", ip=IPv4Address(5)),
                Message("nobody"),
                Message("async", n=2),
            ]
        )
    assert [action[1:] for action in ack.actions] == [("n", 1), ("score", 5), ("n", 2)]
    assert agent.errors == {"failing-async": 1}


@pytest.mark.parametrize("kind", ["inline", "blocking", "async"])
def test_none_in_an_answer_removes_the_variable(gate: Gate, kind: str) -> None:
    agent = Agent()
    limits: dict[str, Any] = (
        {} if kind == "inline" else {"timeout": 1, "on_timeout": {"txn.c": None}}
    )
    answers = {"on_error": {"txn.b": None}, **limits}

    def answer(ack: Ack, fails: bool = False, hangs: bool = False) -> dict[str, Any]:
        if hangs:
            gate.wait()
        ack.set("txn", "a", None)
        return {"txn.d": 1.5 if fails else None}

    if kind == "async":

        @agent.message("m", **answers)
        async def handler(ack: Ack, fails: bool = False, hangs: bool = False) -> dict[str, Any]:
            return await asyncio.to_thread(answer, ack, fails, hangs)
    else:
        agent.message("m", blocking=kind == "blocking", **answers)(answer)
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("m").variables == {"txn.a": UNSET, "txn.d": UNSET}
        assert client.notify("m", fails=True).variables == {"txn.b": UNSET}
        if kind != "inline":
            assert client.notify("m", hangs=True).variables == {"txn.c": UNSET}


def test_an_answer_too_big_for_a_frame_is_empty(agent: Agent) -> None:
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("big", size=20_000).actions == []
        assert len(client.notify("big", size=16_000).actions) == 1
    assert agent.errors == {"big": 1}


@pytest.mark.parametrize("max_frame_size", [256, 1000, 500_000])
def test_payloads_of_any_size(agent: Agent, max_frame_size: int) -> None:
    @agent.message("length", blocking=True)
    def length(body: bytes) -> dict[str, Any]:
        return {"sess.length": len(body)}

    with (
        agent.serve_in_background() as server,
        Client(str(server.address), max_frame_size=max_frame_size) as client,
    ):
        for size in (0, 240, 5000, 400_000, 2_000_000):
            assert client.notify("length", body=bytes(size)).variables == {"sess.length": size}


@pytest.mark.parametrize("size", [1, 3, 7, 1000, 40_000])
def test_frames_and_fragments_may_arrive_in_pieces_of_any_size(agent: Agent, size: int) -> None:
    @agent.message("length")
    def length(body: bytes) -> dict[str, Any]:
        return {"sess.length": len(body)}

    engine = EngineConnection(max_frame_size=300)
    lengths = [10, 1000, 0, 250, 2000]
    with agent.serve_in_background() as server, connect(server) as sock:
        sock.sendall(engine.data_to_send())
        while engine.peer is None:
            engine.receive_data(sock.recv(65536))
        for stream_id, body in enumerate(lengths):
            engine.notify(stream_id, 1, [Message("length", body=bytes(body))])
        data = engine.data_to_send()
        for start in range(0, len(data), size):
            sock.sendall(data[start : start + size])
        acks: list[Any] = []
        while len(acks) < len(lengths):
            acks += engine.receive_data(sock.recv(65536))
    assert [ack.variables for ack in acks] == [{"sess.length": n} for n in lengths]


def test_a_payload_over_the_limit_is_aborted(agent: Agent) -> None:
    agent.max_payload_size = 10_000
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("check", body=bytes(50_000)).aborted
        assert client.notify("check", ip=IPv4Address(1)).variables == {"sess.score": 1}


def test_hooks_see_connections_come_and_go(agent: Agent) -> None:
    seen: list[tuple[str, Peer, Any]] = []
    agent.on_connect(lambda peer: seen.append(("connect", peer, None)))
    agent.on_disconnect(lambda peer, reason: seen.append(("disconnect", peer, reason)))
    with agent.serve_in_background() as server:
        with Client(str(server.address), engine_id="e") as client:
            client.notify("nobody")
        with Client(str(server.address), healthcheck=True):
            pass
    (_, first, _), (_, last, reason) = seen
    assert first is last
    assert first.engine_id == "e"
    assert reason == Disconnect(Status.NORMAL, "normal", True)


def test_a_handler_can_ask_the_agent_itself(agent: Agent) -> None:
    @agent.message("proxy", blocking=True)
    def proxy(ip: IPv4Address) -> dict[str, Any]:
        with Client(str(server.address)) as inner:
            return dict(inner.notify("check", ip=ip).variables)

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("proxy", ip=IPv4Address(3)).variables == {"sess.score": 3}


# --- misbehaving peers ---


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Status.TOO_BIG),
        (bytes(20), Status.INVALID),
        (bytes(codec.encode_notify(1, 1, [])), Status.INVALID),
    ],
    ids=["HTTP", "zeros", "NOTIFY first"],
)
def test_garbage_is_answered_with_disconnect(agent: Agent, data: bytes, status: Status) -> None:
    with agent.serve_in_background() as server, connect(server) as sock:
        sock.sendall(data)
        ((frame,), _) = codec.decode_frames(read_until_eof(sock))
        assert frame.items["status-code"] == status  # type: ignore[union-attr]


# --- HAProxy 1.7, which sets no flags ---


@pytest.mark.parametrize("log_frames", [False, True], ids=["fast", "logged"])
def test_haproxy_1_7_is_served(
    agent: Agent, gate: Gate, log_frames: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "spop.frames")
    gate.opened.set()
    with agent.serve_in_background(log_frames=log_frames) as server:
        with connect(server) as sock:
            sock.sendall(haproxy_1_7.HEALTH_CHECK)
            ((hello,), _) = codec.decode_frames(read_until_eof(sock))
            assert (hello.items["version"], hello.items["capabilities"]) == ("1.0", "")
        with connect(server) as sock:
            sock.sendall(haproxy_1_7.hello())
            assert sock.recv(4096)
            check = haproxy_1_7.notify(1, Message("check", ip=IPv4Address(7)))
            blocking = haproxy_1_7.notify(2, Message("blocking", n=5))
            for data in (check, check[:3], check[3:], check[:-1], check[-1:] + check, blocking):
                sock.sendall(data)
            answers = bytearray()
            while len(codec.decode_frames(answers)[0]) < 5:
                answers += sock.recv(4096)
            *checked, last = codec.decode_frames(answers)[0]
            assert [ack.variables for ack in checked] == [{"sess.score": 7}] * 4
            assert last.variables == {"sess.n": 5}
            sock.sendall(haproxy_1_7.DISCONNECT)
            ((goodbye,), _) = codec.decode_frames(read_until_eof(sock))
            assert goodbye.items["status-code"] == Status.NORMAL
    assert "damaged" not in caplog.text
    assert caplog.text.count("Notify(") == 5 * log_frames


@pytest.mark.parametrize("log_frames", [False, True], ids=["fast", "logged"])
def test_a_hello_without_flags_that_fails_is_not_answered(agent: Agent, log_frames: bool) -> None:
    with agent.serve_in_background(log_frames=log_frames) as server, connect(server) as sock:
        sock.sendall(haproxy_1_7.hello(supported_versions="3.0", healthcheck=True))
        assert read_until_eof(sock) == b""


def test_a_hello_in_host_order_is_logged(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "spop.frames")
    items = {"supported-versions": "1.0", "max-frame-size": 16380, "capabilities": ""}
    hello = codec.encode_control(FrameType.HAPROXY_HELLO, items, little_endian=True)
    with agent.serve_in_background(log_frames=True) as server, connect(server) as sock:
        sock.sendall(hello)
        assert sock.recv(4096)
    assert "HAPROXY_HELLO" in caplog.text
    assert "damaged" not in caplog.text


def test_peers_that_vanish_disturb_nobody(agent: Agent, gate: Gate) -> None:
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        for number in range(20):
            protocol = EngineConnection()
            sock = connect(server)
            sock.sendall(protocol.data_to_send())
            protocol.receive_data(sock.recv(4096))
            protocol.notify(1, 1, [Message("blocking", n=number)])
            sock.sendall(protocol.data_to_send())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
        gate.opened.set()
        assert client.notify("check", ip=IPv4Address(1)).variables == {"sess.score": 1}


def test_a_peer_that_does_not_read_is_not_read_from(agent: Agent) -> None:
    """Back-pressure: what it may have waiting is bounded, and others are served."""
    protocol = EngineConnection()
    request = codec.encode_notify(1, 1, [Message("big", size=16_000, padding=bytes(16_000))])
    with agent.serve_in_background() as server, connect(server) as sock:
        sock.sendall(protocol.data_to_send())
        sock.recv(4096)
        sock.settimeout(1)
        written = 0
        with pytest.raises(TimeoutError):  # Otherwise it read on although nobody reads its answers.
            while written < 100_000_000:
                sock.sendall(request)
                written += len(request)
        with Client(str(server.address)) as client:
            assert client.notify("check", ip=IPv4Address(1)).variables == {"sess.score": 1}
        sock.shutdown(socket.SHUT_WR)
        answered = len(read_until_eof(sock)) // 16_000
    assert answered >= written // len(request)


# --- stopping ---


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_stopping_answers_the_frames_in_hand_and_says_goodbye(
    agent: Agent, gate: Gate, kind: str
) -> None:
    server = agent.serve_in_background(threads=2)
    server.start()
    address = server.address
    protocol = EngineConnection()
    with connect(server) as sock:
        sock.sendall(protocol.data_to_send())
        protocol.receive_data(sock.recv(4096))
        protocol.notify(1, 1, [Message(kind, n=5)])
        sock.sendall(protocol.data_to_send())
        assert gate.entered.acquire(timeout=5)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        wait_until_refused(address.host, address.port)
        gate.opened.set()
        (ack, goodbye), _ = codec.decode_frames(read_until_eof(sock))
    stopping.join(10)
    assert isinstance(ack, Ack)
    assert ack.variables == {"sess.n": 5}
    assert goodbye.items == {"status-code": 0, "message": "normal"}  # type: ignore[union-attr]


def wait_until_refused(host: str, port: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            return
    raise AssertionError("still accepts connections")


def test_a_handler_that_hangs_does_not_hang_the_stop(agent: Agent, gate: Gate) -> None:
    server = agent.serve_in_background(drain_timeout=0.1)
    server.start()
    with Client(str(server.address)) as client:
        stream_id = client.send([Message("blocking", n=5)])
        assert gate.entered.acquire(timeout=5)
        server.stop()
        assert server.busy_handlers == 1
        with pytest.raises((DisconnectedError, OSError)):
            client.wait(stream_id)


def test_a_handler_that_hangs_does_not_hang_the_command(tmp_path: Path) -> None:
    module = tmp_path / "hanging.py"
    module.write_text(
        "import spop, time\nagent = spop.Agent()\n"
        "@agent.message('m', blocking=True)\ndef handler(): time.sleep(1000)\n"
    )
    address = f"unix:{tmp_path}/agent.sock"
    with served("--bind", address, "--drain-timeout", "0.1", target=f"{module}:agent") as process:
        wait_until_serving(process)
        with Client(address) as client:
            client.send([Message("m")])
            with contextlib.suppress(SpopTimeoutError):
                client.notify("nobody")
            process.terminate()
            assert process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_the_command_with_exit_status_0(tmp_path: Path, number: int) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    with served("--bind", address, "--threads", "2") as process:
        wait_until_serving(process)
        protocol = EngineConnection()
        with Client(address) as client, socket.socket(socket.AF_UNIX) as sock:
            assert client.notify("check-client-ip", ip=IPv4Address("192.0.2.1")).variables == {
                "sess.ip_score": 0
            }
            sock.connect(f"{tmp_path}/agent.sock")
            sock.sendall(protocol.data_to_send())
            protocol.receive_data(sock.recv(4096))
            process.send_signal(number)
            assert protocol.receive_data(read_until_eof(sock)) == [
                Disconnect(Status.NORMAL, "normal", True)
            ]
        assert process.wait(10) == 0
    assert not os.path.exists(f"{tmp_path}/agent.sock")


def test_a_socket_left_by_a_dead_server_is_taken_over(agent: Agent, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    with served("--bind", address) as process:
        wait_until_serving(process)
        with pytest.raises(OSError, match="in use"):
            agent.serve_in_background(address).start()
        process.kill()
        process.wait()
        wait_until(lambda: refused(f"{tmp_path}/agent.sock"), "the workers' end")
        with agent.serve_in_background(address), Client(address) as client:
            client.notify("nobody")


def refused(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == errno.ECONNREFUSED


# --- the client's errors ---


def test_the_client_tells_what_went_wrong(agent: Agent, gate: Gate) -> None:
    with agent.serve_in_background() as server:
        address = str(server.address)
        with Client(address, timeout=0.1) as client, pytest.raises(SpopTimeoutError, match="ACK"):
            client.notify("blocking", n=1)
        with pytest.raises(LocalProtocolError, match="not connected"):
            client.notify("check")
        gate.opened.set()
    with pytest.raises(ConnectionRefusedError):
        Client(address).connect()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)
        with pytest.raises(SpopTimeoutError, match="AGENT-HELLO"):
            client.connect()
        client.close()


@pytest.mark.parametrize(
    "address", ["", "nowhere", "host:", "host:port", ":99999", "unix:", "::1:5"]
)
def test_addresses_are_checked(agent: Agent, address: str) -> None:
    for use in (Client, agent.serve_in_background):
        with pytest.raises(ValueError, match="address"):
            use(address)


# --- what is imported ---

WITHOUT_ASYNC_HANDLERS = """
import sys
import spop.server
from spop import Agent, Cache, Client, Message

agent = Agent()
agent.message("inline")(lambda: None)
agent.message("cached", cache=Cache(60, 10))(lambda: None)
agent.message("pool", blocking=True)(lambda: None)
with agent.serve_in_background() as server, Client(str(server.address)) as client:
    for name in agent.handlers:
        client.notify(name)
assert "asyncio" not in sys.modules
"""


def test_asyncio_is_not_imported_without_handlers_that_need_it() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_ASYNC_HANDLERS], check=True, timeout=60)


def test_a_loop_with_busy_poll_looks_before_it_sleeps() -> None:
    with Agent().serve_in_background("127.0.0.1:0", busy_poll=1.0) as server:
        (loop,) = server._loops
        stat = Path(f"/proc/self/task/{loop.thread.native_id}/stat")

        def ticks() -> int:
            return sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))

        before = ticks()
        with Client(str(server.address)) as client:
            client.notify("unknown")
        wait_until(lambda: ticks() - before >= 10, "a tenth of a second of processor time")
