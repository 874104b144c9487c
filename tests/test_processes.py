"""Worker processes: spread, killed, replaced, reloaded, under the load of a real HAProxy."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import haproxy_1_7
import pytest
from haproxy import HAProxy, Load, wait_until
from serving import Served, is_alive, served, wait_until_serving

from spop import Client, Message, SpopError, codec
from spop.connection import EngineConnection
from spop.frames import engine_digest

AGENT = """
from ipaddress import IPv4Address
import os, time
from spop import Agent

agent = Agent("tested")

@agent.message("check")
def check(ip: IPv4Address):
    return {{"txn.score": ip.packed[-1], "txn.pid": os.getpid(), "txn.version": {version}}}

@agent.message("slow", blocking=True)
def slow():
    time.sleep(30)

@agent.message("sleep", blocking=True)
def sleep(ip: IPv4Address):
    time.sleep(0.02)
    return {{"txn.score": ip.packed[-1]}}
"""

SPOE = """
spoe-agent test-agent
    messages {message}
    option var-prefix test
    timeout hello 5s
    timeout idle 1m
    timeout processing {timeout}

spoe-message {message}
    args ip=src
    event on-frontend-http-request
"""
RULES = "http-request redirect location /%[var(txn.test.score)]"


def write_agent(folder: Path, version: int = 1) -> Path:
    path = folder / "tested_agent.py"
    path.write_text(AGENT.format(version=version))
    return path


DYING_AGENT = """
import ctypes, os, sys, threading
from spop import Agent

agent = Agent("dying")

class Death(BaseException):
    pass

def kill(name):
    thread = next(t for t in threading.enumerate() if t.name.startswith(name))
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Death))
    return {"txn.pid": os.getpid()}

@agent.message("kill", blocking=True)
def kill_loop(name: str):
    return kill(name)

@agent.message("kill-from-loop")
def kill_pool(name: str):
    return kill(name)

@agent.message("pid", blocking=True)
def pid():
    return {"txn.pid": os.getpid()}
"""


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/agent.sock"


@contextlib.contextmanager
def serving(tmp_path: Path, *options: str) -> Iterator[Served]:
    path = write_agent(tmp_path)
    with served("--bind", f"unix:{tmp_path}/agent.sock", *options, target=f"{path}:agent") as it:
        wait_until_serving(it)
        yield it


def ask(client: Client) -> dict[str, object]:
    return dict(client.notify("check", ip=IPv4Address(7)).variables)


@contextlib.contextmanager
def under_load(
    binary: str, tmp_path: Path, message: str = "check", timeout: str = "10s"
) -> Iterator[Load]:
    with HAProxy(
        binary,
        tmp_path,
        agent=f"unix@{tmp_path}/agent.sock",
        spoe=SPOE.format(message=message, timeout=timeout),
        rules=RULES,
    ) as proxy:
        proxy.wait_until_up()
        with Load(proxy) as load:
            load.wait_for(100)
            yield load


def test_connections_spread_evenly(tmp_path: Path, address: str) -> None:
    with serving(tmp_path, "--processes", "4"), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(address)) for _ in range(40)]
        pids = [ask(client)["txn.pid"] for client in clients]
    counts = sorted(pids.count(pid) for pid in set(pids))
    assert len(counts) == 4
    assert counts[0] >= 8, counts


def test_a_killed_worker_is_replaced_and_its_frames_are_counted(
    tmp_path: Path, address: str
) -> None:
    with serving(tmp_path, "--processes", "2") as process:
        client = Client(address)
        client.connect()
        victim = ask(client)["txn.pid"]
        assert isinstance(victim, int)
        waiting = client.send([Message("slow")])
        ask(client)  # The worker has taken the one before, too.
        os.kill(victim, signal.SIGKILL)
        with pytest.raises((SpopError, OSError)):
            client.wait(waiting)
        client.close()
        process.wait_for_log(f"worker {victim} died: killed by SIGKILL; 1 frames lost")
        wait_until(lambda: len(process.workers()) == 2, "the new worker")
        with Client(address) as another:
            assert ask(another)["txn.score"] == 7


def test_a_worker_whose_loop_dies_ends_and_is_restarted(tmp_path: Path, address: str) -> None:
    path = tmp_path / "dying_agent.py"
    path.write_text(DYING_AGENT)
    with served("--bind", address, target=f"{path}:agent") as process:
        wait_until_serving(process)
        with Client(address, timeout=10) as client:
            victim = client.notify("pid").variables["txn.pid"]
            with contextlib.suppress(SpopError, OSError):
                client.notify("kill", name="spop-loop-0")
                client.notify("pid")
        process.wait_for_log(f"worker {victim} died: exit status 1")
        assert "spop-loop-0 died" in process.log
        assert "  | Traceback" in process.log
        wait_until(lambda: process.workers() not in ([], [victim]), "the new worker")
        with Client(address, timeout=10) as client:
            assert client.notify("pid").variables["txn.pid"] != victim


def test_a_pool_thread_that_dies_is_replaced(tmp_path: Path, address: str) -> None:
    path = tmp_path / "dying_agent.py"
    path.write_text(DYING_AGENT)
    with served("--bind", address, target=f"{path}:agent") as process:
        wait_until_serving(process)
        with Client(address, timeout=10) as client:
            pid = client.notify("pid").variables["txn.pid"]
            for _ in range(3):
                client.notify("kill-from-loop", name="spop-pool-")
                assert client.notify("pid").variables["txn.pid"] == pid
                # One that is killed once more while it logs this can't log it.
                process.wait_for_log("a thread of the pool died and is replaced")


def test_serve_raises_what_a_thread_died_of(tmp_path: Path, address: str) -> None:
    path = tmp_path / "dying_agent.py"
    path.write_text(DYING_AGENT + SERVING.format(address=address))
    with subprocess.Popen([sys.executable, path], stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: os.path.exists(address.removeprefix("unix:")), "the socket")
        with contextlib.suppress(SpopError, OSError), Client(address, timeout=10) as client:
            client.notify("kill", name="spop-loop-0")
            client.notify("pid")
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "spop-loop-0 died" in told
    assert "serve raises Death" in told
    assert not os.path.exists(address.removeprefix("unix:"))


SERVING = """
try:
    agent.serve({address!r})
