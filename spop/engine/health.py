"""Health checks: a thread for each server that is checked takes it out and brings it back.

`Health` counts as HAProxy does; `probe` is one check, and `Checks` are the threads, which both
the blocking and the asyncio engine use.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from spop.client.dial import Endpoint, dial, greet
from spop.connection import EngineConnection
from spop.engine.balance import Backend, BackendServer
from spop.errors import SpopError, reason

logger = logging.getLogger("spop.engine")


class Health:
    """Whether a server is up, by its checks.

    One that is up goes down after `fall` failures in a row; one that is down comes up after
    `rise` successes. At the beginning it is up, and the first failure takes it down.
    """

    def __init__(self, rise: int, fall: int) -> None:
        self._rise = rise
        self._most = rise + fall - 1
        self._points = rise

    @property
    def up(self) -> bool:
        return self._points >= self._rise

    def count(self, well: bool) -> bool:
        """Count a check. Returns whether the server is up."""
        was_up = self.up
        if well:
            self._points = min(self._points + 1, self._most)
            if self.up and not was_up:
                self._points = self._most
        else:
            self._points = max(self._points - 1, 0)
            if not self.up:
                self._points = 0
        return self.up


def probe(endpoint: Endpoint, timeout: float, *, spop: bool) -> None:
    """One check: connect and, for ``option spop-check``, exchange HELLO.

    Raises:
        OSError, ValueError, SpopError: the server is not well.
    """
    with contextlib.closing(dial(endpoint, timeout)) as sock:
        if spop:
            greet(sock, EngineConnection(healthcheck=True), timeout)


class Checks:
    """The checks of a backend, from `start` to `stop`.

    Args:
        changed: called in a thread of the checks when a server went down or came up.
    """

    def __init__(self, backend: Backend, changed: Callable[[BackendServer], object]) -> None:
        self._backend = backend
        self._changed = changed
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._watch, args=(server,), name="spop-engine-check", daemon=True
            )
            for server in backend.servers
            if server.config.check and not server.config.disabled
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End them; a check on its way is not waited for."""
        self._stopped.set()

    def _watch(self, server: BackendServer) -> None:
        config = server.config
        health = Health(config.rise, config.fall)
        timeout = self._backend.config.check_timeout or config.inter
        while not self._stopped.is_set():
            problem = self._check(server, timeout)
            up = health.count(problem is None)
            if self._stopped.is_set():
                return
            if up is not server.up:
                server.up = up
                if up:
                    logger.info("server %s/%s is up", self._backend.config.name, config.name)
                else:
                    name = self._backend.config.name
                    logger.warning("server %s/%s is down: %s", name, config.name, problem)
                self._changed(server)
            self._stopped.wait(config.inter)

    def _check(self, server: BackendServer, timeout: float) -> str | None:
        """What is wrong; None where all is well."""
        try:
            probe(server.endpoint, timeout, spop=self._backend.config.spop_check)
        except (OSError, ValueError, SpopError) as error:
            return reason(error)
        return None
