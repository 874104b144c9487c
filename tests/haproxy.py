"""Real HAProxy for the tests: which ones there are, running one, asking it."""

from __future__ import annotations

import contextlib
import csv
import http.client
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from spop.haproxy_version import Version as Version
from spop.testing import haproxy as launcher
from spop.testing.haproxy import find_haproxy
from spop.testing.haproxy import version as version


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
    found = find_haproxy()
    return [found] if found else []


def dotted(path: str) -> str:
    return str(version(path))


def those(low: tuple[int, int], below: tuple[int, int] | None = None) -> pytest.MarkDecorator:
    """Run a test with each HAProxy from a version on, and below another."""
    found = [path for path in installed() if low <= version(path)[:2] < (below or (99,))]
    reason = f"needs HAProxy {low[0]}.{low[1]} or later" + (
        f", below {below[0]}.{below[1]}" if below else ""
    )
    none = pytest.param("", marks=pytest.mark.skip(reason))
    return pytest.mark.parametrize("haproxy_binary", found or [none], ids=found and dotted)


def supports_tls(path: str) -> bool:
    shown = subprocess.run([path, "-vv"], capture_output=True, text=True, check=True).stdout
    return re.search("Built with (OpenSSL|SSL library) version", shown) is not None


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout} s"
        time.sleep(0.01)


class HAProxy(launcher.HAProxy):
    """A running HAProxy that asks an agent and checks its health, for a ``with`` statement.

    Args:
        agent: the agent's address as HAProxy writes it: ``HOST:PORT`` or ``unix@PATH``.
        spoe: the SPOE file, the scope ``[test]`` and its ``use-backend`` line left out.
        rules: what to do with a request once the agent answered.
    """

    def __init__(
        self, binary: str, folder: Path, *, agent: str, spoe: str, rules: str, **options: str
    ) -> None:
        header, _, body = spoe.strip().partition("\n")
        super().__init__(
            binary,
            folder,
            agent=f"{agent} check inter 100ms",
            spoe=f"[test]\n{header}\n    use-backend agents\n{body}\n",
            rules=rules,
            backend_options="option spop-check\n    timeout server 1m",
            **options,
        )

    def server_state(self) -> tuple[str, str]:
        """Status of the agent's server and result of its last check: ``("UP", "L7OK")``."""
        rows = csv.DictReader(self.command("show stat").lstrip("# ").splitlines())
        row = next(r for r in rows if (r["pxname"], r["svname"]) == ("agents", "agent"))
        return row["status"], row["check_status"]

    def kill(self) -> None:
        """Kill it, and start it again. Connections wait at its listener meanwhile."""
        self._process.kill()
        self._process.wait()
        self._start()
        self._wait_until_it_answers()

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


class MasterWorker(HAProxy):
    """A HAProxy whose master starts a new worker on SIGUSR2. It listens itself."""

    def __init__(self, binary: str, folder: Path, **options: str) -> None:
        super().__init__(_that_starts_itself(binary, folder), folder, **options)
        self._command.insert(1, "-W")
        config = folder / "haproxy.cfg"
        inherited = f"fd@{self._listener.fileno()}"
        config.write_text(config.read_text().replace(inherited, f"127.0.0.1:{self.port}"))

    def _start(self, *options: str) -> None:
        self._listener.close()
        self._process = subprocess.Popen(
            [*self._command, *options], stdout=self._log, stderr=subprocess.STDOUT
        )

    def reload(self) -> None:
        wait_until(self._catches_sigusr2, "the master, which ignores signals while it starts")
        old = self._worker()
        self._process.send_signal(signal.SIGUSR2)
        wait_until(lambda: f"({old}) exited" in self.log(), "the old worker's end")
        wait_until(lambda: self._worker() not in ("", old), "the new worker")

    def _catches_sigusr2(self) -> bool:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
        return caught is not None and bool(int(caught[1], 16) >> signal.SIGUSR2 - 1 & 1)

    def _worker(self) -> str:
        with contextlib.suppress(OSError):
            found = re.search(r"^Pid: (\d+)", self.command("show info"), re.MULTILINE)
            return found[1] if found else ""
        return ""


def _that_starts_itself(binary: str, folder: Path) -> str:
    """A master starts what its first argument names: a script that has the libraries' path."""
    script, own = Path(binary).read_bytes(), folder / "haproxy"
    if not script.startswith(b"#!"):
        return binary
    own.write_bytes(script.replace(b"--library-path", b"--argv0 %s --library-path" % bytes(own)))
    own.chmod(0o755)
    if subprocess.run([own, "-v"], capture_output=True).returncode:
        pytest.skip("the loader of glibc 2.31 has no --argv0")
    return str(own)


class Load:
    """Requests through a HAProxy, in threads, until told to stop.

    Attributes:
        broken: number of requests that got no response, as HAProxy had ended.
    """

    def __init__(self, proxy: HAProxy, concurrency: int = 8) -> None:
        self._proxy = proxy
        self.answers: list[Answer] = []
        self.broken = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(concurrency)
        ]

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(self._proxy.request(f"127.0.0.{2 + number}"))
            except (OSError, http.client.HTTPException):
                self.broken += 1

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
        return list(filter(is_wrong, self.answers))

    def wait_until_right(self, last: int = 50) -> None:
        """Until so many answers in a row are right."""
        goal = len(self.answers) + last
        wait_until(
            lambda: len(self.answers) >= goal and not any(map(is_wrong, self.answers[-last:])),
            "right answers",
        )


def is_wrong(answer: Answer) -> bool:
    return answer.location != f"/{answer.source.rpartition('.')[2]}"
