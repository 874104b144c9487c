"""What peers cause is logged at a limited rate, and of their texts the beginning."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import signal
import socket
import ssl
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trustme
from haproxy import wait_until
from implementations import intake_class, route_class
from serving import served
from wire import connect, hello

from spop import Ack, Agent, Client, Message, Peer, codec, logs
from spop.connection import AgentConnection, EngineConnection, Hello
from spop.constants import MAX_TEXT_SIZE, FrameType, Status
from spop.logs import FORMATTERS, RateLimitedLog

LONG = "x" * 10_000
LEFT_OUT = re.compile("more in the last 0.1 s|left_out")


@pytest.fixture(params=sorted(FORMATTERS))
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged, in each format. What was left out is told after 0.1 s."""
    monkeypatch.setattr(logs, "REPORT_AFTER", 0.1)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(FORMATTERS[request.param]())
    root = logging.getLogger("spop")
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def assert_limited(log: io.StringIO, text: str) -> None:
    """Lines with the text are few, and the last says how many there were."""
    wait_until(lambda: LEFT_OUT.search(log.getvalue()), "a count of lines")
    assert 1 < len(re.findall(text, log.getvalue())) < 150
    assert "Traceback" not in log.getvalue()


def test_connections_that_come_and_go_are_logged_at_a_limited_rate(log: io.StringIO) -> None:
    with Agent().serve_in_background() as server:
        for _ in range(300):
            sock, _ = hello(server)
            sock.close()
        assert_limited(log, "connection from|connected")


def test_handshakes_that_fail_are_logged_at_a_limited_rate(log: io.StringIO) -> None:
    with Agent().serve_in_background() as server:
        for _ in range(300):
            with connect(server) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert_limited(log, "looks like HTTP")


def test_handlers_that_fail_are_logged_at_a_limited_rate(log: io.StringIO) -> None:
    agent = Agent()

    @agent.message("check")
    def check(a: int) -> None: ...

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        for _ in range(500):
            client.notify("check")
        wait_until(lambda: LEFT_OUT.search(log.getvalue()), "a count of lines")
        assert 1 < log.getvalue().count("no argument a") < 200


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    return {"tls_cert": f"{tmp_path}/cert.pem", "tls_key": f"{tmp_path}/key.pem"}


# The standard library's SSLSocket warns if a reset comes while it is made.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("sent", [b"", b"\x16\x03", b"GET / HTTP/1.1\r\n\r\n"])
def test_tcp_checks_of_a_tls_port_make_no_tracebacks(
    tls: dict[str, str], sent: bytes, log: io.StringIO
) -> None:
    with Agent().serve_in_background(**tls) as server:
        for _ in range(300):
            sock = connect(server)
            if sent:
                sock.sendall(sent)
            reset(sock)
        assert_limited(log, "connection from|connected")


def test_a_client_that_rejects_the_certificate_makes_a_line(
    tls: dict[str, str], log: io.StringIO
) -> None:
    with Agent().serve_in_background(**tls) as server:
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLError), connect(server) as sock:
            context.wrap_socket(sock, server_hostname="localhost")
        line = re.compile("connection from|connection refused|connection failed|certificate")
        wait_until(lambda: bool(line.search(log.getvalue())), "a line")
        assert "Traceback" not in log.getvalue()


@pytest.mark.parametrize(("level", "shown"), [("info", True), ("debug", False)])
def test_lines_about_connections_have_a_level_of_their_own(
    level: str, shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO),
        Agent().serve_in_background(log_connections=level) as server,
    ):
        hello(server)[0].close()
        with connect(server) as sock:
            sock.sendall(bytes(20))
            assert sock.recv(4096)
            assert sock.recv(4096) == b""
    assert ("connection from" in caplog.text) == shown
    assert ("disconnected by" in caplog.text) == shown
    assert "frame of 0 bytes" in caplog.text  # A problem, whatever the level is.


def test_the_last_line_that_was_left_out_comes_with_the_number_of_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "REPORT_AFTER", 0.05)
    monkeypatch.setattr(logs.time, "monotonic", lambda: 1.0)
    limited = RateLimitedLog(logging.getLogger("spop.test"), 2)
    for number in range(2):
        limited.warning("%d of %s", number, "these")
    limited.warning("alone")
    wait_until(lambda: len(caplog.messages) == 3, "the line that was left out")
    for number in range(100):
        limited.warning("%d of %s", number, "these")
    wait_until(lambda: len(caplog.messages) == 4, "the count")
    assert caplog.messages == [
        "0 of these", "1 of these", "alone", "99 of these ... and 99 more in the last 0.05 s",
    ]  # fmt: skip