except BaseException as error:
    print("serve raises", type(error).__name__, file=sys.stderr)
    raise
"""


def test_service_goes_on_when_a_worker_is_killed_under_load(
    haproxy_binary: str, tmp_path: Path
) -> None:
    """What HAProxy had sent to the worker is lost; with async it finds out by its timeout.

    Without async it finds out at once, and what the load asks next may go to another of the
    dead connections.
    """
    with (
        serving(tmp_path, "--processes", "2") as process,
        under_load(haproxy_binary, tmp_path, timeout="500ms") as load,
    ):
        os.kill(process.workers()[0], signal.SIGKILL)
        process.wait_for_log("died: killed by SIGKILL")
        load.wait_until_right(300)
    assert len(load.wrong) <= 40, "more than five for each of the load's threads"


@pytest.mark.parametrize("message", ["check", "sleep"])
def test_sighup_replaces_the_workers_without_losing_a_notify(
    haproxy_binary: str, tmp_path: Path, message: str
) -> None:
    with (
        serving(tmp_path, "--processes", "2") as process,
        under_load(haproxy_binary, tmp_path, message) as load,
    ):
        for _ in range(3):
            old = set(process.workers())
            process.send_signal(signal.SIGHUP)
            wait_until(lambda old=old: not old & set(process.workers()), "the old workers' end")  # type: ignore[misc]
            load.wait_for(100)
        assert "ERROR" not in process.log, process.log
    assert not load.wrong
    assert max(answer.seconds for answer in load.answers) < 10, "a processing timeout"


def test_sighup_imports_the_code_afresh_and_keeps_connections(tmp_path: Path, address: str) -> None:
    with serving(tmp_path) as process, Client(address) as client:
        first = ask(client)
        write_agent(tmp_path, version=2)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: ask(client)["txn.version"] == 2, "the new code")
        assert ask(client)["txn.pid"] != first["txn.pid"]


@pytest.mark.parametrize("target", ["{folder}/fresh_agent.py:agent", "fresh_agent:agent"])
def test_sighup_imports_sources_as_they_are(tmp_path: Path, address: str, target: str) -> None:
    """Not their bytecode, which is taken to be theirs by size and second of the change."""
    agent, package = tmp_path / "fresh_agent.py", tmp_path / "fresh_package" / "__init__.py"
    package.parent.mkdir()

    def write(number: int) -> None:
        agent.write_text(FRESH_AGENT.format(number=number))
        package.write_text(f"NUMBER = {number}")
        for path in (agent, package):
            os.utime(path, (1_000_000_000, 1_000_000_000))

    write(1)
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", "import fresh_agent"]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    target = target.format(folder=tmp_path)
    with served("--bind", address, target=target, **environment) as process:
        wait_until_serving(process)
        for number in (2, 3):
            write(number)
            old = process.workers()
            process.send_signal(signal.SIGHUP)
            wait_until(
                lambda old=old: not set(old) & set(process.workers()), "the old worker's end"
            )  # type: ignore[misc]
            with Client(address) as client:
                variables = client.notify("numbers").variables
                assert variables == {"txn.module": number, "txn.package": number}


FRESH_AGENT = """
from fresh_package import NUMBER
from spop import Agent

