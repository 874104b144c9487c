"""Calls that are ordered for later, and the heap that they wait in."""

import threading
from collections.abc import Callable

import pytest

from spop.server.timers import MIN_PURGED, Timers


def run_all(timers: Timers) -> None:
    while (delay := timers.run_due()) is not None:
        threading.Event().wait(delay)


def test_calls_run_in_the_order_of_their_times_then_of_their_coming() -> None:
    timers, ran = Timers(), list[str]()
    for delay, name in ((0.02, "last"), (0.0, "first"), (0.01, "then")):
        timers.call_later(delay, lambda name=name: ran.append(name))  # type: ignore[misc]
    run_all(timers)
    assert ran == ["first", "then", "last"]
    assert timers.run_due() is None


def test_run_due_returns_the_seconds_until_the_next() -> None:
    timers = Timers()
    timers.call_later(100.0, lambda: None)
    delay = timers.run_due()
    assert delay is not None
    assert 90 < delay <= 100


def test_a_call_that_is_ordered_by_a_call_waits_for_the_next_round() -> None:
    timers, rounds = Timers(), list[int]()

    def again() -> None:
        rounds.append(len(rounds))
        timers.call_later(0.0, again)

    timers.call_later(0.0, again)
    timers.run_due()
    assert rounds == [0]
    timers.run_due()
    assert rounds == [0, 1]


def test_a_cancelled_call_does_not_run_nor_is_it_waited_for() -> None:
    timers = Timers()
    timer = timers.call_later(0.0, lambda: pytest.fail("it was cancelled"))
    timer.cancel()
    timer.cancel()
    assert timers.run_due() is None
    timers.call_later(0.0, lambda: None).cancel()
    timers.call_later(100.0, lambda: None)
    delay = timers.run_due()
    assert delay is not None
    assert delay > 90


def test_cancelled_calls_do_not_pile_up() -> None:
    timers = Timers()
    kept = [timers.call_later(50.0, lambda: None) for _ in range(10)]
    for _ in range(10_000):
        timers.call_later(100.0, lambda: None).cancel()
    assert len(timers) <= len(kept) + MIN_PURGED
    many = [timers.call_later(100.0, lambda: None) for _ in range(10_000)]
    for timer in many:
        timer.cancel()
    assert len(timers) <= MIN_PURGED


def test_calls_may_cancel_so_many_others_that_they_are_purged_meanwhile() -> None:
    timers, ran = Timers(), list[int]()
    others = [timers.call_later(100.0, lambda: None) for _ in range(1000)]

    def cancel_all() -> None:
        for timer in others:
            timer.cancel()

    timers.call_later(0.0, cancel_all)
    timers.call_later(0.0, lambda: ran.append(1))
    run_all(timers)
    assert ran == [1]


def test_a_call_that_was_run_and_is_cancelled_then_counts_for_nothing() -> None:
    timers = Timers()
    done = [timers.call_later(0.0, lambda: None) for _ in range(1000)]
    run_all(timers)
    for timer in done:
        timer.cancel()
    timers.call_later(0.0, lambda: None)
    assert len(timers) == 1


def test_a_call_that_raises_does_so_from_run_due_and_the_others_run_afterwards() -> None:
    timers, ran = Timers(), list[int]()
    timers.call_later(0.0, lambda: 1 // 0)
    timers.call_later(0.0, lambda: ran.append(1))
    with pytest.raises(ZeroDivisionError):
        timers.run_due()
    timers.run_due()
    assert ran == [1]


def test_a_runner_of_the_calls_may_keep_what_they_raise() -> None:
    failures, ran = list[Exception](), list[int]()

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            failures.append(error)

    timers = Timers(run)
    timers.call_later(0.0, lambda: 1 // 0)
    timers.call_later(0.0, lambda: ran.append(1))
    timers.run_due()
    assert ran == [1]
    assert len(failures) == 1
