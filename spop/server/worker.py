"""A worker process: a `Server` that obeys the supervisor's messages."""

from __future__ import annotations

import faulthandler
import logging
import selectors
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from spop.agent import Agent
from spop.counters import Cells
from spop.server.balance import Balance
from spop.server.channel import Channel
from spop.server.options import Options
from spop.server.privileges import drop_privileges
from spop.server.server import Server
from spop.server.signals import GRACE, Signals, alarm
from spop.server.sources import import_as_they_are, source_files
from spop.server.tls import server_context

logger = logging.getLogger("spop.server")

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
) -> int:
    """Serve until the supervisor says stop or has ended. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all processes.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    faulthandler.enable(2)  # On SIGABRT from the supervisor it shows where all threads are.
    try:
        tls = server_context(options)
        drop_privileges(options)
        import_as_they_are()
        server = Server(
            load(), listeners=listeners, ports=ports, rows=rows, balance=balance, tls=tls,
            options=options,
        )  # fmt: skip
        server.ends_process = True
    except Exception as error:
        channel.send({"type": "failed", "error": str(error) or type(error).__name__})
        return 2
    with Signals(signal.SIGTERM, end_after=options.drain_timeout + GRACE) as signals:
        balance.tell(0)
        server.start()
        server.movable_changed()
        channel.send(
            {
                "type": "ready",
                "agent": server.agent.name,
                "handlers": list(server.agent.handlers),
                "files": source_files(),
            }
        )
        _Worker(server, channel, balance).run(signals)
    return 0


class _Worker:
    def __init__(self, server: Server, channel: Channel, balance: Balance) -> None:
        self._server = server
        self._channel = channel
        self._balance = balance

    def run(self, signals: Signals) -> None:
        """Obey messages until one says stop."""
        with selectors.DefaultSelector() as selector:
            selector.register(signals, selectors.EVENT_READ)
            selector.register(self._channel, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is signals or not self._obey_all():
                        self._server.stop()
                        return

    def _obey_all(self) -> bool:
        """Obey the messages that have come. False: stop."""
        received = self._channel.receive()
        if received is None:
            logger.error("the supervisor is gone: stopping")
            alarm.order(self._server.options.drain_timeout + GRACE)
            return False
        return all(self._obey(message, fds) for message, fds in received)

    def _obey(self, message: dict[str, Any], fds: list[int]) -> bool:
        if message["type"] == "connection":
            self._server.adopt(socket.socket(fileno=fds[0]), message["state"])
        elif message["type"] == "spare":
            self._server.spare(message["count"], self._give_away, self._balance.has_too_many)
        elif message["type"] == "ports":
            self._server.accept_ports(message["numbers"], self._give_away)
        elif message["type"] == "status":
            connections = self._server.connections(message["limit"])
            self._answer(message, {"connections": connections})
        elif message["type"] == "wake":
            self._server.wake_loops(partial(self._channel.send, {"type": "awake"}))
        elif message["type"] == "log":
            self._server.log_connections()
        elif message["type"] == "hand-over":
            self._server.hand_over(self._give_away)
            return False
        return bool(message["type"] != "stop")

    def _answer(self, message: dict[str, Any], answer: dict[str, Any]) -> None:
        self._channel.send({"type": "answer", "id": message["id"], **answer})

    def _give_away(self, sock: socket.socket, state: dict[str, Any]) -> None:
        self._channel.send({"type": "connection", "state": state}, [sock.fileno()])