agent = Agent()

@agent.message("numbers")
def numbers():
    return {{"txn.module": {number}, "txn.package": NUMBER}}
"""


def test_sighup_waits_for_what_is_half_received(tmp_path: Path, address: str) -> None:
    engine = EngineConnection(max_frame_size=300)
    with serving(tmp_path) as process, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(address.removeprefix("unix:"))
        say_hello(engine, sock)
        message = Message("check", ip=IPv4Address(7), body=bytes(1000))
        for stream_id in range(2):
            engine.notify(stream_id, 1, [message])
        data = engine.data_to_send()
        old = process.workers()
        middle = len(data) // 2 + 400  # In the second payload, and in one of its fragments.
        sock.sendall(data[:middle])
        first = receive_ack(engine, sock)
        write_agent(tmp_path, version=2)
        process.send_signal(signal.SIGHUP)
        with Client(address) as client:
            wait_until(lambda: ask(client)["txn.version"] == 2, "the new code")
        sock.sendall(data[middle:])
        second = receive_ack(engine, sock)
        assert (first["txn.version"], second["txn.version"]) == (1, 1)
        wait_until(lambda: not set(old) & set(process.workers()), "the old workers' end")
        engine.notify(2, 1, [message])
        sock.sendall(engine.data_to_send())
        assert receive_ack(engine, sock)["txn.version"] == 2


def test_sighup_keeps_connections_of_haproxy_1_7(tmp_path: Path, address: str) -> None:
    """Which sets no flags; its HELLO is not heard by the new worker."""
    notify = haproxy_1_7.notify(1, Message("check", ip=IPv4Address(7)))
    with serving(tmp_path) as process, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(address.removeprefix("unix:"))
        sock.sendall(haproxy_1_7.hello())
        assert sock.recv(4096)
        for _ in range(2):
            old = process.workers()
            sock.sendall(notify)
            ((ack,), _) = codec.decode_frames(sock.recv(4096))
            assert ack.variables["txn.pid"] in old
            process.send_signal(signal.SIGHUP)
            wait_until(
                lambda old=old: not set(old) & set(process.workers()), "the old worker's end"
            )  # type: ignore[misc]


def say_hello(engine: EngineConnection, sock: socket.socket) -> None:
    sock.sendall(engine.data_to_send())
    while engine.peer is None:
        engine.receive_data(sock.recv(65536))


def receive_ack(engine: EngineConnection, sock: socket.socket) -> dict[str, object]:
    events: list[Any] = []
    while not events:
        events = engine.receive_data(sock.recv(65536))
    (ack,) = events
    return dict(ack.variables)


@pytest.mark.parametrize("option", ["--max-connections", "--max-connections-per-peer"])
def test_the_limit_of_connections_outlasts_sighup(tmp_path: Path, option: str) -> None:
    """A worker that has reached its limit is given more: it serves and counts them."""
    with serving(tmp_path, "--bind", "127.0.0.1:0", option, "3") as process:
        (port,) = re.findall(r"127.0.0.1:(\d+)", process.log)
        old = process.workers()
        with contextlib.ExitStack() as stack:
            kept = admitted(port, 3, stack)
            rests = [begin_notify(*each) for each in kept]
            process.send_signal(signal.SIGHUP)
            new = 0
            while new < 3:  # The old worker has no room, and refuses those that come to it.
                assert process.poll() is None, process.log
                new += len(admitted(port, 1, stack))
            for (engine, sock), rest in zip(kept, rests, strict=True):
                sock.sendall(rest)
                receive_ack(engine, sock)
            wait_until(lambda: not set(old) & set(process.workers()), "the old worker's end")
            for engine, sock in kept:
                sock.sendall(begin_notify(engine, sock))
                assert receive_ack(engine, sock)["txn.pid"] not in old
            assert admitted(port, 1, stack) == []
        wait_until(lambda: has_no_connections(process), "the connections' end")
        with contextlib.ExitStack() as stack:
            assert len(admitted(port, 8, stack)) == 3


EngineSocket = tuple[EngineConnection, socket.socket]


def admitted(port: str, count: int, stack: contextlib.ExitStack) -> list[EngineSocket]:
    """Those of so many connections that are not refused."""
    connections = []
    for _ in range(count):
        engine = EngineConnection()
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", int(port)), 10))
        with contextlib.suppress(ConnectionError):
            sock.sendall(engine.data_to_send())
            if hello := sock.recv(65536):
                engine.receive_data(hello)
                connections.append((engine, sock))
    return connections


def begin_notify(engine: EngineConnection, sock: socket.socket) -> bytes:
    """Send the front of a frame. Returns the rest."""
    engine.notify(1, 1, [Message("check", ip=IPv4Address(7))])
    data = bytes(engine.data_to_send())
    sock.sendall(data[:10])
    return data[10:]


def has_no_connections(process: Served) -> bool:
    process.send_signal(signal.SIGUSR1)
    return " 0 connections" in process.log


def test_broken_code_replaces_nothing(tmp_path: Path, address: str) -> None:
    with serving(tmp_path) as process, Client(address) as client:
        first = ask(client)
        (tmp_path / "tested_agent.py").write_text("import no_such_module")
        process.send_signal(signal.SIGHUP)
        process.wait_for_log("the workers are not replaced")
        assert "No module named 'no_such_module'" in process.log
        assert ask(client) == first
        write_agent(tmp_path, version=3)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: ask(client)["txn.version"] == 3, "the repaired code")


def test_reload_watches_the_files(tmp_path: Path, address: str) -> None:
    with serving(tmp_path, "--reload") as process, Client(address) as client:
        assert ask(client)["txn.version"] == 1
        path = write_agent(tmp_path, version=22)
        os.utime(path, (1, 1))
        process.wait_for_log(f"{path} changed: replacing")
        wait_until(lambda: ask(client)["txn.version"] == 22, "the new code")


def test_a_worker_that_keeps_dying_is_restarted_ever_later(tmp_path: Path, address: str) -> None:
    with serving(tmp_path) as process:
        for number in range(1, 4):
            os.kill(process.workers()[0], signal.SIGKILL)
            process.wait_for_log("died: killed by SIGKILL", number)
            wait_until(lambda: bool(process.workers()), "the new worker")
        with Client(address, timeout=10) as client:
            ask(client)


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2") as process:
        workers = process.workers()
        process.kill()
        wait_until(lambda: not any(map(is_alive, workers)), "the workers' end")


def test_sigusr1_logs_the_connections(tmp_path: Path, address: str) -> None:
    engine_id = "engine\nforged"
    with serving(tmp_path) as process, Client(address, engine_id=engine_id) as client:
        ask(client)
        process.send_signal(signal.SIGUSR1)
        process.wait_for_log("connection address='unix'")
        line = next(line for line in process.lines if "connection address" in line)
        assert "state='OPEN'" in line
        assert f"engine={engine_digest(engine_id)!r}" in line
        assert "forged" not in process.log


# --- what workers may do ---


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    "options",
    [("--user", "{user}"), ("--user", "{uid}"), ("--user", "{user}", "--group", "{gid}")],
    ids=["name", "number", "group"],
)
def test_workers_run_as_the_user_with_its_groups(options: tuple[str, ...]) -> None:
    """Unless the options name a group: it is the only one then."""
    user = user_with_groups()
    words = [word.format(user=user.pw_name, uid=user.pw_uid, gid=user.pw_gid) for word in options]
    groups = [] if "--group" in words else os.getgrouplist(user.pw_name, user.pw_gid)
    with public_folder() as folder, serving(folder, *words, "--processes", "2") as process:
        for _ in range(2):
            old = set(process.workers())
            for pid in old:
                assert identity(pid, "Uid") == [user.pw_uid] * 4
                assert identity(pid, "Gid") == [user.pw_gid] * 4
                assert sorted(identity(pid, "Groups")) == sorted(groups)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda old=old: not old & set(process.workers()), "the old workers' end")  # type: ignore[misc]


def user_with_groups() -> pwd.struct_passwd:
    """A user of this machine who is in a group beside its own; nobody where there is none."""
    named = {name for group in grp.getgrall() for name in group.gr_mem}
    users = (user for user in pwd.getpwall() if user.pw_uid and user.pw_name in named)
    return next(users, pwd.getpwnam("nobody"))


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that all may read; those of pytest are the user's alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def identity(pid: int, which: str) -> list[int]:
    """Real, effective, saved and file system ids, or the other groups, of a process."""
    (line,) = re.findall(rf"(?m)^{which}:(.*)$", Path(f"/proc/{pid}/status").read_text())
    return [int(number) for number in line.split()]


def test_a_child_has_nothing_of_the_supervisors_but_its_listeners(tmp_path: Path) -> None:
    """With a byte in its pipe a worker that runs as nobody could end the service."""
    options = ("--processes", "2", "--bind", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    with serving(tmp_path, *options) as process:
        wait_until(lambda: len(process.workers()) == 3, "the admin process and both workers")
        shared = [open_files(pid) & open_files(process.pid) for pid in process.workers()]
        assert sorted(map(len, shared)) == [1, 2, 2], shared
        assert all(name.startswith("socket:") for name in set().union(*shared))


def open_files(pid: int) -> set[str]:
    """Pipes and sockets of a process, those of the standard streams left out."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        name = os.readlink(link)
        if int(link.name) > 2 and name.startswith(("pipe:", "socket:")):
            found.add(name)
    return found


