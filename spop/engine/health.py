"""Health checks of a backend's servers (``check`` in section 5.2 of HAProxy's manual).

`Health` counts the results, `probe` does one check, and `Checks` runs a thread for each server that
is checked. Both engines use them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from spop.client.dial import Dialogue, Endpoint, dial
from spop.connection import EngineConnection
from spop.engine.balance import Backend, BackendServer
from spop.errors import SpopError, reason

logger: logging.Logger = logging.getLogger("spop.engine")


class Health:
    """The health of a server, from the results of its checks.

    It counts points, as HAProxy does: a success adds one, a failure takes one. `rise` points are
    up. A change gives all points or takes them, so that the next change takes `fall` failures or
    `rise` successes. A new server has `rise` points: it is up, and the first failure takes it down.
    """

    def __init__(self, rise: int, fall: int) -> None:
        self._rise = rise
        self._full = rise + fall - 1
        self._points = rise

    @property
    def up(self) -> bool:
        return self._points >= self._rise

    def count(self, succeeded: bool) -> bool:
        """Count a check. Returns whether the server is up."""
        was_up = self.up
        if succeeded:
            self._points = min(self._points + 1, self._full)
            if self.up and not was_up:
                self._points = self._full
        else:
            self._points = max(self._points - 1, 0)
            if not self.up:
                self._points = 0
        return self.up


def probe(endpoint: Endpoint, timeout: float, *, spop: bool) -> None:
    """Do one check: connect and, for ``option spop-check``, exchange HELLO.

    Raises:
        OSError, ValueError, SpopError: the server is not healthy.
    """
    with contextlib.closing(dial(endpoint, timeout)) as sock:
        if spop:
            Dialogue(sock, EngineConnection(healthcheck=True)).greet(timeout)


class Checks:
    """The threads that check the servers of a backend, from `start` to `stop`.

    Args:
        changed: called in one of these threads when a server goes down or comes up.
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
        """End the threads, without waiting for a check that is running."""
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
        """Why the server is not healthy; None if it is."""
        try:
            probe(server.endpoint, timeout, spop=self._backend.config.spop_check)
        except (OSError, ValueError, SpopError) as error:
            return reason(error)
        return None
