"""``spop top``: plain text in a pipe, a live view on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from test_admin import serving

from spop import Agent, Client, Message
from spop.cli.top import report

COMMAND = [sys.executable, "-m", "spop", "top"]


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def calling(address: str) -> Iterator[None]:
    """A client that calls until the end."""
    ended = threading.Event()

    def call() -> None:
        with Client(address) as client:
            while not ended.wait(0.01):
                client.notify([Message("check", ip=IPv4Address(1)), Message("broken")])

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_pipe_gets_plain_text_once(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--processes", "2") as (_, base),
        calling(f"unix:{tmp_path}/agent.sock"),
    ):
        shown = top(base, "--interval", "0.5")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "\x1b" not in shown.stdout
        assert "shown <b> is ready" in shown.stdout
        assert re.search(r"^check +[1-9][\d.]* +0 +0 +\S+ us ", shown.stdout, re.MULTILINE)
        assert re.search(r"^broken +([1-9][\d.]*) +[1-9][\d.]* +0 ", shown.stdout, re.MULTILINE)
        workers = re.findall(r"^\d+ +ready +\d+ s +\d+ .*%.*M$", shown.stdout, re.MULTILINE)
        assert len(workers) == 2
        assert max(map(len, shown.stdout.splitlines())) <= 80
        again = top(base, "--interval", "0.1", "--count", "3")
        assert again.stdout.count("is ready") == 3


def test_a_terminal_gets_a_live_view_until_q(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, base):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, base, "--interval", "0.2"], stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = bytearray()

        def read() -> None:
            with contextlib.suppress(OSError):  # The other end is closed.
                while data := os.read(ours, 65536):
                    shown.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            wait_until(lambda: shown.count(b"is ready") >= 3, "three looks")
            os.write(ours, b"q")
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
            reader.join()
            os.close(ours)
    text = shown.decode()
    assert text.startswith("\x1b[?1049h")
    assert text.endswith("\x1b[?1049l")
    assert text.count("\x1b[H") >= 3


def test_what_does_not_answer_is_an_error(tmp_path: Path) -> None:
    silent = top(f"unix:{tmp_path}/nobody")
    assert silent.returncode == 1
    assert silent.stderr.startswith("Error: unix:")
    assert silent.stderr.count("\n") == 1


def test_another_address_than_that_of_the_admin_is_named_as_such(tmp_path: Path) -> None:
    with Agent().serve_in_background() as server:
        shown = top(str(server.address))
        assert (shown.returncode, shown.stdout) == (1, "")
        wanted = f"Error: {server.address} does not answer: this is not HTTP; give the address of"
        assert shown.stderr == f"{wanted} --admin\n"


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "it says 404 Not Found"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "this is HTTP, but no service of spop"),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "this is HTTP, but no service of spop"),
    ],
)
def test_another_web_server_is_no_admin(answer: bytes, what: str) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        shown = top(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
    assert f" does not answer: {what}; give the address of --admin" in shown.stderr


def test_a_server_in_a_program_on_a_unix_socket(tmp_path: Path) -> None:
    agent = Agent("in\x1b[2Jside")
    agent.message("m")(lambda: None)
    with agent.serve_in_background(admin=f"unix:{tmp_path}/admin"):
        shown = top(f"unix:{tmp_path}/admin", "--interval", "0.1")
    assert shown.stdout.startswith(r"in\x1b[2Jside is ready")
    assert "WORKER" not in shown.stdout


def status(when: float, **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(
        ("frames_received", "frames_sent", "unknown_messages", "acks_dropped", "connections",
         "frames_in_hand", "queued", "running"), 0,
    )  # fmt: skip
    return {
        "agent": "a", "version": "1", "time": when, "started": 0.0, "alive": True, "ready": True,
        "draining": False, "restarts": 0, "frames_lost": 0, "handlers": [], "workers": [],
        "counts": {**counts, "oldest_job": 0.0}, **more,
    }  # fmt: skip


@pytest.mark.parametrize("known", [False, True])
def test_a_worker_that_is_new_has_its_own_count_alone(known: bool) -> None:
    worker = {
        "pid": 7, "state": "ready", "started": 0.0, "connections": 1, "frames_received": 30,
        "frames_in_hand": 0, "queued": 0, "running": 0, "cpu_seconds": 5.0, "memory_bytes": 1 << 20,
    }  # fmt: skip
    before = [{**worker, "frames_received": 10, "cpu_seconds": 4.0}] if known else []
    lines = list(report(status(100.0, workers=before), status(110.0, workers=[worker])))
    expected = r"7 +ready +1 min +1 +2.0 .* 10%" if known else r"7 +ready +1 min +1 +3.0 .* 0%"
    assert re.match(expected, lines[-1]), lines[-1]


def test_messages_without_a_handler_are_named() -> None:
    lines = list(report(status(1.0), status(2.0, without_handler={"x\n": 3})))
    assert r"no handler for x\n: 3 messages to the workers that serve" in lines