def test_a_socket_file_of_another_server_is_left(tmp_path: Path, address: str) -> None:
    """As after a file was removed by hand: the next one to listen there owns it."""
    with serving(tmp_path) as first:
        (tmp_path / "agent.sock").unlink()
        with serving(tmp_path):
            first.terminate()
            assert first.wait(10) == 0, first.log
            with Client(address) as client:
                assert ask(client)["txn.score"] == 7


# --- systemd ---


def test_systemd_hears_of_readiness_reload_and_stop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(15)
        path = write_agent(tmp_path)
        with served(
            "--bind",
            f"unix:{tmp_path}/agent.sock",
            target=f"{path}:agent",
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="300000",
        ) as process:
            wait_for_state(manager, "READY=1")
            wait_for_state(manager, "WATCHDOG=1")
            process.send_signal(signal.SIGHUP)
            wait_for_state(manager, "RELOADING=1")
            wait_for_state(manager, "READY=1")
            process.terminate()
            wait_for_state(manager, "STOPPING=1")
            assert process.wait(10) == 0, process.log


def wait_for_state(manager: socket.socket, state: str) -> None:
    while state not in manager.recv(4096).decode().split("\n"):
        pass


def test_listeners_are_inherited_from_systemd(tmp_path: Path) -> None:
    """As systemd does it: descriptor 3, and LISTEN_PID set between fork and exec."""
    path = write_agent(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        launcher = tmp_path / "launcher.py"
        launcher.write_text(LAUNCHER)
        process = Served(
            target=f"{path}:agent",
            launcher=[str(launcher), str(listener.fileno())],
            pass_fds=[listener.fileno()],
        )
        try:
            process.wait_for_log(f"serves on 127.0.0.1:{port}")
            with Client(f"127.0.0.1:{port}") as client:
                assert ask(client)["txn.score"] == 7
            process.terminate()
            assert process.wait(10) == 0, process.log
        finally:
            process.end()


LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
