"""Real HAProxy for the tests: which ones there are, running one, asking it."""

from __future__ import annotations

import contextlib
import csv
import functools
import http.client
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

GLOBAL = """
global
    stats socket {folder}/stats.sock level admin
    {global_options}

defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
"""

CONFIG = """
frontend www
    bind fd@{fd}
    {frontend_options}
    filter spoe engine test config {folder}/spoe.cfg
    {frontend_rules}

backend agents
    mode {mode}
    option spop-check
    timeout connect 5s
    timeout server 1m
    server agent {agent} check inter 100ms
"""


class Version(NamedTuple):
    major: int
    minor: int
    patch: int


class Answer(NamedTuple):
    """What a request got: where HAProxy redirected it, and how long that took."""

    source: str
    status: int
    location: str
    seconds: float


def installed() -> list[str]:
    """Those that ``SPOP_TEST_HAPROXY`` names, else the one of this machine."""
    if named := os.environ.get("SPOP_TEST_HAPROXY"):
        return named.split(":")
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return [found] if found else []


@functools.cache
def version(path: str) -> Version:
    shown = subprocess.run([path, "-v"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", shown)
    assert match, shown
    return Version(*map(int, match.groups()))


def supports_tls(path: str) -> bool:
    shown = subprocess.run([path, "-vv"], capture_output=True, text=True, check=True).stdout
    return re.search("Built with (OpenSSL|SSL library) version", shown) is not None


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 15) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout} s"
        time.sleep(0.01)


class Process:
    """A running HAProxy, for a ``with`` statement; it listens on `port`.

    Args:
        config: what follows ``global`` and ``defaults``; ``{fd}``, ``{folder}`` and ``{mode}``,
            that of agents' backends, are filled in, and `more`.
        spoe: the SPOE file, ``spoe.cfg`` of the folder.
    """

    def __init__(
        self, binary: str, folder: Path, *, config: str, spoe: str, global_options: str, **more: str
    ) -> None:
        self.version = version(binary)
        self._binary = binary
        self._folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        (folder / "spoe.cfg").write_text(spoe)
        (folder / "haproxy.cfg").write_text(
            (GLOBAL + config).format(
                folder=folder,
                fd=self._listener.fileno(),
                mode="spop" if self.version >= (3, 1) else "tcp",
                global_options=global_options,
                **more,
            )
        )
        self._log = (folder / "haproxy.log").open("w+")

    def __enter__(self) -> Self:
        self._process = self._start()
        wait_until(self._answers, "HAProxy's stats socket")
        return self

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self._binary, "-db", "-f", str(self._folder / "haproxy.cfg"), *options],
            pass_fds=[self._listener.fileno()],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def reload(self) -> None:
        """Start a new process, which has the old one finish what it has in hand."""
        old = self._process
        self._process = self._start("-sf", str(old.pid))
        old.wait(30)
        wait_until(self._answers, "HAProxy's stats socket")

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.close()
        self._log.close()

    def log(self) -> str:
        return (self._folder / "haproxy.log").read_text()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log()
        with contextlib.suppress(OSError):
            return bool(self.command("show info"))
        return False

    def command(self, text: str) -> str:
        """Ask the stats socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self._folder / "stats.sock"))
            sock.sendall(text.encode() + b"\n")
            with sock.makefile() as answer:
                return answer.read()


class HAProxy(Process):
    """A running HAProxy whose filter asks an agent, for a ``with`` statement.

    Args:
        agent: the agent's address as HAProxy writes it: ``HOST:PORT`` or ``unix@PATH``.
        spoe: the SPOE file, the scope ``[test]`` and its ``use-backend`` line left out.
        rules: what to do with a request once the agent answered.
    """

    def __init__(
        self,
        binary: str,
        folder: Path,
        *,
        agent: str,
        spoe: str,
        rules: str,
        frontend_options: str = "",
        global_options: str = "",
    ) -> None:
        header, _, body = spoe.strip().partition("\n")
        super().__init__(
            binary,
            folder,
            config=CONFIG,
            spoe=f"[test]\n{header}\n    use-backend agents\n{body}\n",
            global_options=global_options,
            agent=agent,
            frontend_options=frontend_options,
            frontend_rules=rules,
        )

    def server_state(self) -> tuple[str, str]:
        """Status of the agent's server and result of its last check: ``("UP", "L7OK")``."""
        rows = csv.DictReader(self.command("show stat").lstrip("# ").splitlines())
        row = next(r for r in rows if (r["pxname"], r["svname"]) == ("agents", "agent"))
        return row["status"], row["check_status"]

    def wait_until_up(self) -> None:
        wait_until(lambda: self.server_state() == ("UP", "L7OK"), "the agent's check going UP")

    def request(self, source: str = "127.0.0.1", body: bytes | None = None) -> Answer:
        started = time.monotonic()
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=20, source_address=(source, 0)
        )
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", "/", body)
            response = connection.getresponse()
            response.read()
            location = response.getheader("Location", "")
        return Answer(source, response.status, location, time.monotonic() - started)

    def requests(self, count: int, concurrency: int) -> Iterator[Answer]:
        """Send requests from addresses 127.0.0.2 to 127.0.0.251, each in turn."""
        with ThreadPoolExecutor(concurrency) as pool:
            sources = (f"127.0.0.{2 + number % 250}" for number in range(count))
            yield from pool.map(self.request, sources)


class Load:
    """Requests through a HAProxy, in threads, until told to stop."""

    def __init__(self, proxy: HAProxy, concurrency: int = 8) -> None:
        self._proxy = proxy
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(concurrency)
        ]

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            self.answers.append(self._proxy.request(f"127.0.0.{2 + number}"))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        goal = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= goal, f"{more} more answers", timeout=30)

    @property
    def wrong(self) -> list[Answer]:
        return [a for a in self.answers if a.location != f"/{a.source.rpartition('.')[2]}"]
