"""Run a real HAProxy with a configuration: for tests, benchmarks and examples.

It needs no pytest; `spop.testing.plugin` wraps it in a fixture.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from spop.haproxy_version import Version

START_TIMEOUT = 15.0
"""Seconds within which HAProxy must answer on its stats socket."""

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

ONE_AGENT = """
frontend www
    bind fd@{fd}
    {frontend_options}
    filter spoe engine test config {folder}/spoe.cfg
    {rules}

backend agents
    mode {mode}
    {backend_options}
    server agent {agent}
"""


def find_haproxy() -> str | None:
    """HAProxy from PATH, or from where systems install it."""
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@functools.cache
def version(binary: str) -> Version:
    """The version of a HAProxy."""
    shown = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d\S*)", shown)
    if found is None:
        raise RuntimeError(f"{binary} is no HAProxy: {shown}")
    return Version.read(found[1])


class Process:
    """A running HAProxy, for a ``with`` statement.

    Args:
        folder: where its files are written.
        config: the sections that follow ``global`` and ``defaults``, a format string: ``{fd}`` is
            the file descriptor of a listener, ``{folder}`` the folder, ``{mode}`` the mode of
            agents' backends, and each of `fields` what it says.
        spoe: the SPOE file, ``{folder}/spoe.cfg``.

    Attributes:
        port: of 127.0.0.1, where the listener ``{fd}`` is.

    Raises:
        RuntimeError: when the block is entered: HAProxy does not run; with what it printed.
    """

    def __init__(
        self,
        binary: str,
        folder: Path,
        *,
        config: str,
        spoe: str,
        global_options: str = "",
        **fields: object,
    ) -> None:
        self.version: Version = version(binary)
        self._command = [binary, "-db", "-f", str(folder / "haproxy.cfg")]
        self._folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        (folder / "spoe.cfg").write_text(spoe)
        text = (GLOBAL + config).format(
            folder=folder,
            fd=self._listener.fileno(),
            mode="spop" if self.version.rewritten else "tcp",
            global_options=global_options,
            **fields,
        )
        (folder / "haproxy.cfg").write_text(text)

    def __enter__(self) -> Self:
        self._log = (self._folder / "haproxy.log").open("w")
        self._start()
        self._wait_until_it_answers()
        return self

    def _start(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [*self._command, *options],
            pass_fds=[self._listener.fileno()],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"HAProxy does not run:\n{self.log()}")
            time.sleep(0.01)

    def reload(self) -> None:
        """Start a new process, which has the old one finish what it has in hand."""
        old = self._process
        self._start("-sf", str(old.pid))
        old.wait(30)
        self._wait_until_it_answers()

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
        """What HAProxy printed."""
        return (self._folder / "haproxy.log").read_text()

    def _answers(self) -> bool:
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
    """A running HAProxy whose frontend asks one agent, for a ``with`` statement.

    Args:
        agent: what follows the server's name on its line: ``HOST:PORT`` or ``unix@PATH``.
        spoe: the SPOE file, with the scope ``[test]`` and ``use-backend agents``.
        rules: lines of the frontend.
    """

    def __init__(
        self,
        binary: str,
        folder: Path,
        agent: str,
        spoe: str,
        rules: str,
        *,
        frontend_options: str = "",
        backend_options: str = "",
        global_options: str = "",
    ) -> None:
        super().__init__(
            binary,
            folder,
            config=ONE_AGENT,
            spoe=spoe.strip() + "\n",
            global_options=global_options,
            agent=agent,
            rules=rules,
            frontend_options=frontend_options,
            backend_options=backend_options,
        )
