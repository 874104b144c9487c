"""What is wrong with a handler is found early, and said with the handler's file and line."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import re
import types
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from ipaddress import IPv4Address
from typing import Any

import pytest

from spop import UNSET, Action, Agent, AsyncClient, Batch, Client, HandlerError, Headers
from spop.address import Address
from spop.load.generator import Plan

KINDS = ["inline", "blocking", "async"]


@pytest.fixture
def agent() -> Agent:
    return Agent()


def handle(agent: Agent, kind: str, function: Callable[[], Any]) -> None:
    """Register a handler of a kind, for message "m"."""

    async def asynchronous() -> Any:
        return function()

    def plain() -> Any:
        return function()

    agent.message("m", blocking=kind == "blocking")(asynchronous if kind == "async" else plain)


# --- registration ---


def test_message_without_parentheses(agent: Agent) -> None:
    with pytest.raises(TypeError, match=r'handler check \(.*test_mistakes.py:\d+\).*"NAME"'):

        @agent.message  # type: ignore[arg-type]
        def check() -> None: ...


@pytest.mark.parametrize("name", [None, 1, b"check"])
def test_a_name_that_is_no_text(agent: Agent, name: Any) -> None:
    with pytest.raises(TypeError, match=r"name is a str, not .* \(.*test_mistakes.py:\d+\)"):
        agent.message(name)


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan, math.inf, 1e10])
def test_a_timeout_is_a_time_with_an_end(agent: Agent, timeout: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"message 'm': timeout is {timeout:g}, ")):
        agent.message("m", blocking=True, timeout=timeout)(lambda: None)


@pytest.mark.parametrize("timeout", [True, "1"])
def test_a_timeout_is_a_number(agent: Agent, timeout: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"message 'm': timeout is {timeout!r}, ")):
        agent.message("m", blocking=True, timeout=timeout)


@pytest.mark.parametrize(
    "options", [{"blocking": True}, {"batch": Batch(size=2)}, {}], ids=["blocking", "batch", "none"]
)
def test_an_answer_to_a_timeout_needs_a_timeout(agent: Agent, options: dict[str, Any]) -> None:
    function: Any = (lambda messages: []) if "batch" in options else lambda: None
    with pytest.raises(TypeError, match=r"test_mistakes.py:\d+\) has on_timeout, but no timeout"):
        agent.message("m", on_timeout={}, **options)(function)
    agent.message("m", **options)(function)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1, 0, 1e10])
def test_a_periodic_call_is_made_after_a_time_with_an_end(agent: Agent, seconds: float) -> None:
    with pytest.raises(ValueError, match="every: "):
        agent.every(seconds)


TIMES = ["timeout", "hello_timeout", "connect_timeout", "idle_timeout"]


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1, 1e10, True, "1"])
def test_a_time_of_a_client_is_a_number_with_an_end(client: Any, name: str, seconds: Any) -> None:
    kind = ValueError if type(seconds) in (int, float) else TypeError
    with pytest.raises(kind, match=re.escape(f"{name} is {seconds!r}, ")):
        client("127.0.0.1:9000", **{name: seconds})


@pytest.mark.parametrize("seconds", [1e9, None, 5])
def test_a_client_waits_for_any_time_that_it_takes(agent: Agent, seconds: float | None) -> None:
    agent.message("m")(lambda: {"txn.m": 1})
    times: Any = dict.fromkeys(TIMES, seconds)
    with agent.serve_in_background() as server, Client(server.address, **times) as client:
        assert client.notify("m").variables == {"txn.m": 1}


@pytest.mark.parametrize("name", ["warm_up", "duration", "timeout"])
@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1, True, "1"])
def test_a_time_of_the_load_generator_is_a_number_with_an_end(name: str, seconds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name} is "):
        Plan(address=Address.parse("127.0.0.1:9000"), **{name: seconds})


def yields() -> Iterator[dict[str, int]]:
    yield {"txn.n": 1}


async def yields_async() -> AsyncIterator[dict[str, int]]:
    yield {"txn.n": 1}


async def waits(*_: object) -> None: ...


class Waits:
    async def __call__(self, *_: object) -> None: ...


@pytest.mark.parametrize("function", [yields, yields_async])
def test_what_yields_is_no_handler(agent: Agent, function: Any) -> None:
    function = types.FunctionType(function.__code__, {})  # Without its annotations.
    with pytest.raises(TypeError, match=r"\(.*test_mistakes.py:\d+\) is a generator"):
        agent.message("m")(function)
    with pytest.raises(TypeError, match=r"\(.*test_mistakes.py:\d+\) is a generator"):
        agent.every(1.0)(function)


@pytest.mark.parametrize("option", ["idle_timeout", "drain_timeout", "stuck_timeout", "lame_duck"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_option_that_is_no_finite_number(agent: Agent, option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} is (nan|inf), not in "):
        agent.serve_in_background(**{option: value})  # type: ignore[misc]


@pytest.mark.parametrize("function", [waits, Waits(), functools.partial(waits)])
def test_an_object_whose_call_is_async_is_an_async_handler(agent: Agent, function: Any) -> None:
    class Answers:
        async def __call__(self, n: int) -> dict[str, int]:
            await function()
            return {"txn.n": n}

    agent.message("m")(Answers())
    with agent.serve_in_background() as server, Client(server.address) as client:
        assert client.notify("m", n=3).variables == {"txn.n": 3}


@pytest.mark.parametrize(
    "function", [yields, yields_async, waits, Waits(), functools.partial(waits), 5]
)
@pytest.mark.parametrize("hook", ["on_connect", "on_disconnect", "on_error"])
def test_a_hook_that_would_run_nothing(agent: Agent, hook: str, function: Any) -> None:
    with pytest.raises(TypeError, match="hook: "):
        getattr(agent, hook)(function)


class Typed(typing.TypedDict):
    score: int


@pytest.mark.parametrize(
    "returned",
    [
        str, int, bool, bytes, list[str], tuple[str, int], set[str], str | int, Headers,
        IPv4Address, Iterator[dict[str, int]], Awaitable[None], Coroutine[Any, Any, None],
        dict[int, str], dict[str, float], dict[str, list[int]], Mapping[str, dict[str, int]],
        str | dict[str, float], Action,
    ],
)  # fmt: skip
def test_a_return_annotation_that_no_answer_can_have(agent: Agent, returned: Any) -> None:
    def check():  # type: ignore[no-untyped-def]
        return None

    check.__annotations__["return"] = returned
    with pytest.raises(
        TypeError,
        match=r"handler check \(.*test_mistakes.py:\d+\) is annotated to return .*; "
        "a dict of variables or None is needed",
    ):
        agent.message("m")(check)


@pytest.mark.parametrize(
    "returned",
    [
        None, dict, Mapping, dict[str, int], dict[str, Any], Mapping[str, int | str], Any, object,
        dict[str, int] | None, typing.Optional[Mapping[str, object]], Typed, typing.NoReturn,
        dict[str, Headers | bytes | None], dict[str, float | int], typing.TypeVar("T"),
        typing.Annotated[dict[str, int], "note"],
    ],
)  # fmt: skip
def test_a_return_annotation_that_an_answer_may_have(agent: Agent, returned: Any) -> None:
    def check():  # type: ignore[no-untyped-def]
        return None

    check.__annotations__["return"] = returned
    agent.message("m")(check)


def test_a_signature_that_can_t_be_served_is_named_with_its_place(agent: Agent) -> None:
    def check(*args: Any) -> None: ...

    with pytest.raises(TypeError, match=r"handler check \(.*test_mistakes.py:\d+\) takes \*args"):
        agent.message("m")(check)


def test_an_annotation_of_no_spop_type_is_named_with_its_place(agent: Agent) -> None:
    def check(ratio: float) -> None: ...

    with pytest.raises(TypeError, match=r"handler check \(.*test_mistakes.py:\d+\).*ratio"):
        agent.message("m")(check)


# --- answers ---


@pytest.mark.parametrize(
    "returned", ["text", 5, b"raw", 1.5, True, object(), {"txn.a"}, ["txn.a"], (1, 2)], ids=repr
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_returns_no_answer(agent: Agent, kind: str, returned: Any) -> None:
    errors: list[BaseException] = []
    agent.on_error(lambda _, error: errors.append(error))
    handle(agent, kind, lambda: returned)
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("m").variables == {}
    (error,) = errors
    assert isinstance(error, HandlerError)
    name = "asynchronous" if kind == "async" else "plain"
    assert str(error).startswith(f"handler {name} ({__file__}:")
    kind_of = type(returned).__name__
    assert str(error).endswith(f" returned {kind_of}; a dict of variables or None is needed")


@pytest.mark.parametrize("kind", KINDS)
def test_actions_and_any_mapping_are_answers(agent: Agent, kind: str) -> None:
    handle(agent, kind, lambda: [Action("txn", "a", 1), Action("txn", "b", UNSET)])
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("m").variables == {"txn.a": 1, "txn.b": UNSET}


# --- arguments ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_argument_is_named_with_those_there_are(agent: Agent, kind: str) -> None:
    async def asynchronous(ip: IPv4Address) -> None: ...

    def plain(ip: IPv4Address) -> None: ...

    agent.message("m", blocking=kind == "blocking")(asynchronous if kind == "async" else plain)
    with pytest.raises(HandlerError, match="message m: no argument ip; the message has ua, path"):
        agent.test("m", ua="x", path="/")
    with pytest.raises(HandlerError, match="message m: no argument ip; the message has none"):
        agent.test("m")


@pytest.mark.parametrize(
    "annotation, value, text",
    [
        (IPv4Address, "x", "is STRING; IPV4 is needed"),
        (str | bytes, 1, "is an integer; STRING or BINARY is needed"),
        (bool, "x", "is STRING; BOOL is needed"),
        (Headers, 1, "is an integer; STRING or BINARY with header fields is needed"),
        (int | None, b"x", "is BINARY; NULL or BOOL or INT32 or UINT32 or INT64 or UINT64"),
    ],
)
def test_a_mistyped_argument_says_what_came_and_what_is_taken(
    agent: Agent, annotation: Any, value: Any, text: str
) -> None:
    def m(x):  # type: ignore[no-untyped-def]
        return None

    m.__annotations__["x"] = annotation
    agent.message("m")(m)
    with pytest.raises(HandlerError, match=f"message m: argument x {text}"):
        agent.test("m", x=value)


@pytest.mark.parametrize("answer", [{"score": 1}, {"txn.ratio": 1.5}, {}], ids=repr)
def test_an_error_that_no_frame_of_the_handler_shows_is_logged_with_its_place(
    agent: Agent, caplog: pytest.LogCaptureFixture, answer: dict[str, Any]
) -> None:
    def check(ip: IPv4Address | None = None) -> Any:
        return answer

    agent.message("m")(check)
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        client.notify("m", **({} if answer else {"ip": "no address"}))
    (line,) = [line for line in caplog.messages if "message 'm' failed" in line]
    assert line.endswith(f", handler check ({__file__}:{check.__code__.co_firstlineno})")


def test_the_traceback_of_a_lifespan_begins_with_the_users_code(agent: Agent) -> None:
    @agent.lifespan
    async def resources() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    with pytest.raises(OSError, match="no database") as raised:
        agent.serve_in_background().start()
    assert [entry.name for entry in raised.traceback[1:]] == ["resources"]


# --- messages ---


def test_a_message_without_a_handler_is_logged_once(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.message("known")(lambda: None)
    with agent.serve_in_background(threads=2) as server:
        for _ in range(4):
            with Client(str(server.address)) as client:
                client.notify("unknown")
    lines = [line for line in caplog.messages if "no handler is for" in line]
    assert lines == ["no handler is for message 'unknown'; there are: known"]


def test_an_agent_without_handlers_is_warned_of(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    with agent.serve_in_background():
        pass
    assert ("spop.server", logging.WARNING, "agent 'spop' has no handlers") in caplog.record_tuples


# --- what a server in a program can't do ---


def serve_here(agent: Agent, **options: Any) -> None:
    agent.serve("127.0.0.1:0", **options)


def serve_in_threads(agent: Agent, **options: Any) -> None:
    with agent.serve_in_background(**options):
        pass


def serve_on_event_loop(agent: Agent, **options: Any) -> None:
    asyncio.run(agent.serve_async("127.0.0.1:0", **options))


@pytest.mark.parametrize("serve", [serve_here, serve_in_threads, serve_on_event_loop])
@pytest.mark.parametrize("option", [{"processes": 2}, {"user": "nobody"}, {"group": "nogroup"},
                                    {"max_requests": 1}, {"max_worker_memory": 1}])  # fmt: skip
def test_an_option_that_needs_worker_processes_is_refused(
    agent: Agent, serve: Callable[..., None], option: dict[str, Any]
) -> None:
    with pytest.raises(
        ValueError, match=f"{next(iter(option))} is .*`spop serve` has worker processes"
    ):
        serve(agent, **option)


@pytest.mark.parametrize("name, value", [
    ("threads", "2"), ("threads", 1.5), ("idle_timeout", "1"), ("max_frame_size", "1K"),
    ("allow", "10.0.0.0/8"), ("admin_host", "status.example"), ("admin", 9001), ("tls_cert", 1),
])  # fmt: skip
def test_an_option_of_another_type_is_named(agent: Agent, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name} is {value!r}, .* is needed"):
        agent.serve_in_background(**{name: value})


def test_ready_that_is_async_would_not_run(agent: Agent) -> None:
    with pytest.raises(TypeError, match=r"ready: handler waits .* is async def"):
        asyncio.run(agent.serve_async("127.0.0.1:0", waits))
