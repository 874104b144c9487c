"""Questions that the supervisor asks its workers over their channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from spop.server.children import WorkerProcess
from spop.server.timers import Timers

ANSWER_TIMEOUT = 1.0

Answers = Sequence[dict[str, Any]]


class _Question:
    def __init__(self, asked: set[WorkerProcess], done: Callable[[Answers], object]) -> None:
        self.asked = asked
        self.answers: list[dict[str, Any]] = []
        self.done = done


class Questions:
    """The questions that are not answered yet."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._ids = itertools.count()
        self._open: dict[int, _Question] = {}
        self._silent: set[WorkerProcess] = set()

    def ask(
        self,
        workers: Iterable[WorkerProcess],
        message: dict[str, Any],
        done: Callable[[Answers], object],
    ) -> None:
        """Ask workers. Call `done` once, with all answers or those of `ANSWER_TIMEOUT`.

        A worker that left a question open is not asked again before it has answered it.
        """
        number = next(self._ids)
        asked = {
            worker
            for worker in workers
            if worker not in self._silent and worker.channel.send({**message, "id": number})
        }
        question = self._open[number] = _Question(asked, done)
        delay = ANSWER_TIMEOUT if question.asked else 0.0
        self._timers.call_later(delay, partial(self._close, number))

    def answered(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        """A worker has answered."""
        self._silent.discard(worker)
        question = self._open.get(message["id"])
        if question is not None:
            question.answers.append({"worker": worker.pid, **message})
            self._discard(message["id"], worker)

    def ended(self, worker: WorkerProcess) -> None:
        """A worker has ended and will not answer."""
        self._silent.discard(worker)
        for number in list(self._open):
            self._discard(number, worker)

    def _discard(self, number: int, worker: WorkerProcess) -> None:
        question = self._open[number]
        question.asked.discard(worker)
        if not question.asked:
            self._close(number)

    def _close(self, number: int) -> None:
        question = self._open.pop(number, None)
        if question is not None:
            self._silent |= question.asked
            question.done(question.answers)
