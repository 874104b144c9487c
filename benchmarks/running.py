"""Agents in processes of their own, pinned to a processor, and what they use of it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from spop.address import Address

HERE = Path(__file__).parent
BUILD = HERE / "build"
TICK = os.sysconf("SC_CLK_TCK")
PROCESSORS = sorted(os.sched_getaffinity(0))
"""Before any pinning, which what is started inherits."""


class Running(NamedTuple):
    """An agent that listens; it leads a session, which the processes it starts belong to."""

    session: int
    port: int

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    def cpu_seconds(self) -> float:
        """What all of its processes have used, the kernel's work for them included."""
        return cpu_seconds(self.session)

    def memory(self) -> float:
        """Memory in MiB of all of its processes that is theirs alone."""
        lines = (line for folder in self._folders() for line in _lines(folder / "status"))
        return sum(int(line.split()[1]) for line in lines if "RssAnon" in line) / 1024

    def open_files(self) -> int:
        """File descriptors of all of its processes."""
        return sum(len(list((folder / "fd").iterdir())) for folder in self._folders())

    def _folders(self) -> Iterator[Path]:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            fields = "".join(_lines(stat)).rpartition(")")[2].split()
            if fields and int(fields[3]) == self.session:
                yield stat.parent


def _lines(path: Path) -> list[str]:
    """Of a file that may be gone, as its process."""
    with contextlib.suppress(OSError):
        return path.read_text().splitlines()
    return []


def spop_command(
    port: int,
    *options: str,
    target: str = "spop_agent.py",
    ports: int = 1,
    python: str = sys.executable,
) -> list[str]:
    """``spop serve`` with one of the benchmark's agents, or ``MODULE:agent``."""
    address = f"127.0.0.1:{port}" + (f"-{port + ports - 1}" if ports > 1 else "")
    return [
        python, "-m", "spop", "serve",
        target if ":" in target else f"{HERE / 'agents' / target}:agent",
        "--bind", address, "--log-level", "error", *options,
    ]  # fmt: skip


def interpreter_name(python: str) -> str:
    """Its version, and what is special about it."""
    what = "platform.python_version() + ', free-threaded' * bool(get_config_var('Py_GIL_DISABLED'))"
    code = f"import platform; from sysconfig import get_config_var; print({what})"
    shown = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return shown.stdout.strip()


def sink_command(port: int) -> list[str]:
    """The agent in C."""
    return [str(BUILD / "sink"), str(port)]


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    environment: dict[str, str] | None = None,
    stderr: int | None = None,
    processors: int = 1,
) -> Iterator[Running]:
    """An agent on the first processors, from when it listens to the end of the block."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stderr=stderr,
        preexec_fn=lambda: pin(*range(processors)),
        start_new_session=True,
    )
    try:
        _wait_for(port, process)
        yield Running(process.pid, port)
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def free_ports(count: int) -> int:
    """The first of several free ports in a row."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            for number in range(count):
                stack.enter_context(socket.create_server(("127.0.0.1", first + number)))
            return first


def pin(*processors: int) -> None:
    """Have this process, and what it starts, run on these processors, where there are as many."""
    if len(PROCESSORS) > max(processors):
        os.sched_setaffinity(0, {PROCESSORS[each] for each in processors})


@contextlib.contextmanager
def pinned(*processors: int) -> Iterator[None]:
    """Have what the block starts run on these processors."""
    before = os.sched_getaffinity(0)
    pin(*processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def real_time(priority: int) -> Iterator[None]:
    """Run this thread, and what it starts, before all that has no real-time priority, if that is
    allowed."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def cpu_seconds(session: int) -> float:
    return sum(_ticks(stat, session) for stat in Path("/proc").glob("[0-9]*/stat")) / TICK


def cpu_of(pid: int) -> float:
    """Of one process."""
    return _ticks(Path(f"/proc/{pid}/stat")) / TICK


def children() -> set[int]:
    """Processes that this one started."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def _ticks(stat: Path, session: int | None = None) -> int:
    """Of a process that may be gone, or in another session."""
    fields = "".join(_lines(stat)).rpartition(")")[2].split()
    if not fields or session not in (None, int(fields[3])):
        return 0
    return int(fields[11]) + int(fields[12])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    sys.exit(f"{process.args!r} does not listen")