# --- texts of peers ---


def test_a_peers_texts_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    connection = AgentConnection()
    data = codec.encode_control(
        FrameType.HAPROXY_HELLO,
        {"supported-versions": LONG, "max-frame-size": 16380, "capabilities": ""},
    )
    (end,) = connection.receive_data(data)
    assert len(end.message) <= MAX_TEXT_SIZE
    engine = EngineConnection()
    data = codec.encode_control(
        FrameType.AGENT_HELLO, {"version": LONG, "max-frame-size": 16380, "capabilities": ""}
    )
    (end,) = engine.receive_data(data)
    assert len(end.message) < 2 * MAX_TEXT_SIZE
    for end_of, type_ in (
        (AgentConnection(), FrameType.HAPROXY_DISCONNECT),
        (EngineConnection(), FrameType.AGENT_DISCONNECT),
    ):
        items = {"status-code": int(Status.NORMAL), "message": LONG}
        (end,) = end_of.receive_data(codec.encode_control(type_, items))
        assert len(end.message) <= MAX_TEXT_SIZE


def opened(dispatch: ModuleType) -> Any:
    intake = intake_class(dispatch)(2**20)
    intake.peer = Peer("", "2.0", 2**20, frozenset())
    intake.is_open = True
    return intake


def test_names_of_unknown_messages_are_cut(dispatch: ModuleType) -> None:
    dispatcher = dispatch.Dispatcher(())
    dispatcher.receive(opened(dispatch), codec.encode_notify(1, 1, [Message(LONG)]))
    assert dispatcher.unknown == {LONG[:MAX_TEXT_SIZE]: 1}


def test_long_names_of_arguments_are_not_kept(dispatch: ModuleType) -> None:
    dispatcher = dispatch.Dispatcher([route_class(dispatch)("m", lambda: None)])
    intake, before = opened(dispatch), peak()
    for number in range(1000):
        name = f"{number}{'x' * 500_000}"
        dispatcher.receive(intake, codec.encode_notify(1, 1, [Message("m", {name: 1})]))
    assert peak() - before < 100 * 2**20


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_a_failure_with_a_peers_text_makes_a_short_traceback(log: io.StringIO) -> None:
    agent = Agent()

    @agent.message("check")
    def check(text: str) -> None:
        raise ValueError(text)

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        client.notify("check", text="\u2028" * 3000)
        client.notify("check", text="y\n" * 3000)
        failed = re.compile("'check' failed|handler failed")
        wait_until(lambda: len(failed.findall(log.getvalue())) == 2, "two failures")
    assert len(log.getvalue()) < 30_000


def test_a_peers_text_forges_no_line_and_sends_a_terminal_nothing(log: io.StringIO) -> None:
    agent, text = Agent(), "\x1b[2J\x9b0m\0\rforged\nforged\u2028forged\u202e"

    @agent.message("check")
    def check(text: str) -> None:
        logging.getLogger("spop.mine").warning("%s", text)
        raise ValueError(text)

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        client.notify("check", text=text)
        client.notify("check", text=b"not text")
        client.notify(text)
        wait_until(lambda: log.getvalue().count("forged") >= 4, "a failure and an unknown message")
    lines = log.getvalue().split("\n")
    assert [line for line in lines if not line.isprintable() or line.startswith("forged")] == []


def test_connections_with_the_longest_engine_ids_are_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with (
        served("--bind", f"unix:{path}", "--log-format", "json") as process,
        contextlib.ExitStack() as stack,
    ):
        process.wait_for_log('"event": "serves"')
        (worker,) = process.workers()
        connections = []
        for number in range(60):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.connect(str(path))
            protocol = EngineConnection(engine_id=f"{number}" + "\u2028" * 5000)
            sock.sendall(protocol.data_to_send())
            assert isinstance(protocol.receive_data(sock.recv(4096))[0], Hello)
            connections.append((sock, protocol))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: process.workers() and worker not in process.workers(), "a new worker")
        for sock, protocol in connections:
            protocol.notify(1, 1, [Message("check-client-ip", ip=IPv4Address(1))])
            sock.sendall(protocol.data_to_send())
            assert isinstance(protocol.receive_data(sock.recv(4096))[0], Ack)
        assert max(map(len, process.lines)) < 4000
