"""A supervisor that lacks something, hears nonsense, is asked twice, or is killed."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from serving import Served, is_alive, served, wait_until_serving

from spop import Ack, Agent, Client, Message, SpopError, codec
from spop.connection import EngineConnection

AGENT = """
import os, re, socket, struct, time
from pathlib import Path
from spop import Agent

folder = Path(__file__).parent
agent = Agent("tested")
{at_import}

@agent.message("check")
def check():
    return {{"txn.pid": os.getpid(), "txn.version": {version}}}

@agent.message("hang")
def hang():
    time.sleep(1000)

@agent.message("hold")
def hold():
    re.match("(a+)+$", "a" * 60 + "b")

@agent.message("write", blocking=True)
def write(data: bytes, fds: int):
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.family == socket.AF_UNIX:  # Our addresses are TCP.
                    socket.send_fds(sock, [data], [0] * fds)
        except OSError:
            pass
"""


def write_agent(folder: Path, version: int = 1, at_import: str = "") -> Path:
    path = folder / "tested_agent.py"
    path.write_text(AGENT.format(version=version, at_import=at_import))
    return path


@contextlib.contextmanager
def serving(folder: Path, *options: str, launcher: str = "") -> Iterator[tuple[Served, str]]:
    """The process, and its address."""
    path, words = write_agent(folder), []
    if launcher:
        (folder / "launcher.py").write_text(launcher)
        words = [str(folder / "launcher.py"), str(folder)]
    process = Served("--bind", "127.0.0.1:0", *options, target=f"{path}:agent", launcher=words)
    try:
        wait_until_serving(process)
        (port,) = re.findall(r"serves on 127.0.0.1:(\d+)", process.log)
        yield process, f"127.0.0.1:{port}"
    finally:
        process.end()


def ask(client: Client) -> dict[str, Any]:
    return dict(client.notify("check").variables)


# --- what the system does not allow ---

FORKS_FAIL = """
import errno, os, sys
from pathlib import Path
fork, marker = os.fork, Path(sys.argv[1]) / "no-forks"

def may_fail():
    if marker.exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()

os.fork = may_fail
sys.argv = ["spop", *sys.argv[4:]]
from spop.__main__ import main
main()
"""


@contextlib.contextmanager
def no_more(what: str, process: Served, folder: Path) -> Iterator[None]:
    """The supervisor gets no more descriptors, or can't fork."""
    if what == "forks":
        (folder / "no-forks").touch()
        yield
        (folder / "no-forks").unlink()
    else:
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        yield
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)


WHATS = pytest.mark.parametrize("what", ["descriptors", "forks"])


@WHATS
def test_workers_that_cannot_be_replaced_stay(tmp_path: Path, what: str) -> None:
    with serving(tmp_path, launcher=FORKS_FAIL) as (process, address), Client(address) as client:
        first = ask(client)
        write_agent(tmp_path, version=2)
        with no_more(what, process, tmp_path):
            process.send_signal(signal.SIGHUP)
            process.wait_for_log("the workers are not replaced")
            assert re.search("cannot start a worker: .*(open files|unavailable)", process.log)
            assert ask(client) == first
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: ask(client)["txn.version"] == 2, "the new code")


@WHATS
def test_a_worker_that_cannot_be_restarted_is_tried_again_ever_later(
    tmp_path: Path, what: str
) -> None:
    options = ("--processes", "2")
    with serving(tmp_path, *options, launcher=FORKS_FAIL) as (process, address):
        killed, other = process.workers()
        with no_more(what, process, tmp_path):
            os.kill(killed, signal.SIGKILL)
            process.wait_for_log("cannot start a worker", 3)
            with Client(address) as client:
                assert ask(client)["txn.pid"] == other
        wait_until(lambda: len(process.workers()) == 2, "the new worker")
        assert process.log.count("cannot start a worker") < 10


@WHATS
def test_an_admin_process_that_cannot_be_restarted_is_tried_again(
    tmp_path: Path, what: str
) -> None:
    admin = f"unix:{tmp_path}/admin"
    with (
        serving(tmp_path, "--admin", admin, launcher=FORKS_FAIL) as (process, address),
        Client(address) as client,
    ):
        worker = ask(client)["txn.pid"]
        with no_more(what, process, tmp_path):
            (killed,) = set(process.workers()) - {worker}
            os.kill(killed, signal.SIGKILL)
            process.wait_for_log("cannot start the admin process")
            assert ask(client)["txn.pid"] == worker
        wait_until(lambda: len(process.workers()) == 2, "the new admin process")


