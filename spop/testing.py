"""A pytest plugin for those who write agents: the agent served, a client, a real HAProxy.

pytest loads it by its entry point; nothing else of the package imports it. `Agent.test` calls
a handler without any of this.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from spop import Ack, Agent, Client
    from spop.server import Server

HAPROXY_CONFIG = """
global
    stats socket {folder}/stats.sock level admin

defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s

frontend www
    bind fd@{fd}
    filter spoe engine test config {folder}/spoe.cfg
{rules}

backend agents
    mode {mode}
    server agent {agent}
"""


def assert_actions(answer: Ack | Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check the variables of an ACK, or of what `Agent.test` returned.

    True is not 1, and False is not 0, as HAProxy tells booleans from integers.

    Raises:
        AssertionError: with a line for each variable that differs.
    """
    actual = answer if isinstance(answer, Mapping) else answer.variables
    lines = [
        f"  {name}: {difference}"
        for name in sorted({*actual, *expected})
        if (difference := _difference(name, actual, expected))
    ]
    if lines:
        raise AssertionError("\n".join(["the actions are not what they should be:", *lines]))


def _difference(name: str, actual: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    if name not in actual:
        return f"expected {expected[name]!r}, not set"
    value = actual[name]
    if name not in expected:
        return f"set to {value!r}, not expected"
    wanted = expected[name]
    if value == wanted and isinstance(value, bool) == isinstance(wanted, bool):
        return ""
    return f"expected {wanted!r}, got {value!r}"


@pytest.fixture
def serve_agent() -> Iterator[Callable[..., Server]]:
    """A function that serves an agent until the test ends: ``serve_agent(agent, **options)``.

    It takes what `Agent.serve_in_background` takes and returns the `Server`.
    """
    with contextlib.ExitStack() as stack:

        def serve(agent: Agent, *args: Any, **options: Any) -> Server:
            return stack.enter_context(agent.serve_in_background(*args, **options))

        yield serve


@pytest.fixture
def agent_client(serve_agent: Callable[..., Server]) -> Iterator[Callable[..., Client]]:
    """A function that serves an agent and connects a client: ``agent_client(agent, **settings)``.

    It takes the settings of `spop.Client`, which it returns.
    """
    from spop import Client

    with contextlib.ExitStack() as stack:

        def connect(agent: Agent, **settings: Any) -> Client:
            return stack.enter_context(Client(str(serve_agent(agent).address), **settings))

        yield connect


@pytest.fixture
def run_haproxy(
    serve_agent: Callable[..., Server], tmp_path: Path
) -> Iterator[Callable[..., HAProxy]]:
    """A function that runs HAProxy in front of an agent: ``run_haproxy(agent, spoe=, rules=)``.

    `spoe` are the sections of the SPOE file, its scope ``[test]`` and ``use-backend agents``
    included; `rules` are lines of the frontend. The test is skipped where there is no HAProxy.
    """
    binary = find_haproxy()
    if binary is None:
        pytest.skip("HAProxy is not installed")
    with contextlib.ExitStack() as stack:

        def run(agent: Agent, *, spoe: str, rules: str) -> HAProxy:
            address = str(serve_agent(agent).address)
            return stack.enter_context(HAProxy(binary, tmp_path, address, spoe, rules))

        yield run


def find_haproxy() -> str | None:
    """HAProxy from PATH, or from where systems install it."""
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class HAProxy:
    """A running HAProxy, for a ``with`` statement.

    Attributes:
        port: of 127.0.0.1, where its frontend listens.
    """

    def __init__(self, binary: str, folder: Path, agent: str, spoe: str, rules: str) -> None:
        self._command = [binary, "-db", "-f", str(folder / "haproxy.cfg")]
        self._folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        shown = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout
        release = shown.split("version ")[1].split(".")
        has_mode_spop = (int(release[0]), int(release[1])) >= (3, 1)
        (folder / "spoe.cfg").write_text(spoe.strip() + "\n")
        config = HAPROXY_CONFIG.format(
            folder=folder,
            fd=self._listener.fileno(),
            rules=rules,
            mode="spop" if has_mode_spop else "tcp",
            agent=agent,
        )
        (folder / "haproxy.cfg").write_text(config)

    def log(self) -> str:
        """What HAProxy printed."""
        return (self._folder / "haproxy.log").read_text()

    def __enter__(self) -> Self:
        with (self._folder / "haproxy.log").open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                pass_fds=[self._listener.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 15
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"HAProxy does not run:\n{self.log()}")
            time.sleep(0.01)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.close()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._folder / "stats.sock"))
            return True
        return False
