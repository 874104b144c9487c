"""``cache=``: answers that are kept by the arguments of a handler."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from types import ModuleType
from typing import Any

import pytest
from event_loops import EVENT_LOOPS, Serve, serve_on
from haproxy import wait_until
from hypothesis import given
from hypothesis import strategies as st
from implementations import intake_class, route_class

import spop.dispatch
from spop import (
    UNSET,
    Ack,
    Agent,
    AsyncClient,
    Batch,
    Cache,
    Client,
    Message,
    StreamState,
    _cache_py,
    _dispatch_py,
    codec,
)  # fmt: skip
from spop.counters import Cell
from spop.parameters import KEY, Parameter

WAIT = 30.0
KINDS = ["inline", "blocking", "async"]
LATER = ["blocking", "async"]
LONG = Cache(ttl=600.0, size=1000)


@pytest.fixture(params=EVENT_LOOPS)
def serve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Serve:
    return serve_on(request.param, monkeypatch)


class Gate:
    """Calls wait here for the test."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def pass_(self) -> None:
        assert self.opened.wait(WAIT)

    async def pass_async(self) -> None:
        while not self.opened.is_set():
            await asyncio.sleep(0.005)


class Service:
    """An agent with one handler, and the calls of it."""

    def __init__(
        self,
        kind: str,
        function: Callable[[Any], Any] | None = None,
        cache: Cache = LONG,
        gate: Gate | None = None,
        **options: Any,
    ) -> None:
        self.calls: list[Any] = []
        self.agent = Agent(on_error={"txn.error": True}, on_timeout={"txn.late": True})

        def answer(n: Any) -> Any:
            self.calls.append(n)
            return function(n) if function else {"txn.calls": len(self.calls)}

        def plain(n: object = "default") -> Any:
            if gate:
                gate.pass_()
            return answer(n)

        async def asynchronous(n: object = "default") -> Any:
            await (gate.pass_async() if gate else asyncio.sleep(0))
            return answer(n)

        self.agent.message("m", cache=cache, blocking=kind == "blocking", **options)(
            asynchronous if kind == "async" else plain
        )

    @property
    def cache(self) -> Any:
        return self.agent.handlers["m"].cache


@contextlib.contextmanager
def client_of(agent: Agent, serve: Serve | None = None, **options: Any) -> Iterator[Client]:
    served = serve(agent, **options) if serve else agent.serve_in_background(**options)
    with served as server, Client(str(server.address)) as client:
        yield client


def ask(client: Client, **named: Any) -> dict[str, Any]:
    return client.notify("m", **named).variables


