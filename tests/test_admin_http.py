"""The HTTP server of the pages for operators, against whatever connects to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from serving import Served, served, wait_until_serving

from spop import Agent
from spop.server.children import WorkerProcess
from spop.server.questions import Questions
from spop.server.timers import Timers

REQUEST = b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
RESET = b"\1\0\0\0\0\0\0\0"


@pytest.fixture
def admin() -> Iterator[str]:
    """The address of a server's pages."""
    with Agent("a").serve_in_background(
        admin="127.0.0.1:0", admin_host=("spop.example",)
    ) as server:
        yield str(server.admin_address)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[Served, str]]:
    """A process with two workers, and the address of its pages."""
    path = tmp_path / "agent.py"
    path.write_text("from spop import Agent\nagent = Agent('a')\n")
    options = ("--bind", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--processes", "2")
    with served(*options, target=f"{path}:agent") as process:
        wait_until_serving(process)
        found = re.search(r"admin on (\S+)", process.log)
        assert found
        yield process, found[1]


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def get(
    address: str, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection(address, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def statuses(address: str, data: bytes) -> list[int]:
    """The status of each answer to some bytes, until the connection is closed."""
    with connect(address) as sock:
        sock.sendall(data)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+)", received)]


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("localhost", True), ("LOCALHOST:9001", True), ("127.0.0.1:9001", True),
        ("10.1.2.3", True), ("[::1]:9001", True), ("spop.example:9001", True),
        ("Spop.Example", True), ("attacker.example:9001", False), ("127.0.0.1.example", False),
        ("localhost.example", False), ("[::1", False), ("", False), ("a@127.0.0.1@b", False),
    ],
)  # fmt: skip
def test_only_expected_names_show_the_status(admin: str, host: str, shown: bool) -> None:
    """A name that an attacker points here makes his pages and these the same site to a browser."""
    for path in ("/", "/status.json"):
        status, _, body = get(admin, path, Host=host)
        assert status == (200 if shown else 421)
        assert shown or (body.count("\n") == 1 and "--admin-host" in body)
    for path in ("/metrics", "/healthz", "/readyz"):
        assert get(admin, path, Host=host)[0] == 200


def test_answers_carry_the_headers_that_a_browser_needs(admin: str) -> None:
    for path in ("/", "/status.json", "/metrics", "/healthz", "/nothing"):
        _, headers, _ = get(admin, path)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_get_and_head_are_the_methods(admin: str) -> None:
    assert get(admin, "/healthz", "HEAD")[2] == ""
    assert int(get(admin, "/healthz", "HEAD")[1]["Content-Length"]) == 3
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        status, headers, _ = get(admin, "/healthz", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (REQUEST * 2 + REQUEST.replace(b"1.1", b"1.0"), [200, 200, 200]),
        (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", [200]),
        (b"GET /healthz HTTP/1.0\n\n", [200]),
        (b"GET /healthz HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", [200]),
        (b"nonsense\r\n\r\n", [400]),
        (b"\x16\x03\x01\x02\x00\x01\x00\n\n", [400]),
        (b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * 100_000), [400]),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", [400]),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", [400]),
    ],
)
def test_what_is_a_request_is_answered(admin: str, data: bytes, expected: list[int]) -> None:
    with contextlib.suppress(ConnectionResetError):  # It closes with bytes unread.
        assert statuses(admin, data) == expected


def test_slow_clients_take_no_thread_and_keep_nobody_out(service: tuple[Served, str]) -> None:
    """More than there may be: those that have waited longest are closed."""
    process, address = service
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(address)) for _ in range(300)]
        for sock in slow:
            sock.sendall(REQUEST[:20])
        assert get(address, "/healthz")[0] == 200
        workers = {each["pid"] for each in json.loads(get(address, "/status.json")[2])["workers"]}
        (admin,) = set(process.workers()) - workers
        assert len(os.listdir(f"/proc/{admin}/task")) < 12
        with contextlib.suppress(ConnectionResetError):
            assert slow[0].recv(1) == b""
        slow[-1].sendall(REQUEST[20:])
        assert slow[-1].recv(12) == b"HTTP/1.1 200"


def test_a_request_and_the_reading_of_its_answer_have_a_limit_of_time(
    admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spop.server.http.REQUEST_TIMEOUT", 1.0)
    with connect(admin) as half, connect(admin) as idle, connect(admin) as reads_nothing:
        half.sendall(REQUEST[:20])
        reads_nothing.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(OSError):
            while True:
                reads_nothing.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for sock in (half, idle):
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""


def test_clients_that_leave_early_leave_nothing_on_standard_error(
    service: tuple[Served, str],
) -> None:
    process, address = service
    for data in (b"", REQUEST[:20], REQUEST, REQUEST * 50, b"\x16\x03\x01"):
        for reset in (True, False):
            for _ in range(10):
                with connect(address) as sock:
                    sock.sendall(data)
                    if reset:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert get(address, "/healthz")[0] == 200
    process.send_signal(signal.SIGUSR1)
    process.wait_for_log("2 workers")
    assert "Traceback" not in process.log
    assert "Exception" not in process.log


def test_pollers_and_a_worker_that_is_stopped_do_not_hold_the_supervisor_up(
    service: tuple[Served, str],
) -> None:
    process, address = service
    pids = [each["pid"] for each in json.loads(get(address, "/status.json")[2])["workers"]]
    os.kill(pids[0], signal.SIGSTOP)
    try:
        answers: list[int] = []

        def poll() -> None:
            answers.extend(get(address, "/status.json")[0] for _ in range(20))

        pollers = [threading.Thread(target=poll) for _ in range(40)]
        for poller in pollers:
            poller.start()
        process.send_signal(signal.SIGUSR1)
        process.wait_for_log("2 workers")
        for poller in pollers:
            poller.join(60)
        assert answers == [200] * 800
        workers = json.loads(get(address, "/status.json")[2])["workers"]
        assert {each["pid"]: each["state"] for each in workers}[pids[0]] == "stopped"
    finally:
        os.kill(pids[0], signal.SIGCONT)
    wait_until(lambda: get(address, "/readyz")[0] == 200, "the worker")


def test_a_worker_that_does_not_answer_is_not_asked_again_before_it_has() -> None:
    sent: list[dict[str, Any]] = []

    class Channel:
        def send(self, message: dict[str, Any]) -> bool:
            sent.append(message)
            return True

    timers, found = Timers(), list[Any]()
    questions = Questions(timers)
    worker = WorkerProcess(1, Channel(), 0, 0, 0)  # type: ignore[arg-type]
    questions.ask([worker], {}, found.append)
    while not found:
        timers.run_due()
    for _ in range(100):
        questions.ask([worker], {}, found.append)
    while len(found) < 101:
        timers.run_due()
    assert len(sent) == 1
    questions.answered(worker, {"id": sent[0]["id"]})
    questions.ask([worker], {}, found.append)
    assert len(sent) == 2
