"""How the workers of a supervisor share connections and ports.

It says who takes the connections that workers give away, orders those with too many to give some
away, and says which worker accepts from which port of a range.
"""

from __future__ import annotations

from collections.abc import Callable

from spop.options import Options
from spop.server.balance import SETTLE, surplus
from spop.server.board import Board, Place
from spop.server.children import WorkerProcess, Workers
from spop.server.health import READY_WITHIN, oldest_round
from spop.server.timers import Timers

FULL_DELAY = 0.01
"""Seconds until a message is sent again that a worker's channel had no room for."""


class Sharing:
    """Connections and ports of the workers. The supervisor's thread uses it.

    Args:
        is_replacing: new workers start, which are not complete and may still be given up.
    """

    def __init__(
        self,
        workers: Workers,
        board: Board,
        timers: Timers,
        options: Options,
        is_replacing: Callable[[], bool],
    ) -> None:
        self._workers = workers
        self._board = board
        self._timers = timers
        self._ports = sorted(each for each in set(options.port_numbers) if each is not None)
        self._is_replacing = is_replacing
        self._ordered = False

    def workers_changed(self) -> None:
        """A worker has begun or ceased to serve."""
        self._assign_ports()
        self.level_soon()

    # --- connections ---

    def takers(self, port: int | None, giver: WorkerProcess) -> list[WorkerProcess]:
        """Who may take a connection of a worker, the best one first."""
        return sorted(
            (worker for worker in self._workers.serving() if worker is not giver),
            key=lambda worker: (
                port not in (None, *worker.ports), not self._runs(worker), self._load(worker)
            ),
        )  # fmt: skip

    def _load(self, worker: WorkerProcess) -> int:
        """How many connections that can be moved a worker has, or gets soon."""
        under_way = worker.passed - self._board.adopted[worker.place]
        return max(0, self._board.movable[worker.place] - 1) + under_way

    def _runs(self, worker: WorkerProcess) -> bool:
        """Neither a signal nor a handler keeps the worker."""
        return (
            self._board.places[worker.place] == Place.SERVING
            and oldest_round(self._board.loops(worker.place)) <= READY_WITHIN
        )

    def level_soon(self, seconds: float = SETTLE) -> None:
        """Have the workers with too many connections give some away."""
        if not self._ordered:
            self._ordered = True
            self._timers.call_later(seconds, self._level)

    def _level(self) -> None:
        self._ordered = False
        if self._is_replacing():
            self.level_soon()
            return
        self._board.uneven = False
        serving = self._workers.serving()
        running = [worker for worker in serving if self._runs(worker)]
        if running:
            counts = [self._load(worker) for worker in running]
            for worker, count in zip(running, surplus(counts), strict=True):
                if count:
                    worker.channel.send({"type": "spare", "count": count})
        if len(running) < len(serving):
            self.level_soon(READY_WITHIN)

    # --- ports ---

    def _assign_ports(self) -> None:
        """Give each port of a range to its worker, or while that is missing to another."""
        serving = [
            worker
            for worker in self._workers.serving()
            if self._board.places[worker.place] == Place.SERVING
        ]
        owned: dict[WorkerProcess, list[int]] = {worker: [] for worker in serving}
        for port in self._ports if serving else ():
            # New workers may still be given up while there are old ones.
            owner = min(
                serving,
                key=lambda worker: (worker.number != port, worker.generation, len(owned[worker])),
            )
            owned[owner].append(port)
        for worker, ports in owned.items():
            if worker.ports == ports:
                continue
            if worker.channel.send({"type": "ports", "numbers": ports}):
                worker.ports = ports
            else:
                self._timers.call_later(FULL_DELAY, self._assign_ports)
