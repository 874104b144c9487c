"""What each trouble happens to: an agent in processes of its own, and HAProxys in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple, Self

from load import Ledger, Load
from network import Manner, Network, carry

from spop.testing.haproxy import Process, find_haproxy, version

HERE = Path(__file__).parent
MESSAGES = ("inline", "waiting", "blocking", "cached", "batch", "large", "greedy", "failing")

HAPROXY = """
frontend www
    bind fd@{fd}
    option http-buffer-request
    filter spoe engine test config {folder}/spoe.cfg
    http-request return status 200 {headers}

backend agents
    mode {mode}
    timeout server 1m
    option spop-check
    server agent 127.0.0.1:{agent_port} {checks}
"""
HEADERS = " ".join(
    f'hdr X-{name.capitalize()} "%[var(txn.test.{name})]"' for name in ("answer", "failed", "error")
)
SPOE = """
[test]
spoe-agent test
    messages {messages}
    option var-prefix test
    option set-on-error error
    {options}
    timeout hello {timeout}
    timeout idle 1m
    timeout processing {timeout}
    use-backend agents
"""
MESSAGE = """
spoe-message {name}
    args path=path {more}
    event on-frontend-http-request if {{ path_beg /{name}/ }}
"""
MODES = {
    "2.6": "no option pipelining\n    no option async",
    "3.0": "option pipelining\n    option async",
    "3.4": "option pipelining",
}
"""How each HAProxy talks to the agent: in lock step, with async, with pipelining alone."""


def haproxies() -> dict[str, str]:
    """Those of ``SPOP_TEST_HAPROXY`` that a mode is known for, else the one of this machine."""
    named = os.environ.get("SPOP_TEST_HAPROXY", find_haproxy() or "").split(":")
    found = {"{}.{}".format(*version(binary)[:2]): binary for binary in named if binary}
    return {name: binary for name, binary in found.items() if name in MODES}


class Needs(NamedTuple):
    """What a trouble needs of its stage.

    Attributes:
        messages: the messages that requests ask for in turn.
        timeout: the processing timeout of HAProxy.
        options: of ``spop serve``.
        environment: of ``spop serve``.
        log: where its log goes; None: into a file of the stage.
        pace: seconds between two requests of a client.
        network: HAProxys reach the agent through a `Network` each.
        checks: options of HAProxy's health checks. Without them there are none.
    """

    messages: Sequence[str] = ("inline", "waiting", "blocking", "cached", "batch", "large")
    timeout: str = "10s"
    options: Sequence[str] = ()
    environment: dict[str, str] = {}  # noqa: RUF012
    log: str | None = None
    pace: float = 0.02
    network: bool = False
    checks: str = ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Service:
    """``spop serve`` with the agent, for a ``with`` statement."""

    def __init__(self, folder: Path, needs: Needs) -> None:
        self.port, self._admin = free_port(), free_port()
        self._log = needs.log or str(folder / "agent.log")
        self._command = [
            sys.executable, "-m", "spop", "serve", f"{HERE}/agent.py:agent",
            "--bind", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{self._admin}",
            "--processes", "2", "--threads", "2", *needs.options,
        ]  # fmt: skip
        self._environment = {**os.environ, **needs.environment}

    def __enter__(self) -> Self:
        with open(self._log, "w") as log:
            self.process = subprocess.Popen(self._command, stderr=log, env=self._environment)
        try:
            self.wait_until(lambda: self.ready, "the agent to serve")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        workers = self.children() if self.process.poll() is None else []
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            for pid in (self.process.pid, *workers):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}: {self.log()[-2000:]}")
            time.sleep(0.02)

    @property
    def ready(self) -> bool:
        """Both workers serve. Before that a failure is one of the start, and ends the service."""
        with contextlib.suppress(OSError):
            states = [each["state"] for each in self.status()["workers"]]
            return states == ["ready", "ready"]
        return False

    def get(self, path: str) -> str:
        """A page of its admin port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}{path}", timeout=10) as page:
            return str(page.read().decode())

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.get("/status.json"))
        return status

    def workers(self) -> list[int]:
        """The process numbers of the workers that serve."""
        return [each["pid"] for each in self.status()["workers"]]

    def children(self) -> list[int]:
        """Those of all its children: the workers, and the process of the admin port."""
        pid = self.process.pid
        return [int(each) for each in read(f"/proc/{pid}/task/{pid}/children").split()]

    def log(self) -> str:
        return read(self._log) if os.path.isfile(self._log) else ""


def read(path: str) -> str:
    """A file that may be gone, as its process."""
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""


class Stage:
    """Agent, network, HAProxys and load, for a ``with`` statement.

    Args:
        binaries: the HAProxys, by version.

    Attributes:
        events: number of single troubles, if a trouble counts them.
    """

    def __init__(self, folder: Path, binaries: dict[str, str], needs: Needs) -> None:
        self._folder, self._binaries, self._needs = folder, binaries, needs
        self.agent = Service(folder, needs)
        self.networks: dict[str, Network] = {}
        self.events = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.agent)
            if self._needs.network:
                self.networks = {
                    name: stack.enter_context(Network(self.agent.port)) for name in self._binaries
                }
            self.loads = {
                name: stack.enter_context(self._load(stack, name)) for name in self._binaries
            }
            self._stack = stack.pop_all()
        return self

    def carry(self, seconds: float, manner: Manner) -> None:
        """Have the networks carry bytes in a bad manner for so long, in both directions."""
        for network in self.networks.values():
            network.to_agent = network.to_haproxy = manner
        time.sleep(seconds)
        for network in self.networks.values():
            network.to_agent = network.to_haproxy = carry

    def _load(self, stack: contextlib.ExitStack, name: str) -> Load:
        folder = self._folder / name
        folder.mkdir()
        proxy = stack.enter_context(
            Process(
                self._binaries[name],
                folder,
                config=HAPROXY,
                spoe=self._spoe(name),
                headers=HEADERS,
                checks=self._needs.checks,
                agent_port=(self.networks.get(name) or self.agent).port,
            )
        )
        messages = [each for each in self._needs.messages if each != "large" or name < "3.1"]
        return Load(proxy, messages, pace=self._needs.pace)

    def _spoe(self, name: str) -> str:
        sections = [
            MESSAGE.format(name=each, more="body=req.body again=req.body" * (each == "large"))
            for each in MESSAGES
        ]
        head = SPOE.format(
            messages=" ".join(MESSAGES), options=MODES[name], timeout=self._needs.timeout
        )
        return head + "".join(sections)

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def clients(self) -> int:
        """The most requests that can be in flight."""
        return sum(load.clients for load in self.loads.values())

    @property
    def ledger(self) -> Ledger:
        return reduce(add, (load.ledger for load in self.loads.values()))

    def wait_for_calm(self) -> Iterator[str]:
        """Wait until all is as before the trouble. Yields what is not."""
        for name, load in self.loads.items():
            if not load.wait_for_calm():
                yield f"HAProxy {name} does not get right answers again: {load.ledger}"
        for load in self.loads.values():
            load.__exit__()
        try:
            self.agent.wait_until(
                lambda: not self.agent.status()["counts"]["frames_in_hand"], "all ACKs"
            )
        except AssertionError as error:
            yield str(error)


def pauses(seconds: float, each: float) -> Iterator[None]:
    """So many seconds, in steps."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(each)
