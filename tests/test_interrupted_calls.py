"""A signal's handler that raises, anywhere in a call of `Client`, while others wait for ACKs.

Of the callers that wait one leads: it reads for all. Python lets a handler raise in the main thread
where a function begins and where one in C has returned. Each test goes through all these places.
CPython 3.14 has one more, behind a lock's `__enter__` (gh-148874): the lock stays acquired there.
Later versions show that place to a profile function, but run no handler there.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import pytest
from haproxy import wait_until
from odd_agents import VARIABLE, Ids, Odd, OddAgent, Wire, ack

from spop import Client, Message, SpopError, SpopTimeoutError
from spop.client import blocking

TIMEOUT = 60.0
CODE = ("/spop/client/", "/spop/connection.py")


class Agent:
    """Keeps the first NOTIFY frames and answers all of them in one send, then each at once."""

    def __init__(self) -> None:
        self.kept: list[tuple[Wire, Ids]] = []
        self._answers = False

    def answer(self, wire: Wire, ids: Ids) -> None:
        if self._answers:
            wire.send(ack(ids))
        else:
            self.kept.append((wire, ids))

    def answer_all(self, order: list[int]) -> None:
        self._answers = True
        kept = [self.kept[number] for number in order if number < len(self.kept)]
        for wire in dict.fromkeys(wire for wire, _ in kept):
            with contextlib.suppress(OSError):
                wire.send(b"".join(ack(ids) for each, ids in kept if each is wire))


class Others:
    """Two threads that ask while the main thread does."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.outcomes: list[object] = []
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(2)]

    def _ask(self) -> None:
        try:
            self.outcomes.append(self._client.notify("m").variables)
        except SpopError as error:
            self.outcomes.append(str(error).partition(": ")[2])

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(20)


def interrupt_at(place: int, event: str) -> Callable[..., None]:
    """A profile function that raises at the place of that number, once."""
    places = itertools.count()

    def profile(frame: FrameType, what: str, argument: object) -> None:
        ours = any(part in frame.f_code.co_filename for part in CODE)
        if sys.version_info >= (3, 15) and getattr(argument, "__name__", "") == "__enter__":
            return
        if ours and what == event and next(places) == place:
            sys.setprofile(None)
            raise KeyboardInterrupt

    return profile


def soon(condition: Callable[[], bool]) -> None:
    """Wait for what does not come to be where the call was interrupted before."""
    end = time.monotonic() + 0.3
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)


def outcomes(place: int, event: str, *, leads: bool, order: list[int]) -> list[object] | None:
    """What became of the others' calls; None: there is no such place."""
    agent, interrupted = Agent(), True
    with OddAgent(Odd(answer=agent.answer)) as running:
        client = Client(running.address, timeout=TIMEOUT)
        client.connect()
        others = Others(client)

        def let_others_ask_and_answer() -> None:
            if leads:
                soon(lambda: len(agent.kept) == 1)
                others.start()
            soon(lambda: len(agent.kept) == 3)
            agent.answer_all(order)

        if not leads:
            others.start()
            wait_until(lambda: len(agent.kept) == 2, "the others")
        answering = threading.Thread(target=let_others_ask_and_answer)
        answering.start()
        with contextlib.suppress(KeyboardInterrupt):
            sys.setprofile(interrupt_at(place, event))
            client.notify("m")
            sys.setprofile(None)
            interrupted = False
        answering.join()
        others.join()
        assert client.notify("m").variables == {VARIABLE: True}
        closing = threading.Thread(target=client.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive(), f"the lock is lost at place {place}"
    return others.outcomes if interrupted else None


@pytest.mark.parametrize("event", ["call", "c_return"])
@pytest.mark.parametrize("order", [[1, 2, 0], [0, 1, 2]], ids=["last", "first"])
def test_others_are_answered_where_the_caller_that_leads_is_interrupted(
    event: str, order: list[int]
) -> None:
    """Its own ACK comes first, or last."""
    right: list[object] = [{VARIABLE: True}] * 2
    for place in itertools.count():
        found = outcomes(place, event, leads=True, order=order)
        if found is None:
            break
        assert found == right, f"at place {place}"
    assert place > 20


@pytest.mark.parametrize("event", ["call", "c_return"])
def test_nobody_waits_in_vain_where_a_caller_that_follows_is_interrupted(event: str) -> None:
    """In the middle of a send the connection is lost, and its calls fail at once."""
    allowed = [{VARIABLE: True}, "interrupted by a signal"]
    for place in itertools.count():
        found = outcomes(place, event, leads=False, order=[0, 1, 2])
        if found is None:
            break
        assert len(found) == 2, f"at place {place}"
        assert all(outcome in allowed for outcome in found), f"at place {place}: {found}"
    assert place > 10


def ask_in_vain(client: Client, place: int, event: str) -> None:
    """A call that gets no ACK, and is interrupted at the place unless its time is up before."""
    exchange = client.pool.exchange([Message("m")])
    deadline = time.monotonic() + 0.006
    try:
        with contextlib.suppress(KeyboardInterrupt, SpopTimeoutError):
            sys.setprofile(interrupt_at(place, event))
            client.submit(exchange, deadline)
            client.wait_for(exchange, deadline)
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("event", ["call", "c_return"])
@pytest.mark.parametrize("connected", [True, False])
def test_the_next_call_is_answered_where_a_caller_alone_was_interrupted(
    event: str, connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it begins, as it goes on to wait without an ACK, and as it gives up."""
    monkeypatch.setattr(blocking, "LONGEST_WAIT", 0.002)
    for place in range(45):
        agent = Agent()
        with OddAgent(Odd(answer=agent.answer)) as running:
            client = Client(running.address, timeout=15)
            if connected:
                client.connect()
            ask_in_vain(client, place, event)
            agent.answer_all([])
            assert client.notify("m").variables == {VARIABLE: True}, f"at place {place}"
            client.close()
