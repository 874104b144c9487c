"""Handlers of each kind for a dispatcher that is fuzzed, and what runs those that wait."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from pair import Twins

from spop import codec
from spop.constants import NO_LIMIT
from spop.frames import Ack, Message
from spop.parameters import ACK, ASYNC, HEADERS, INLINE, KEY, LEFT, MESSAGE, Parameter

ERROR = bytes(codec.encode_actions({"txn.failed": True}))
INTEGERS = 0x3C


class Later:
    """Suspends a coroutine once."""

    def __await__(self) -> Generator[None, Any, Any]:
        yield


def inline(a: Any, *, b: Any = 5) -> dict[str, Any]:
    return {"sess.a": a, "txn.b": b}


def with_headers(a: Any = None, *, b: Any) -> dict[str, Any]:
    return {"txn.a": a, "txn.b": b.names(), "txn.c": b}


def with_ack(message: Message, ack: Ack, c: Any = None) -> None:
    for place, (name, value) in enumerate(message.args):
        ack.set("sess", f"x{place}.{len(name)}", value)
    if c is False:
        raise LookupError("as it was asked")


async def waits(a: int = 0) -> dict[str, Any]:
    for _ in range(a % 3):
        await Later()
    return {"txn.a": a}


def large(a: Any = b"") -> dict[str, Any]:
    return {"txn.large": bytes(200), "txn.a": a}


def routes(twins: Twins) -> list[Any]:
    """Messages ``m``, ``h``, ``whole``, ``late``, ``left``, ``kept`` and ``large``."""
    route = twins.dispatch.Route
    both = [Parameter("a"), Parameter("b", accepts=INTEGERS, default=5, keyword_only=True)]
    headers = [
        Parameter("a", accepts=HEADERS | 1, default=None),
        Parameter("b", accepts=HEADERS, keyword_only=True),
    ]
    whole = [Parameter("m", MESSAGE), Parameter("k", ACK), Parameter("c", default=None)]
    number = [Parameter("a", accepts=INTEGERS, default=1)]
    return [
        route("m", inline, both, INLINE, ERROR),
        route("h", with_headers, headers, INLINE, ERROR),
        route("whole", with_ack, whole, INLINE),
        route("late", waits, number, ASYNC, ERROR),
        route("left", inline, both, LEFT, ERROR),
        route("large", large, [Parameter("a", accepts=-1, default=b"")], INLINE, ERROR * 3),
        _kept(twins),
    ]


def _kept(twins: Twins) -> Any:
    """A handler whose answers are kept, as `spop.server.keeping` does it."""
    answers = twins.cache.Answers(3)

    def keeps(key: bytes | None, a: Any, b: Any) -> dict[str, Any]:
        answer = {"txn.kept": a, "txn.b": b}
        if key is not None:
            answers.keep(key, bytes(codec.encode_answer(answer)), NO_LIMIT, answers.generation)
        return answer

    parameters = [Parameter("key", KEY), Parameter("a"), Parameter("b", default=0)]
    route = twins.dispatch.Route("kept", keeps, parameters, INLINE, ERROR)
    route.answers = answers
    return route


class Ends:
    """Ends the calls that a dispatcher waits for, in place of a server.

    Attributes:
        failures: names and errors of the handlers that failed.
    """

    def __init__(self, twins: Twins, **limits: Any) -> None:
        self.failures: list[tuple[str, str]] = []
        self.tasks: list[Any] = []
        self.dispatcher = twins.dispatch.Dispatcher(routes(twins), self._failed, **limits)
        self.dispatcher.start = self._start

    def fail(self, error: BaseException) -> None:
        """As a fast path's: the connection ends for an unexpected error."""
        raise error

    def _failed(self, name: str, error: BaseException) -> None:
        self.failures.append((name, f"{type(error).__name__}: {error}"))

    def _start(self, begun: Any) -> Any:
        """The first step of a coroutine, as in an eager task."""
        self._step(begun)
        if not begun.done:
            self.tasks.append(begun)
        return begun

    def _step(self, begun: Any) -> None:
        with contextlib.suppress(StopIteration):
            begun.send(None)

    def end_kept(self) -> None:
        """A step of each task, and the calls that are left."""
        for begun in self.tasks:
            self._step(begun)
        self.tasks = [begun for begun in self.tasks if not begun.done]
        left = self.dispatcher.left
        while left:
            call = left.pop()
            try:
                self.dispatcher.settle(call, call.run(), None)
            except Exception as error:
                self.dispatcher.settle(call, None, error)
        self.dispatcher.settled.clear()

    def end(self, intake: Any, deferred: Any) -> None:
        """Run what a `Deferred` waits for and write its ACK."""
        for call in deferred.calls:
            room = deferred.room - len(deferred.actions)
            if call.values is None:
                deferred.actions += self._without_call(call, room)
                continue
            returned, error = self._result(call)
            deferred.actions += bytes(self.dispatcher.result(call, returned, error, 0, room))
        self.dispatcher.acknowledge(intake, deferred, self)
        intake.in_flight -= 1

    def _without_call(self, call: Any, room: int) -> bytes:
        """What answers a message whose handler is not called, as `spop.server.exchange` has it."""
        if call.kept is not None:
            return bytes(self.dispatcher.fitting(call.route, call.kept, room))
        return call.route.on_error if len(call.route.on_error) <= room else b""

    def _result(self, call: Any) -> tuple[Any, Exception | None]:
        try:
            while call.begun is not None and not call.begun.done:
                self._step(call.begun)
            if call.begun is not None:
                return call.begun.value, call.begun.error
            returned = call.run()
            return (_waited_for(returned) if call.route.kind == ASYNC else returned), None
        except Exception as error:
            return None, error


def _waited_for(coroutine: Any) -> Any:
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
