"""The process that answers operators over HTTP. The supervisor starts it and restarts it.

It is a process of its own because it has threads, and a process with threads must not fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
from collections.abc import Callable
from functools import partial

from spop.errors import reason
from spop.logs import fields
from spop.options import Options
from spop.server.board import Board
from spop.server.channel import Channel
from spop.server.listeners import bound_address, close_all
from spop.server.status import Status
from spop.server.timers import Timers

logger: logging.Logger = logging.getLogger("spop.server")

RESTART_DELAY = 1.0
MAX_RESTART_DELAY = 30.0

Fork = Callable[[Callable[[Channel], int]], tuple[int, Channel]]
"""Starts a child that runs a function with its end of a channel. Returns its pid and our end."""
AskStatus = Callable[[bool, Callable[[Status], object]], object]
"""Makes the status, with connections if the bool is true, and calls the function with it."""


class AdminProcess:
    """The admin process, as the supervisor sees it.

    Args:
        listener: where it answers. `close` closes it.
        options: the server's.
        selector: the supervisor's. The channel to the process is registered there.
    """

    def __init__(
        self,
        listener: socket.socket,
        board: Board,
        options: Options,
        selector: selectors.BaseSelector,
        timers: Timers,
        fork: Fork,
        ask_status: AskStatus,
    ) -> None:
        self.listener = listener
        self._board = board
        self._options = options
        self._selector = selector
        self._timers = timers
        self._fork = fork
        self._ask_status = ask_status
        self._channel: Channel | None = None
        self._delay = RESTART_DELAY
        self.pid: int | None = None

    def start(self) -> None:
        """Start the process.

        Raises:
            OSError: the system does not allow it.
        """
        self.pid, self._channel = self._fork(self._run)
        asked = partial(self._asked, self._channel)
        self._selector.register(self._channel, selectors.EVENT_READ, asked)

    def _start_again(self) -> None:
        if self._board.draining:
            return
        try:
            self.start()
        except OSError as error:
            what = fields("admin not started", error=reason(error))
            logger.error("cannot start the admin process: %s", reason(error), extra=what)
            self._forget()
            self._delay = min(2 * self._delay, MAX_RESTART_DELAY)
            self._timers.call_later(self._delay, self._start_again)
        else:
            self._delay = RESTART_DELAY

    def log_start(self) -> None:
        address = bound_address(self.listener)
        logger.info("admin on %s", address, extra=fields("admin", address=str(address)))

    def _run(self, channel: Channel) -> int:
        """Run in the admin process."""
        from spop.server.admin import run_admin

        stuck_timeout, hosts = self._options.stuck_timeout, self._options.admin_host
        return run_admin(self.listener, channel, self._board, stuck_timeout, hosts)

    def _asked(self, channel: Channel) -> None:
        try:
            received = channel.receive()
            questions = [(each["id"], each["connections"]) for each, _ in received or []]
        except Exception as error:
            what = fields("malformed message", error=reason(error))
            line = "the admin process sends what is no message: %s"
            logger.error(line, reason(error), extra=what)
            received, questions = None, []
            self._kill()
        if received is None:
            self._selector.unregister(channel)
        for number, connections in questions:
            self._ask_status(bool(connections), partial(_answer, channel, number))

    def ended(self) -> None:
        """It has ended: restart it, unless the service stops."""
        self._forget()
        if not self._board.draining:
            what = fields("admin died")
            logger.error("the admin process died; it is started again", extra=what)
            self._timers.call_later(self._delay, self._start_again)

    def _forget(self) -> None:
        if self._channel is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._channel)
            self._channel.close()
        self.pid = self._channel = None

    def close_channel(self) -> None:
        """Close the channel in another child of the supervisor, which does not use it."""
        if self._channel is not None:
            self._channel.close()

    def close(self) -> None:
        """End it."""
        if self.pid is not None:
            self._kill()
            os.waitpid(self.pid, 0)
        self._forget()
        close_all([self.listener])

    def _kill(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _answer(channel: Channel, number: int, status: Status) -> None:
    channel.send({"id": number, "status": status.to_json()})
