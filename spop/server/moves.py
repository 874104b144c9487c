"""Connections that leave a worker: each is offered to another, and stays where it is until that
has taken it."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from spop.server.children import WorkerProcess
from spop.server.sharing import FULL_DELAY, Sharing
from spop.server.timers import Timers


class Moves:
    """The connections that workers were offered and have not answered for."""

    def __init__(self, sharing: Sharing, timers: Timers) -> None:
        self._sharing = sharing
        self._timers = timers
        self._offered: dict[tuple[int, int], tuple[WorkerProcess, WorkerProcess, bool]] = {}

    def offer(self, giver: WorkerProcess, message: dict[str, Any], fds: list[int]) -> None:
        """Offer a connection of a worker to one that serves. None can have it without its `fds`."""
        port = message["state"].get("port")
        takers = self._sharing.takers(port, giver) if fds else []
        offer = {**message, "giver": giver.pid}
        taker = next((each for each in takers if each.channel.send(offer, fds)), None)
        if takers and taker is None:  # Each has more messages to read than its channel holds.
            self._timers.call_later(FULL_DELAY, partial(self.offer, giver, message, fds))
            return
        for fd in fds:
            os.close(fd)
        if taker is None:
            self._tell(giver, message["id"], False)
        else:
            taker.passed += port is None
            self._offered[giver.pid, message["id"]] = giver, taker, port is None

    def answered(self, message: dict[str, Any]) -> None:
        """A worker has taken a connection, or could not take it."""
        found = self._offered.pop((message["giver"], message["id"]), None)
        if found is not None:
            giver, taker, movable = found
            taker.passed -= movable and not message["taken"]
            self._tell(giver, message["id"], message["taken"])

    def ended(self, worker: WorkerProcess) -> None:
        """A worker has ended: what it has not taken stays where it is."""
        for (pid, number), (giver, taker, _) in list(self._offered.items()):
            if worker in (giver, taker):
                del self._offered[pid, number]
                self._tell(giver, number, False)

    def _tell(self, giver: WorkerProcess, number: int, taken: bool) -> None:
        answer = {"type": "moved", "id": number, "taken": taken}
        if not giver.channel.send(answer) and not giver.ended:
            self._timers.call_later(FULL_DELAY, partial(self._tell, giver, number, taken))