FEW_FILES = """
import os, resource, sys, spop.cli.serve, spop.server.supervisor, importlib.util
from spop.__main__ import main
from spop.cli.loading import load_agent
left = int(sys.argv.pop())
sys.argv = ["spop", *sys.argv[3:]]
load_agent(sys.argv[2])  # So that Python itself needs no file.
limit = len(os.listdir("/proc/self/fd")) - 1 + left
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
main()
"""


def test_a_supervisor_without_descriptors_ends_with_one_line(tmp_path: Path) -> None:
    """Whichever of those that it needs is the one that it does not get."""
    launcher, path = tmp_path / "launcher.py", write_agent(tmp_path)
    launcher.write_text(FEW_FILES)
    for left in range(20):
        options = ("--bind", "127.0.0.1:0", "--admin", "127.0.0.1:0", str(left))
        process = Served(*options, target=f"{path}:agent", launcher=[str(launcher)])
        try:
            wait_until(lambda p=process: p.poll() is not None or "serves on" in p.log, "an end")  # type: ignore[misc]
            if process.poll() is None:
                break
            process.end()
            lines = [line for line in process.lines if " INFO " not in line]
            assert process.returncode == 2, process.log
            assert len(lines) == 1, (left, process.log)
            assert "Too many open files" in lines[0], process.log
        finally:
            if process.poll() is None:
                process.end()
    assert 5 < left < 19, "some starts failed, and one did not"


# --- messages that are none ---


def framed(message: Any, fds: int = 0) -> bytes:
    text = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack("!IB", len(text), fds) + text


MALFORMED = {
    "no JSON": framed(b"\xff{"),
    "nested": framed(b"[" * 100_000),
    "no object": framed([1]),
    "no type": framed({}),
    "another type": framed({"type": ["ready"]}),
    "ready": framed({"type": "ready", "agent": "x", "handlers": [7], "metrics": [], "files": []}),
    "metrics": framed(
        {"type": "ready", "agent": "x", "handlers": [], "metrics": [["counter", 7]], "files": []}
    ),
    "handlers": framed(
        {"type": "ready", "agent": "x", "handlers": ["x"] * 5000, "metrics": [], "files": []}
    ),
    "files": framed({"type": "ready", "agent": "x", "handlers": [], "metrics": [], "files": [7]}),
    "answer": framed({"type": "answer", "id": [], "connections": []}),
    "connections": framed({"type": "answer", "id": 0, "connections": [7], "without_handler": {}}),
    "counts": framed({"type": "answer", "id": 0, "connections": [], "without_handler": {"m": "1"}}),
    "no counts": framed({"type": "answer", "id": 0, "connections": []}),
    "state": framed({"type": "connection", "id": 0, "state": {"host": {}}}),
    "time": framed(
        {"type": "connection", "id": 0, "state": {"host": "", "port": 1, "began": None}}
    ),
    "descriptors": framed({"type": "awake"}, fds=2),
    "too large": struct.pack("!IB", 0xFFFFFFFF, 0),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_worker_that_sends_what_is_no_message_is_replaced(tmp_path: Path, name: str) -> None:
    with serving(tmp_path, "--processes", "2") as (process, address):
        with Client(address, timeout=10) as client:
            victim = ask(client)["txn.pid"]
            with contextlib.suppress(SpopError, OSError):
                client.notify("write", data=MALFORMED[name], fds=0)
        process.wait_for_log(f"worker {victim} sends what is no message")
        process.wait_for_log(f"worker {victim} died: its messages are malformed")
        wait_until(lambda: len(set(process.workers()) - {victim}) == 2, "the new worker")
        with Client(address, timeout=10) as client:
            assert ask(client)["txn.pid"] != victim
        process.terminate()
        assert process.wait(15) == 0, process.log


def test_descriptors_of_what_is_no_message_are_closed(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, address):
        before = len(os.listdir(f"/proc/{process.pid}/fd"))
        for number in range(1, 4):
            with Client(address, timeout=10) as client, contextlib.suppress(SpopError, OSError):
                client.notify("write", data=framed({"type": "awake"}, fds=3), fds=3)
            process.wait_for_log("its messages are malformed", number)
            wait_until(lambda: bool(process.workers()), "the new worker")
            wait_until(
                lambda: len(os.listdir(f"/proc/{process.pid}/fd")) == before, "the closed ones"
            )


# --- workers that take long to start, and reloads beside them ---


def test_new_code_that_hangs_replaces_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, "--start-timeout", "2") as (process, address), Client(address) as client:
        first = ask(client)
        write_agent(tmp_path, version=2, at_import="time.sleep(1000)")
        process.send_signal(signal.SIGHUP)
        process.wait_for_log("it did not start in 2 s")
        process.wait_for_log("the workers are not replaced")
        assert "tested_agent.py" in process.log, "where it hangs"
        assert ask(client) == first
        write_agent(tmp_path, version=3)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: ask(client)["txn.version"] == 3, "the repaired code")


