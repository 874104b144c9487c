"""A worker process: a `Server` that obeys the supervisor's messages."""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import logging
import selectors
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from spop.agent import Agent
from spop.counters import Cells
from spop.logs import fields
from spop.options import Options
from spop.server.balance import Balance
from spop.server.channel import Channel
from spop.server.ending import Hurries
from spop.server.giving import Taken
from spop.server.orphans import end_with_parent
from spop.server.privileges import drop_privileges
from spop.server.server import Server, tls_context
from spop.server.signals import GRACE, Hurry, Signals, alarm
from spop.server.sources import import_as_they_are, source_files
from spop.start_errors import StartError, start_error

logger: logging.Logger = logging.getLogger("spop.server")

Load = Callable[[], Agent]
"""Imports the agent, in the process that is to run it."""


def run_worker(
    options: Options,
    load: Load,
    listeners: list[socket.socket],
    ports: list[int | None],
    channel: Channel,
    rows: list[Cells],
    balance: Balance,
    parent: int,
) -> int:
    """Serve until the supervisor, `parent`, says stop or has ended. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all processes.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    faulthandler.enable(2)  # On SIGABRT from the supervisor it shows where all threads are.
    with contextlib.ExitStack() as stack:
        try:
            tls = tls_context(options)
            drop_privileges(options)
            end_with_parent(parent, signal.SIGTERM)
            import_as_they_are()
            server = Server(
                load(), listeners=listeners, ports=ports, rows=rows, balance=balance, tls=tls,
                options=options,
            )  # fmt: skip
            server.ends_process = True
            # The descriptors that it needs, before those of connections take the last ones.
            signals = Signals(signal.SIGTERM, end_after=options.drain_timeout + GRACE)
            worker = _Worker(server, channel, stack.enter_context(signals), balance)
            balance.tell(0)
            server.start()
        except BaseException as error:  # The user's code may raise SystemExit and the like.
            return _tell_failure(channel, start_error("cannot start", error))
        server.movable_changed()
        channel.send(
            {
                "type": "ready",
                "agent": server.agent.name,
                "handlers": list(server.agent.handlers),
                "metrics": server.agent.metrics.descriptions(),
                "files": source_files(),
            }
        )
        worker.run()
    return 0


def _tell_failure(channel: Channel, error: StartError) -> int:
    """Have the supervisor raise or log an error. Returns the exit status."""
    about = {"error": str(error), "traceback": error.traceback, "exit_code": error.exit_code}
    channel.send({"type": "failed", **about})
    return error.exit_code


class _Worker:
    """Obeys the supervisor's messages and SIGTERM."""

    def __init__(
        self, server: Server, channel: Channel, signals: Signals, balance: Balance
    ) -> None:
        self._server = server
        self._channel = channel
        self._signals = signals
        self._balance = balance
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals, selectors.EVENT_READ, self._signalled)
        self._selector.register(channel, selectors.EVENT_READ, self._told)
        self._hurry = Hurry()
        self._hurries = False
        self._end: Callable[[Hurries], object] | None = None
        self._numbers = itertools.count()
        self._offers: dict[int, Taken] = {}

    def run(self) -> None:
        """Obey until the server has ended."""
        while self._end is None:
            self._obey()
        self._end(self._obey)

    def _obey(self, seconds: float | None = None) -> bool:
        """Do what comes in that time. Returns whether the end has to hurry."""
        for key, _ in self._selector.select(seconds):
            key.data()
        return self._hurries

    def _signalled(self) -> None:
        for _ in self._signals.received():
            self._hurries |= self._hurry.signalled()
            self._stop()

    def _told(self) -> None:
        received = self._channel.receive()
        if received is None:
            logger.error("the supervisor is gone: stopping", extra=fields("supervisor gone"))
            self._selector.unregister(self._channel)
            alarm.order(self._server.options.drain_timeout + GRACE)
            self._stop()
        for message, fds in received or []:
            self._take(message, fds)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if message["type"] == "connection":
            self._adopt(message, fds)
        elif message["type"] == "moved":
            self._offers.pop(message["id"])(message["taken"])
        elif message["type"] == "spare":
            self._server.spare(message["count"], self._give_away, self._balance.has_too_many)
        elif message["type"] == "ports":
            self._server.accept_ports(message["numbers"], self._give_away)
        elif message["type"] == "status":
            connections = self._server.connections(message["limit"])
            unknown = self._server.without_handler()
            self._answer(message, {"connections": connections, "without_handler": unknown})
        elif message["type"] == "wake":
            self._server.wake_loops(partial(self._channel.send, {"type": "awake"}))
        elif message["type"] == "lame":
            self._server.be_lame()
        elif message["type"] == "log":
            self._server.log_connections()
        elif message["type"] == "hand-over" and self._end is None:
            self._end = partial(self._server.hand_over, self._give_away)
        elif message["type"] in ("stop", "hurry"):
            self._hurries |= message["type"] == "hurry"
            self._stop()

    def _stop(self) -> None:
        if self._end is None:
            self._end = self._server.stop
        else:  # It may be handing over.
            self._server.drain()

    def _answer(self, message: dict[str, Any], answer: dict[str, Any]) -> None:
        self._channel.send({"type": "answer", "id": message["id"], **answer})

    def _adopt(self, message: dict[str, Any], fds: list[int]) -> None:
        """Take a connection of another worker, and say whether this was possible."""

        def answer(taken: bool) -> None:
            names = {name: message[name] for name in ("id", "giver")}
            self._channel.send({"type": "moved", "taken": taken, **names})

        if fds:
            self._server.adopt(socket.socket(fileno=fds[0]), message["state"], answer)
        else:  # This process can have no more descriptors.
            answer(False)

    def _give_away(self, sock: socket.socket, state: dict[str, Any], taken: Taken) -> None:
        number = next(self._numbers)
        self._offers[number] = taken
        offer = {"type": "connection", "id": number, "state": state}
        if not self._channel.send(offer, [sock.fileno()]):
            self._offers.pop(number)(False)