# --- what is kept ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_hit_runs_no_handler(kind: str, serve: Serve) -> None:
    service = Service(kind, lambda n: {"txn.n": n})
    with client_of(service.agent, serve) as client:
        assert [ask(client, n=n)["txn.n"] for n in (1, 2, 1, 2, 1)] == [1, 2, 1, 2, 1]
        assert service.calls == [1, 2]
        assert (service.cache.hits, service.cache.misses, len(service.cache)) == (3, 2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_expires(kind: str) -> None:
    service = Service(kind, cache=Cache(ttl=0.05, size=10))
    with client_of(service.agent) as client:
        ask(client, n=1)
        wait_until(lambda: ask(client, n=1) and len(service.calls) > 1, "the end of the answer")


@pytest.mark.parametrize("ttl", [1e10, float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_may_be_kept_for_ever(kind: str, ttl: float) -> None:
    service = Service(kind, cache=Cache(ttl=ttl, size=10, error_ttl=ttl))
    with client_of(service.agent) as client:
        for _ in range(2):
            ask(client, n=1)
    assert service.calls == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_recently_used_goes_first(kind: str) -> None:
    service = Service(kind, cache=Cache(ttl=600.0, size=2))
    with client_of(service.agent) as client:
        for n in (1, 2, 1, 3, 1, 2):
            ask(client, n=n)
    assert service.calls == [1, 2, 3, 2]


@pytest.mark.parametrize("answer", [None, {}, {"txn.x": None, "txn.y": UNSET}, {"txn.x": "é"}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hit_is_the_answer_of_the_call(kind: str, answer: Any) -> None:
    service = Service(kind, lambda n: answer)
    with client_of(service.agent) as client:
        first, second = (client.notify("m", n=1) for _ in range(2))
    assert first.actions == second.actions
    assert service.calls == [1]


def raises(n: Any) -> Any:
    raise OSError("no")


FAILURES = [raises, lambda n: "text", lambda n: "", lambda n: 0, lambda n: {"txn.x": 1.5}]


@pytest.mark.parametrize("function", FAILURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_not_kept(kind: str, function: Callable[[Any], Any]) -> None:
    service = Service(kind, function)
    with client_of(service.agent) as client:
        assert [ask(client, n=1) for _ in range(3)] == [{"txn.error": True}] * 3
    assert service.calls == [1, 1, 1]
    assert service.agent.errors == {"m": 3}


@pytest.mark.parametrize("function", FAILURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_kept_for_error_ttl(kind: str, function: Callable[[Any], Any]) -> None:
    service = Service(kind, function, Cache(ttl=0.001, size=10, error_ttl=600.0))
    with client_of(service.agent) as client:
        assert [ask(client, n=1) for _ in range(3)] == [{"txn.error": True}] * 3
    assert service.calls == [1]
    assert service.agent.errors == {"m": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_ttl_ends(kind: str) -> None:
    service = Service(kind, raises, Cache(ttl=600.0, size=10, error_ttl=0.05))
    with client_of(service.agent) as client:
        wait_until(lambda: ask(client, n=1) and len(service.calls) > 1, "the end of the failure")


@pytest.mark.parametrize("kind", KINDS)
def test_an_argument_that_does_not_fit_is_never_answered_from_the_cache(kind: str) -> None:
    service = Service(kind)
    strict = Agent(on_error={"txn.error": True})

    def plain(n: int) -> Any:
        return {"txn.n": n}

    async def asynchronous(n: int) -> Any:
        return {"txn.n": n}

    strict.message("m", cache=LONG, blocking=kind == "blocking")(
        asynchronous if kind == "async" else plain
    )
    with client_of(strict) as client:
        answers = [ask(client, **given) for given in ({"n": "1"}, {"n": 1}, {}, {"n": 2})]
    assert answers == [{"txn.error": True}, {"txn.n": 1}, {"txn.error": True}, {"txn.n": 2}]
    assert service.calls == []


# --- keys ---

VALUES: list[dict[str, Any]] = [
    {"n": value}
    for value in (
        None, False, True, 0, 1, -1, 2**32 - 1, 2**63, 2**64 - 1, -(2**63), "", b"", "1", b"1",
        "192.0.2.1", IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), IPv6Address("::1"),
        IPv4Address("0.0.0.1"), bytes([192, 0, 2, 1]), "\udcff", b"\xff", b"\x11",
    )
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_and_type_has_an_answer_of_its_own(kind: str) -> None:
    service = Service(kind)
    with client_of(service.agent) as client:
        asked = [{}, *VALUES]
        first = [ask(client, **given)["txn.calls"] for given in asked]
        second = [ask(client, **given)["txn.calls"] for given in asked]
    assert first == second == list(range(1, len(asked) + 1))


def test_arguments_that_no_parameter_takes_do_not_count() -> None:
    service = Service("inline")
    with client_of(service.agent) as client:
        ask(client, n=1, other=1)
        ask(client, other=2, n=1)
        client.notify(Message("m", [("", 5), ("n", 1), ("n", 2)]))
    assert service.calls == [1]


def two_bytes() -> tuple[Agent, list[Any]]:
    agent, calls = Agent(), list[Any]()

    @agent.message("m", cache=LONG)
    def m(one_a: bytes = b"?", b: bytes = b"?") -> dict[str, Any]:
        calls.append((one_a, b))
        return {"txn.a": one_a, "txn.b": b}

    return agent, calls


@pytest.mark.parametrize("name", ["one_a", "one-a", "one.a"])
def test_order_and_spelling_of_arguments_do_not_count(name: str) -> None:
    agent, calls = two_bytes()
    with client_of(agent) as client:
        ask(client, one_a=b"1", b=b"2")
        answer = ask(client, **{"b": b"2", name: b"1"})
    assert answer == {"txn.a": b"1", "txn.b": b"2"}
    assert calls == [(b"1", b"2")]


def keys_of(dispatch: ModuleType, messages: list[Message]) -> list[bytes | None]:
    """The keys of the answers to messages."""
    keys: list[bytes | None] = []
    parameters = [Parameter("a", default=None), Parameter("b", default=None)]
    parameters.append(Parameter("key", KEY, keyword_only=True))
    route = route_class(dispatch)("m", lambda a, b, *, key: keys.append(key), parameters)
    intake = intake_class(dispatch)(2**20)
    intake.is_open = intake.takes_fragments = True
    dispatch.Dispatcher([route]).receive(intake, codec.encode_notify(1, 1, messages))
    return keys


VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=9),
    st.binary(max_size=9), st.builds(IPv4Address, st.integers(0, 2**32 - 1)),
    st.builds(IPv6Address, st.integers(0, 2**128 - 1)), st.binary(min_size=500, max_size=520),
)  # fmt: skip
NAME = st.sampled_from(["a", "b", "other", ""])


@given(st.lists(st.lists(st.tuples(NAME, VALUE), max_size=4), max_size=20))
def test_twins_have_the_same_keys(asked: list[list[tuple[str, Any]]]) -> None:
    compiled = pytest.importorskip("spop._dispatch")
    messages = [Message("m", each) for each in asked]
    assert keys_of(_dispatch_py, messages) == keys_of(compiled, messages)


ALIKE = (
    None, True, 1, "\1", b"\1", IPv4Address(1), IPv6Address(1), False, 0, "", b"", -(2**63), 2**63,
)  # fmt: skip
"""Values whose bytes are the same but for their type, or that are equal in Python."""


@given(st.lists(st.tuples(VALUE, VALUE), min_size=2, max_size=20))
def test_keys_are_equal_only_if_the_arguments_are(asked: list[tuple[Any, Any]]) -> None:
    end = b"\x09" + (1).to_bytes(8, "little")
    asked += [(b"", end + b"1"), (end, b"1"), (end + b"1", b""), (b"1" + end, b"")]
    asked += [(value, None) for value in ALIKE] + [(None, value) for value in ALIKE]
    known: dict[bytes | None, Any] = {None: None}
    keys = keys_of(spop.dispatch, [Message("m", a=a, b=b) for a, b in asked])
    for key, pair in zip(keys, asked, strict=True):
        typed = [(type(value), value) for value in pair]
        assert key is None or known.setdefault(key, typed) == typed


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_whose_key_is_over_1_kib_is_not_kept(kind: str) -> None:
    service = Service(kind)
    with client_of(service.agent) as client:
        for n in (bytes(1014), bytes(1015), bytes(1014), bytes(1015)):
            ask(client, n=n)
    assert [len(n) for n in service.calls] == [1014, 1015, 1015]


# --- the same question while it is answered ---


@pytest.mark.parametrize("kind", LATER)
def test_the_same_question_waits_for_the_answer(kind: str, serve: Serve) -> None:
    gate = Gate()
    service = Service(kind, gate=gate)

    async def main(address: str) -> list[dict[str, Any]]:
        async with AsyncClient(address) as client:
            asked = [asyncio.create_task(client.notify("m", n=n)) for n in (1, 1, 2, 1)]
            while service.cache.misses < 4:
                await asyncio.sleep(0.005)
            gate.opened.set()
            return [(await each).variables for each in asked]

    with serve(service.agent) as server:
        first, second, other, third = asyncio.run(main(str(server.address)))
    assert first == second == third != other
    assert sorted(service.calls) == [1, 2]


@pytest.mark.parametrize("kind", LATER)
def test_a_failure_is_that_of_all_who_ask(kind: str) -> None:
    gate = Gate()
    service = Service(kind, raises, gate=gate)

    async def main(address: str) -> list[dict[str, Any]]:
        async with AsyncClient(address) as client:
            asked = [asyncio.create_task(client.notify("m", n=1)) for _ in range(3)]
            while service.cache.misses < 3:
                await asyncio.sleep(0.005)
            gate.opened.set()
            return [(await each).variables for each in asked]

    with service.agent.serve_in_background() as server:
        assert asyncio.run(main(str(server.address))) == [{"txn.error": True}] * 3
    assert service.calls == [1]
    assert service.agent.errors == {"m": 3}


@pytest.mark.parametrize("kind", LATER)
def test_a_caller_that_times_out_leaves_the_call_running(kind: str, serve: Serve) -> None:
    gate = Gate()
    service = Service(kind, gate=gate, timeout=0.02)
    with client_of(service.agent, serve) as client:
        assert ask(client, n=1) == {"txn.late": True}
        assert ask(client, n=1) == {"txn.late": True}
        gate.opened.set()
        wait_until(lambda: len(service.cache) == 1, "the answer")
        assert ask(client, n=1) == {"txn.calls": 1}
    assert service.calls == [1]


@pytest.mark.parametrize("kind", LATER)
def test_a_caller_that_is_lost_leaves_the_call_running(kind: str) -> None:
    gate = Gate()
    service = Service(kind, gate=gate)

    async def lose(address: str) -> None:
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.notify("m", n=1))
            while not service.cache.misses:
                await asyncio.sleep(0.005)
            task.cancel()

    with service.agent.serve_in_background() as server:
        asyncio.run(lose(str(server.address)))
        gate.opened.set()
        wait_until(lambda: len(service.cache) == 1, "the answer")
        with Client(str(server.address)) as client:
            assert ask(client, n=1) == {"txn.calls": 1}


@pytest.mark.parametrize("kind", LATER)
def test_calls_whose_callers_are_gone_are_bounded(kind: str) -> None:
    gate = Gate()
    service = Service(kind, gate=gate, timeout=0.02)
    with client_of(service.agent, max_queue=2) as client:
        assert [ask(client, n=n) for n in (1, 2)] == [{"txn.late": True}] * 2
        assert ask(client, n=3) == {"txn.error": True}
        gate.opened.set()
        wait_until(lambda: len(service.cache) == 2, "the answers")
    assert sorted(service.calls) == [1, 2]


def test_the_server_ends_though_a_call_without_callers_runs(serve: Serve) -> None:
    service = Service("async", gate=Gate(), timeout=0.02)
    with client_of(service.agent, serve) as client:
        assert ask(client, n=1) == {"txn.late": True}


@pytest.mark.parametrize("kind", LATER)
def test_concurrency_limits_calls(kind: str) -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def count(change: int) -> None:
        with lock:
            running[0] += change
            most[0] = max(most[0], running[0])

    agent, started = Agent(), threading.Barrier(2)

    def plain(n: int) -> dict[str, Any]:
        count(1)
        started.wait(WAIT)
        count(-1)
        return {"txn.n": n}

    async def asynchronous(n: int) -> dict[str, Any]:
        count(1)
        await asyncio.sleep(0.01)
        count(-1)
        return {"txn.n": n}

    agent.message("m", cache=LONG, concurrency=2, blocking=kind == "blocking")(
        asynchronous if kind == "async" else plain
    )

    async def main(address: str) -> list[Any]:
        async with AsyncClient(address) as client:
            asked = [client.notify("m", n=n) for n in range(6)]
            return [ack.variables["txn.n"] for ack in await asyncio.gather(*asked)]

    with agent.serve_in_background() as server:
        assert asyncio.run(main(str(server.address))) == list(range(6))
    assert most == [2]


@pytest.mark.parametrize("kind", LATER)
def test_calls_that_wait_for_a_task_keep_their_own_answers(kind: str) -> None:
    # With `max_queue` tasks the dispatcher leaves further calls, which begin later.
    service = Service(kind, lambda n: {"txn.n": n})

    async def main(address: str) -> None:
        async with AsyncClient(address) as client:
            for _ in range(3):
                asked = [client.notify([Message("m", n=n), Message("m", n=n + 100)])
                         for n in range(20)]  # fmt: skip
                await asyncio.gather(*asked)
            for n in [*range(20), *range(100, 120)]:
                assert (await client.notify("m", n=n)).variables in ({"txn.n": n}, ERROR)

    with service.agent.serve_in_background(max_queue=3) as server:
        asyncio.run(main(str(server.address)))


ERROR = {"txn.error": True}


# --- clear ---


@pytest.mark.parametrize("kind", KINDS)
def test_clear_forgets_the_answers_of_all_loops(kind: str) -> None:
    service = Service(kind, lambda n: {"txn.n": n})
    with service.agent.serve_in_background(threads=2) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(str(server.address))) for _ in range(8)]
        for client in clients:
            ask(client, n=1)
        before, kept = len(service.calls), len(service.cache)
        assert kept == before
        service.cache.clear()
        assert len(service.cache) == 0
        for client in clients:
            ask(client, n=1)
        assert len(service.calls) == 2 * before


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_runs_during_clear_is_not_kept(kind: str) -> None:
    gate = Gate()
    began = threading.Event()
    agent, calls = Agent(), list[int]()

    def plain() -> dict[str, Any]:
        began.set()
        gate.pass_()
        calls.append(1)
        return {"txn.n": len(calls)}

    async def asynchronous() -> dict[str, Any]:
        began.set()
        await gate.pass_async()
        calls.append(1)
        return {"txn.n": len(calls)}

    agent.message("m", cache=LONG, blocking=kind == "blocking")(
        asynchronous if kind == "async" else plain
    )
    with agent.serve_in_background() as server:
        address, answers = str(server.address), list[Any]()

        def first() -> None:
            with Client(address) as client:
                answers.append(ask(client))

        thread = threading.Thread(target=first)
        thread.start()
        assert began.wait(WAIT)
        cache: Any = agent.handlers["m"].cache
        cache.clear()
        gate.opened.set()
        thread.join(WAIT)
        with Client(address) as client:
            answers += [ask(client), ask(client)]
    assert answers == [{"txn.n": 1}, {"txn.n": 2}, {"txn.n": 2}]


@pytest.mark.parametrize("kind", LATER)
def test_a_question_behind_clear_does_not_join_the_call_before_it(kind: str) -> None:
    gate = Gate()
    service = Service(kind, gate=gate)

    async def main(address: str) -> list[Any]:
        async with AsyncClient(address) as client:
            asked = []
            for number in (1, 2):
                asked.append(asyncio.create_task(client.notify("m", n=1)))
                while service.cache.misses < number:
                    await asyncio.sleep(0.005)
                service.cache.clear()
            gate.opened.set()
            return [(await each).variables["txn.calls"] for each in asked]

    with service.agent.serve_in_background() as server:
        assert sorted(asyncio.run(main(str(server.address)))) == [1, 2]


# --- several messages ---


@pytest.mark.parametrize("kind", KINDS)
def test_hits_and_misses_of_one_notify(kind: str) -> None:
    service = Service(kind, lambda n: {f"txn.v{n}": n})
    with client_of(service.agent) as client:
        for numbers in ([1], [2, 1, 3], [1, 1], [3, 2, 1], [4, 1, 5]):
            ack = client.notify([Message("m", n=n) for n in numbers])
            assert ack.variables == {f"txn.v{n}": n for n in numbers}
            assert [action.value for action in ack.actions] == numbers
    assert set(service.calls) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_does_not_fit_beside_others_is_on_error_and_no_call(kind: str) -> None:
    service = Service(kind, lambda n: {"txn.big": bytes(9000)})
    with client_of(service.agent) as client:
        ask(client, n=1)
        ack = client.notify([Message("m", n=1), Message("m", n=1)])
        assert ack.variables == {"txn.big": bytes(9000), "txn.error": True}
    assert service.calls == [1]
    assert service.agent.errors == {"m": 1}


@pytest.mark.parametrize("waits", LATER)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hit_behind_a_message_that_waits_runs_no_handler(
    kind: str, waits: str, serve: Serve
) -> None:
    service = Service(kind)
    slow = Service(waits, lambda n: {"txn.slow": n})
    service.agent.message("slow", blocking=waits == "blocking")(slow.agent.handlers["m"].function)
    with client_of(service.agent, serve) as client:
        assert ask(client, n=1) == {"txn.calls": 1}
        for _ in range(2):
            ack = client.notify([Message("slow", n=7), Message("m", n=1), Message("m", n=1)])
            assert ack.variables == {"txn.slow": 7, "txn.calls": 1}
    assert service.calls == [1]
    assert (service.cache.hits, service.cache.misses) == (4, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hit_behind_a_message_that_waits_is_on_error_if_it_does_not_fit(kind: str) -> None:
    service = Service(kind, lambda n: {"txn.big": bytes(9000)})

    @service.agent.message("slow", blocking=True)
    def slow() -> dict[str, Any]:
        return {"txn.slow": bytes(9000)}

    with client_of(service.agent) as client:
        ask(client, n=1)
        ack = client.notify([Message("slow"), Message("m", n=1)])
        assert ack.variables == {"txn.slow": bytes(9000), "txn.error": True}
    assert service.calls == [1]
    assert service.agent.errors == {"m": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_wraps_are_around_calls_and_not_around_hits(kind: str) -> None:
    service, seen = Service(kind), list[Any]()

    @service.agent.wrap
    def plain(call: Callable[[], Any], message: Message) -> Any:
        seen.append(message["n"])
        return {**call(), "txn.wrapped": True}

    @service.agent.wrap
    async def asynchronous(call: Callable[[], Any], message: Message) -> Any:
        seen.append(message["n"])
        return {**await call(), "txn.wrapped": True}

    with client_of(service.agent) as client:
        answers = [ask(client, n=1) for _ in range(3)]
    assert answers == [{"txn.calls": 1, "txn.wrapped": True}] * 3
    assert seen == [1]


# --- memory and figures ---


@pytest.mark.parametrize("kind", KINDS)
def test_caches_are_forgotten_before_connections_end(kind: str) -> None:
    service = Service(kind, lambda n: {"txn.n": bytes(10_000)}, Cache(ttl=600.0, size=100_000))
    with service.agent.serve_in_background(max_memory=2**22) as server:
        with Client(str(server.address)) as client:
            for n in range(1000):
                assert ask(client, n=n) == {"txn.n": bytes(10_000)}
        assert server.totals().cells[Cell.OUT_OF_MEMORY] == 0
    assert len(service.cache) < 500


@pytest.mark.parametrize("kind", KINDS)
def test_hits_misses_and_answers_are_counted(kind: str) -> None:
    service = Service(kind)
    with service.agent.serve_in_background() as server:
        with Client(str(server.address)) as client:
            for n in (1, 2, 1, 1):
                ask(client, n=n)
        (counts,) = server.totals().handlers()
        assert (counts.hits, counts.misses, counts.kept) == (2, 2, 2)
        ended = server.totals()
        ended.end()
        assert ended.handlers()[0].kept == 0


# --- what does not fit ---


def with_message(message: Message) -> None: ...


def with_ack(ack: Ack) -> None: ...


def with_state(state: StreamState) -> None: ...


@pytest.mark.parametrize("function", [with_message, with_ack, with_state])
def test_parameters_that_are_no_arguments(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=f"handler {function.__name__} .*cache can't be combined"):
        Agent().message("m", cache=LONG)(function)


def test_ack_first_and_batch() -> None:
    async def one(n: int) -> None: ...

    def many(messages: list[Message]) -> list[None]:
        return [None]

    with pytest.raises(TypeError, match="cache can't be combined"):
        Agent().message("m", cache=LONG, ack_first=True)(one)
    with pytest.raises(TypeError, match="cache can't be combined"):
        Agent().message("m", cache=LONG, batch=Batch(size=1))(many)


def test_what_is_no_cache() -> None:
    with pytest.raises(TypeError, match="a Cache is needed"):
        Agent().message("m", cache=30)(lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"ttl": 0.0, "size": 1}, {"ttl": 1.0, "size": 0},
                                     {"ttl": 1.0, "size": 1, "error_ttl": -1.0},
                                     {"ttl": math.nan, "size": 1},
                                     {"ttl": 1.0, "size": 1, "error_ttl": math.nan}])  # fmt: skip
def test_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ttl is more than 0"):
        Cache(**options)


def test_an_answer_is_kept_for_ever() -> None:
    agent, forever = Agent(), Cache(math.inf, 10, error_ttl=math.inf)
    calls: list[int] = []

    @agent.message("m", cache=forever)
    def m(n: int) -> dict[str, int]:
        calls.append(n)
        return {"txn.n": 1 // n}

    with agent.serve_in_background() as server, Client(server.address) as client:
        for n in (1, 1, 0, 0):
            client.notify("m", n=n)
    assert calls == [1, 0]


# --- the twins ---

STEP = st.one_of(
    st.tuples(st.just("find"), st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 9)),
    st.tuples(
        st.just("keep"), st.sampled_from([b"a", b"b", b"c", b"d"]), st.binary(max_size=3),
        st.integers(0, 9), st.integers(0, 1),
    ),
    st.tuples(st.sampled_from(["clear", "forget"])),
)  # fmt: skip


@given(st.integers(1, 4), st.lists(STEP, max_size=60))
def test_twins_keep_the_same_answers(size: int, steps: list[Any]) -> None:
    compiled = pytest.importorskip("spop._cache")
    twins = [_cache_py.Answers(size), compiled.Answers(size)]
    for name, *given_ in steps:
        results = []
        for answers in twins:
            if name == "keep":
                key, value, expires, behind = given_
                result = answers.keep(key, value, expires, answers.generation - behind)
            else:
                result = getattr(answers, name)(*given_)
            results.append((result, answers.hits, answers.misses, answers.memory, len(answers)))
        assert results[0] == results[1]
        assert len(twins[0]) <= size