def test_a_first_start_that_hangs_is_an_error(tmp_path: Path) -> None:
    path = write_agent(tmp_path, at_import="time.sleep(1000)")
    options = ("--start-timeout", "2", "--processes", "2", "--bind", f"unix:{tmp_path}/socket")
    with served(*options, target=f"{path}:agent") as process:
        assert process.wait(30) == 2
        process.end()
        assert process.lines[-1] == "Error: it did not start in 2 s\n"


WAITS = """
(folder / "began-{version}").touch()
while not (folder / "go").exists():
    time.sleep(0.02)
"""


def test_a_sighup_during_a_replacement_is_done_after_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2") as (process, address), Client(address) as client:
        write_agent(tmp_path, version=2, at_import=WAITS.format(version=2))
        process.send_signal(signal.SIGHUP)
        wait_until((tmp_path / "began-2").exists, "the import of the new code")
        write_agent(tmp_path, version=3)
        for number in range(1, 6):
            process.send_signal(signal.SIGHUP)
            process.wait_for_log("once more", number)
        (tmp_path / "go").touch()
        wait_until(lambda: ask(client)["txn.version"] == 3, "the newest code")
        wait_until(lambda: len(process.workers()) == 2, "the old workers' end")
        assert process.log.count("SIGHUP: replacing the workers") == 2


def test_a_sighup_during_a_replacement_that_fails_is_done_after_it(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, address), Client(address) as client:
        write_agent(tmp_path, at_import=WAITS.format(version=2) + "\nraise OSError('broken')")
        process.send_signal(signal.SIGHUP)
        wait_until((tmp_path / "began-2").exists, "the import of the new code")
        write_agent(tmp_path, version=3)
        process.send_signal(signal.SIGHUP)
        process.wait_for_log("once more")
        (tmp_path / "go").touch()
        wait_until(lambda: ask(client)["txn.version"] == 3, "the newest code")


def test_a_sighup_before_the_first_workers_serve_is_done_after_it(tmp_path: Path) -> None:
    path = write_agent(tmp_path, at_import=WAITS.format(version=1))
    address = f"unix:{tmp_path}/socket"
    with served("--bind", address, target=f"{path}:agent") as process:
        wait_until((tmp_path / "began-1").exists, "the import")
        write_agent(tmp_path, version=2)
        process.send_signal(signal.SIGHUP)
        process.wait_for_log("once more")
        (tmp_path / "go").touch()
        process.wait_for_log("SIGHUP: replacing the workers")
        with Client(address) as client:
            wait_until(lambda: ask(client)["txn.version"] == 2, "the newest code")


# --- hand-over without descriptors ---

LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Engine:
    """A connection of HAProxy's."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self.sock = socket.create_connection((host, int(port)), timeout=30)
        self.protocol = EngineConnection()
        self.sock.sendall(self.protocol.data_to_send())

    def ask(self) -> dict[str, Any]:
        while self.protocol.peer is None:
            self._receive()
        self.protocol.notify(1, 1, [Message("check")])
        self.sock.sendall(self.protocol.data_to_send())
        events: list[Any] = []
        while not events:
            events = self._receive()
        assert isinstance(events[0], Ack)
        return dict(events[0].variables)

    def _receive(self) -> list[Any]:
        data = self.sock.recv(65536)
        assert data, "the connection was closed"
        return self.protocol.receive_data(data)


def test_connections_survive_a_sighup_at_the_limit_of_descriptors(tmp_path: Path) -> None:
    """Those that no new worker has room for stay in their old one until that ends."""
    options = ("--processes", "2", "--drain-timeout", "60")
    with serving(tmp_path, *options, launcher=LIMITED) as (process, address):
        old = set(process.workers())
        engines = [Engine(address) for _ in range(150)]
        process.wait_for_log("cannot accept connections")
        assert {engine.ask()["txn.version"] for engine in engines[:60]} == {1}
        write_agent(tmp_path, version=2)
        process.send_signal(signal.SIGHUP)
        for _ in range(3):
            assert {engine.ask()["txn.version"] for engine in engines} <= {1, 2}
        wait_until(lambda: any(e.ask()["txn.version"] == 2 for e in engines[:60]), "hand-over")
        assert "died" not in process.log, process.log
        assert set(process.workers()) & old, "the new workers have no room for all"
        for engine in engines[:100]:
            engine.sock.close()
        for engine in engines[100:]:
            wait_until(lambda e=engine: e.ask()["txn.version"] == 2, "room")  # type: ignore[misc]
        wait_until(lambda: not set(process.workers()) & old, "the old workers' end")
        for engine in engines[100:]:
            assert engine.ask()["txn.version"] == 2
            engine.sock.close()
        assert "died" not in process.log, process.log


# --- the supervisor is killed ---


def has_ended(address: str) -> bool:
    host, port = address.split(":")
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port))):
        return False
    return True


@pytest.mark.parametrize("message", ["hang", "hold"])
def test_a_worker_ends_with_its_supervisor_even_when_a_handler_hangs(
    tmp_path: Path, message: str
) -> None:
    if message == "hold" and codec.IMPLEMENTATION == "python":
        pytest.skip("without compiled code a handler that holds the GIL can't be ended")
    with serving(tmp_path, "--drain-timeout", "1") as (process, address):
        (worker,) = process.workers()
        with Client(address, timeout=30) as client:
            client.send([Message(message)])
            wait_until(lambda: is_busy(worker), "the handler")
            process.kill()
            wait_until(lambda: not is_alive(worker), "the worker's end")
        wait_until(lambda: has_ended(address), "the end of its last thread")


def is_busy(pid: int) -> bool:
    """Its loop is in the handler: it does not wait for sockets."""
    waits = {Path(task, "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir()}
    return len(waits) > 1 or waits != {"ep_poll"}


def test_a_worker_that_imports_ends_with_its_supervisor(tmp_path: Path) -> None:
    path = write_agent(tmp_path, at_import=WAITS.format(version=1))
    with served("--bind", f"unix:{tmp_path}/socket", target=f"{path}:agent") as process:
        wait_until((tmp_path / "began-1").exists, "the import")
        (worker,) = process.workers()
        process.kill()
        wait_until(lambda: not is_alive(worker), "the worker's end")


def test_the_admin_process_ends_with_its_supervisor(tmp_path: Path) -> None:
    """Even while a signal stops it."""
    with serving(tmp_path, "--admin", f"unix:{tmp_path}/admin") as (process, address):
        with Client(address) as client:
            worker = ask(client)["txn.pid"]
        (admin,) = set(process.workers()) - {worker}
        with socket.socket(socket.AF_UNIX) as sock:  # It has started once it answers.
            sock.settimeout(30)
            sock.connect(str(tmp_path / "admin"))
            sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b" 200 " in sock.recv(4096)
        os.kill(admin, signal.SIGSTOP)
        process.kill()
        wait_until(lambda: not is_alive(admin), "the admin process's end")


CHILD = """
import os, signal, sys, time
from spop.server import orphans

has_prctl, late = (word == "True" for word in sys.argv[1:])
if not has_prctl:
    orphans._ask_system = lambda number: False
parent = os.getpid()
asked, ready = os.pipe()
if os.fork():
    if not late:
        os.read(asked, 1)
    os._exit(0)
while late and os.getppid() == parent:
    time.sleep(0.01)
orphans.end_with_parent(parent, signal.SIGTERM)
os.write(ready, b"1")
time.sleep(1000)
"""


@pytest.mark.parametrize("has_prctl", [True, False])
@pytest.mark.parametrize("late", [False, True])
def test_a_process_ends_with_its_parent(has_prctl: bool, late: bool) -> None:
    """Also one whose parent has ended before it asked for that."""
    command = [sys.executable, "-c", CHILD, str(has_prctl), str(late)]
    # The child has the pipe, so this returns once that has ended, too.
    assert subprocess.run(command, stdout=subprocess.PIPE, timeout=30).stdout == b""


# --- the admin process ---


def test_the_file_of_the_admin_socket_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "admin"
    with serving(tmp_path, "--admin", f"unix:{file}") as (process, _):
        assert file.exists()
        process.terminate()
        assert process.wait(15) == 0
        assert not file.exists()
    with Agent().serve_in_background(admin=f"unix:{file}"):
        assert file.exists()
    assert not file.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_admin_process_runs_as_the_user_of_the_workers(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        options = ("--admin", "127.0.0.1:0", "--user", "nobody")
        with serving(Path(name), *options) as (process, _):
            wait_until(lambda: len(process.workers()) == 2, "the admin process")
            uid = pwd.getpwnam("nobody").pw_uid
            for pid in process.workers():
                wait_until(lambda pid=pid: os.stat(f"/proc/{pid}").st_uid == uid, "the user")  # type: ignore[misc]
            (port,) = re.findall(r"admin on 127.0.0.1:(\d+)", process.log)
            for page in ("healthz", "status.json", ""):
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/{page}", timeout=10
                ) as answer:
                    assert answer.status == 200
