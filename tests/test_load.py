"""The load generator in one process: what it counts when connections end and ACKs do not come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from odd_agents import (
    AGENTS,
    GARBAGE,
    Answer,
    Ids,
    Odd,
    OddAgent,
    Wire,
    ack,
    answers,
    closes,
    disconnect,
    hello_with,
    is_silent,
    replies,
    says,
    stops_after,
)  # fmt: skip

from spop import Message
from spop.address import Address
from spop.load.generator import Generator, Plan, Result

ASYNC = hello_with(capabilities="pipelining,async")


def run(odd: Odd | OddAgent, **plan: Any) -> Result:
    """The result of a plan against an agent, with one connection and four frames in flight."""
    with odd if isinstance(odd, OddAgent) else OddAgent(odd) as agent:
        chosen = {"connections": 1, "depth": 4, "warm_up": 0.0, "count": 20, "timeout": 15.0} | plan
        message = Message("check", x=1)
        return Generator(
            Plan(address=Address.parse(agent.address), messages=[message], **chosen)
        ).run()


def after(count: int, then: Callable[[Wire, Ids], object]) -> Answer:
    """Answers, but the NOTIFY behind so many, on whatever connection, has something else."""
    seen: list[Ids] = []

    def answer(wire: Wire, ids: Ids) -> None:
        seen.append(ids)
        (then if len(seen) == count + 1 else answers)(wire, ids)

    return answer


@pytest.mark.parametrize(
    ("then", "kind"),
    [
        (closes, "disconnected"),
        (says(disconnect(13, "no memory"), then=closes), "disconnected"),
        (says(GARBAGE), "damaged"),
        (replies(lambda ids: ack(ids, flags=0)), "damaged"),
    ],
    ids=["closed", "disconnect", "garbage", "no FIN"],
)
def test_frames_of_a_connection_that_ends_are_lost_and_it_is_opened_again(
    then: Callable[[Wire, Ids], object], kind: str
) -> None:
    agent = OddAgent(Odd(answer=after(5, then)))
    result = run(agent)
    assert result.frames >= 20
    assert result.errors[kind] == 1
    assert 1 <= result.errors["lost"] <= 4
    assert set(result.errors) == {kind, "lost"}
    assert agent.accepted == 2


def test_with_async_frames_of_a_connection_that_ends_may_be_answered_elsewhere() -> None:
    result = run(Odd(greet=ASYNC, answer=after(5, closes)), mode="async", connections=2)
    assert dict(result.errors) == {"disconnected": 1}
    assert result.frames >= 20


def test_an_ack_on_another_connection_is_taken_with_async() -> None:
    """The first frame of each connection is answered on the other, by whichever comes second."""
    lock, waiting = threading.Lock(), list[tuple[Wire, Ids]]()

    def answer(wire: Wire, ids: Ids) -> None:
        with lock:
            waiting.append((wire, ids))
            if len({each for each, _ in waiting}) == 2:
                (one, first), (other, second) = waiting[0], waiting[-1]
                one.send(ack(second))
                other.send(ack(first), *(ack(ids) for _, ids in waiting[1:-1]))
                waiting.clear()

    result = run(Odd(greet=ASYNC, answer=answer), mode="async", connections=2, depth=1)
    assert result.errors == {}
    assert result.frames >= 20


def test_a_second_ack_is_a_stray() -> None:
    result = run(Odd(answer=replies(ack, ack)), count=10)
    assert set(result.errors) == {"stray ACK"}


def test_acks_in_single_bytes_are_matched() -> None:
    result = run(AGENTS["single-bytes"])
    assert result.frames >= 20
    assert result.errors == {}


def test_a_run_with_a_count_ends_when_no_ack_came_for_the_timeout() -> None:
    """The frames that were sent then have waited for as long."""
    result = run(Odd(answer=stops_after(6, then=is_silent)), timeout=1.0)
    assert result.frames == 6
    assert dict(result.errors) == {"timeout": 4}
    assert result.seconds >= 1.0


def test_without_any_ack_each_frame_is_an_error() -> None:
    result = run(AGENTS["silent"], timeout=1.0)
    assert (result.frames, dict(result.errors)) == (0, {"no ACK": 4})


def test_an_agent_that_is_gone_is_asked_for_a_connection_again_and_again() -> None:
    refuse = says(disconnect(13, "no memory"), then=closes)
    greeted: list[Wire] = []

    def greet(wire: Wire, request: bytes) -> None:
        greeted.append(wire)
        (refuse if len(greeted) == 2 else hello_with())(wire, request)

    result = run(Odd(greet=greet, answer=after(5, closes)))
    assert result.frames >= 20
    assert result.errors["not connected"] == 1


def test_with_a_rate_connections_take_turns() -> None:
    """No frame is answered before each connection has four."""
    lock, held = threading.Lock(), dict[Wire, list[Ids]]()

    def answer(wire: Wire, ids: Ids) -> None:
        with lock:
            held.setdefault(wire, []).append(ids)
            if len(held) == 3 and min(map(len, held.values())) >= 4:
                for each, waiting in held.items():
                    each.send(*map(ack, waiting))
                    waiting.clear()

    result = run(Odd(answer=answer), connections=3, depth=1000, rate=1000.0, count=12)
    assert result.frames >= 12
    assert result.errors == {}


def test_haproxy_3_1_and_later_count_stream_ids_on_each_connection() -> None:
    asked: dict[Wire, list[Ids]] = {}

    def answer(wire: Wire, ids: Ids) -> None:
        asked.setdefault(wire, []).append(ids)
        answers(wire, ids)

    result = run(
        Odd(answer=answer), haproxy_version="3.4", connections=2, depth=100, count=1000
    )  # More than a ring has places.
    assert result.errors == {}
    assert result.frames >= 1000
    for each in asked.values():
        assert each == [(2 * number + 1, 1) for number in range(len(each))]


def test_haproxy_3_1_and_later_have_20_frames_in_flight() -> None:
    held: list[tuple[Wire, Ids]] = []

    def answer(wire: Wire, ids: Ids) -> None:
        held.append((wire, ids))
        if len(held) == 20:
            wire.send(b"".join(ack(each) for _, each in held))
            held.clear()

    result = run(Odd(answer=answer), haproxy_version="3.4", depth=100, count=60)
    assert (result.frames, dict(result.errors)) == (60, {})


def test_a_connection_that_counts_begins_anew_when_it_is_opened_again() -> None:
    result = run(Odd(answer=after(5, closes)), haproxy_version="3.4", count=600)
    assert set(result.errors) == {"disconnected", "lost"}
    assert result.frames >= 600
