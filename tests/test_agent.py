"""Handlers: signatures at import, arguments at call time, failures. No sockets."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import weakref
from ipaddress import IPv4Address, IPv6Address, ip_network
from types import ModuleType
from typing import Annotated, Any, Optional

import pytest
from implementations import intake_class, route_class

import spop.logs
from spop import (
    UNSET,
    Ack,
    Action,
    Agent,
    HandlerError,
    Headers,
    Message,
    Peer,
    ProtocolError,
    codec,
)
from spop.connection import Disconnect
from spop.counters import Cell, RouteCell, row_size
from spop.errors import FrameTooBigError

PEER = Peer("peer:1", "2.0", 16380, frozenset(), "engine")


class Exchange:
    """Gives messages to an agent's dispatcher and reads its ACK."""

    def __init__(self, agent: Agent, module: ModuleType) -> None:
        routes = [
            route_class(module)(h.name, h.function, h.parameters, h.kind, h.on_error)
            for h in agent.handlers.values()
        ]
        default = bytes(codec.encode_answer(agent.default_on_error))
        self.dispatcher = module.Dispatcher(routes, agent.failed, on_unknown=default)
        self.intake = intake_class(module)(16380)
        self.intake.peer = PEER
        self.intake.max_in_flight = 10
        self.intake.is_open = True

    def __call__(self, *messages: Message, max_frame_size: int = 16380) -> Any:
        self.intake.max_frame_size = max_frame_size
        frames, acks = self.dispatcher.receive(self.intake, codec.encode_notify(7, 3, messages))
        assert self.intake.unread == 0
        if frames:
            return frames[0]
        ((ack,), _) = codec.decode_frames(acks)
        assert (ack.stream_id, ack.frame_id) == (7, 3)
        return ack.variables


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def ask(agent: Agent, dispatch: ModuleType) -> Any:
    return lambda *messages, **options: Exchange(agent, dispatch)(*messages, **options)


# --- what a handler is given ---


def test_arguments_come_by_name(agent: Agent, ask: Any) -> None:
    @agent.message("m")
    def handler(b: int, a: str) -> dict[str, Any]:
        return {"sess.a": a, "sess.b": b}

    assert ask(Message("m", a="x", c=None, b=5)) == {"sess.a": "x", "sess.b": 5}


def test_dashes_and_dots_in_names_are_underscores(agent: Agent, ask: Any) -> None:
    @agent.message("m")
    def handler(src_ip: IPv4Address, a_b: int) -> dict[str, Any]:
        return {"sess.ip": src_ip, "sess.ab": a_b}

    ip = IPv4Address("192.0.2.1")
    assert ask(Message("m", {"src-ip": ip, "a.b": 1})) == {"sess.ip": ip, "sess.ab": 1}


ADDRESSES = [(IPv4Address("192.0.2.1"), IPv4Address("255.0.0.9")),
             (IPv6Address("2001:db8::1"), IPv6Address("::ffff:1.2.3.4"))]  # fmt: skip


@pytest.mark.parametrize("sent", ADDRESSES)
def test_an_address_that_is_kept_stays_what_it_is(
    agent: Agent, ask: Any, sent: tuple[Any, Any]
) -> None:
    kept: list[Any] = []
    agent.message("m")(lambda ip: kept.append(ip))
    for ip in sent * 2:
        ask(Message("m", ip=ip))
    assert kept == [*sent, *sent]


@pytest.mark.parametrize("sent", ADDRESSES)
def test_an_address_that_is_weakly_kept_is_never_another(
    agent: Agent, ask: Any, sent: tuple[Any, Any]
) -> None:
    kept: list[Any] = []
    agent.message("m")(lambda ip: kept.append(weakref.ref(ip)))
    for ip in sent * 2:
        ask(Message("m", ip=ip))
    assert all(seen() in (None, ip) for seen, ip in zip(kept, sent * 2, strict=True))


@pytest.mark.parametrize("sent", [sent for pair in ADDRESSES for sent in pair])
def test_an_address_is_as_any_other(agent: Agent, ask: Any, sent: Any) -> None:
    given: list[Any] = []
    agent.message("m")(lambda ip: given.append(ip))
    ask(Message("m", ip=sent))
    (ip,) = given
    assert isinstance(ip, type(sent))
    assert (ip, hash(ip), repr(ip), str(ip)) == (sent, hash(sent), repr(sent), str(sent))
    assert (ip.packed, int(ip), ip.is_private) == (sent.packed, int(sent), sent.is_private)
    assert ip in ip_network(sent)
    assert (ip <= sent, ip < sent) == (True, False)
    for made in (ip + 1, ip - 1, copy.copy(ip), pickle.loads(pickle.dumps(ip))):
        assert type(made) is type(sent)
    assert (ip + 1 - 1, pickle.loads(pickle.dumps(ip))) == (sent, sent)
    assert codec.encode_value(ip) == codec.encode_value(sent)


def test_the_first_of_two_arguments_of_a_name_counts(agent: Agent, ask: Any) -> None:
    @agent.message("m")
    def handler(a: int) -> dict[str, Any]:
        return {"sess.a": a}

    assert ask(Message("m", [("a", 1), ("a", 2)])) == {"sess.a": 1}


def test_defaults_stand_in_for_what_is_missing_or_null(agent: Agent, ask: Any) -> None:
    @agent.message("m")
    def handler(a: str = "-", b: str | None = "-", *, c: Any = "-") -> dict[str, Any]:
        return {"sess.a": a, "sess.b": b, "sess.c": c}

    assert ask(Message("m")) == {"sess.a": "-", "sess.b": "-", "sess.c": "-"}
    assert ask(Message("m", a=None, b=None, c=None)) == {
        "sess.a": "-",
        "sess.b": UNSET,
        "sess.c": UNSET,
    }


def test_message_and_ack_are_given_by_annotation(agent: Agent, ask: Any) -> None:
    @agent.message("m")
    def handler(message: Message, answer: Ack, a: int) -> dict[str, Any]:
        assert message.connection is PEER
        assert (message.name, message.engine_id) == ("m", "engine")
        assert (
            (message.stream_id, message.frame_id) == (7, 3) == (answer.stream_id, answer.frame_id)
        )
        answer.set("txn", "args", len(message)).unset("req", "gone")
        return {"sess.a": a}

    assert ask(Message("m", a=1, b=2)) == {"txn.args": 2, "req.gone": UNSET, "sess.a": 1}


def test_none_removes_a_variable(agent: Agent, ask: Any) -> None:
    answers: list[Ack] = []

    @agent.message("m", on_error={"txn.c": None})
    def handler(answer: Ack, fails: bool = False) -> dict[str, Any]:
        answers.append(answer.set("txn", "a", None))
        answer.actions.append(Action("txn", "d", None))
        return {"txn.b": object() if fails else None}

    assert ask(Message("m")) == agent.test("m") == dict.fromkeys(["txn.a", "txn.b", "txn.d"], UNSET)
    assert ask(Message("m", fails=True)) == {"txn.c": UNSET}
    assert answers[0].variables["txn.a"] is UNSET


def test_text_is_given_as_bytes_to_who_wants_bytes(agent: Agent, ask: Any) -> None:
    @agent.message("m")
    def handler(a: bytes, b: str | bytes) -> dict[str, Any]:
        return {"sess.a": a, "sess.b": b}

    assert ask(Message("m", a="\udcff", b="x")) == {"sess.a": b"\xff", "sess.b": "x"}


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, [1, -1, 2**63, True], ["1", None, b""]),
        (bool, [True, False], [1, None]),
        (str, ["x"], [b"x", 1, None]),
        (bytes, [b"x", "x"], [1, None]),
        (IPv4Address, [IPv4Address(1)], [IPv6Address(1), "127.0.0.1"]),
        (IPv4Address | IPv6Address, [IPv4Address(1), IPv6Address(1)], [None]),
        (Optional[int], [None, 1], ["x"]),
        (None, [None], [1]),
        (Annotated[int, "port"], [1], ["x"]),
        (Any, [None, 1, "x", b"x", True, IPv4Address(1)], []),
        (object, [None, 1, "x", b"x", True, IPv6Address(1)], []),
        (Headers, ["a: b\r\n\r\n", "", b"\1a\1b\0\0"], [1, True, None, IPv4Address(1), b"\5a", b""]),
        (Headers | int | None, [None, "a: b\r\n", b"\0\0", 1], [b"\1a", IPv4Address(1)]),
        (Annotated[Headers, "req.hdrs"], ["a: b"], [1]),
    ],
    ids=str,
)  # fmt: skip
def test_annotations_are_checked_at_call_time(
    agent: Agent, ask: Any, annotation: Any, good: list[Any], bad: list[Any]
) -> None:
    def handler(a: Any) -> dict[str, Any]:
        return {"sess.ok": True}

    handler.__annotations__["a"] = annotation
    agent.message("m")(handler)
    for value in good:
        assert ask(Message("m", a=value)) == {"sess.ok": True}
    assert not agent.errors
    for value in bad:
        assert ask(Message("m", a=value)) == {}
    assert agent.errors["m"] == len(bad)


HDRS = ["a: 1\r\nA: 2\r\n\r\n", b"\1a\0011\1A\0012\0\0"]


@pytest.mark.parametrize("sent", HDRS, ids=["req.hdrs", "req.hdrs_bin"])
def test_both_forms_of_headers_are_given_as_headers(agent: Agent, ask: Any, sent: Any) -> None:
    @agent.message("m")
    def handler(hdrs: Headers, *, more: Headers | None) -> dict[str, Any]:
        assert type(hdrs).__name__ == "Headers"
        assert more is None
        hdrs.add("b", hdrs["A"])
        return {"txn.all": ",".join(hdrs.getlist("a")), "txn.add": hdrs, "txn.del": hdrs.names()}

    assert ask(Message("m", hdrs=sent, more=None)) == {
        "txn.all": "1,2",
        "txn.add": b"\1a\0011\1A\0012\1b\0011\0\0",
        "txn.del": b"\1a\1A\1b\0",
    }


@pytest.mark.parametrize("sent", HDRS, ids=["req.hdrs", "req.hdrs_bin"])
def test_handlers_that_wait_are_given_headers_as_well(agent: Agent, ask: Any, sent: Any) -> None:
    agent.message("m", blocking=True)(headers_and_text)
    (call,) = ask(Message("m", hdrs=sent, text="x")).calls
    assert call.run() == {"txn.all": "1,2,x"}


def headers_and_text(hdrs: Headers, text: str) -> dict[str, str]:
    return {"txn.all": ",".join([*hdrs.getlist("A"), text])}


def test_a_test_gives_headers_to_a_handler(agent: Agent) -> None:
    agent.message("m")(headers_and_text)
    given = Headers([("a", "1"), ("A", "2")])
    assert agent.test("m", hdrs=given, text="x") == {"txn.all": "1,2,x"}


def test_headers_are_missing_as_other_arguments_are(agent: Agent, ask: Any) -> None:
    @agent.message("m")
    def handler(hdrs: Headers | None = None) -> dict[str, Any]:
        return {"txn.missing": hdrs is None}

    agent.message("n")(lambda hdrs: {"txn.text": hdrs})
    assert ask(Message("m")) == {"txn.missing": True}
    assert ask(Message("n", hdrs="a: 1")) == {"txn.text": "a: 1"}


@pytest.mark.parametrize("raw", [b"\5ab", b"\xf0", b"\1a\1b\0", b"\0\1a"])
@pytest.mark.parametrize("blocking", [False, True])
def test_malformed_headers_are_an_error_of_the_message(
    agent: Agent, ask: Any, raw: bytes, blocking: bool
) -> None:
    told: list[BaseException] = []
    agent.on_error(lambda name, error: told.append(error))

    @agent.message("m", blocking=blocking, on_error={"txn.failed": True})
    def handler(hdrs: Headers | None = None) -> None: ...

    assert ask(Message("m", hdrs=raw)) == {"txn.failed": True}
    (error,) = told
    assert isinstance(error, HandlerError)
    assert "message m: argument hdrs is no list of headers: " in str(error)


def test_headers_that_can_not_be_sent_are_an_error_of_the_message(agent: Agent, ask: Any) -> None:
    told: list[BaseException] = []
    agent.on_error(lambda name, error: told.append(error))
    agent.message("m", on_error={"txn.failed": True})(
        lambda: {"txn.good": 1, "txn.add": Headers([("a", "b\r\nc: d")])}
    )
    assert ask(Message("m")) == {"txn.failed": True}
    assert [str(error) for error in told] == ["txn.add: header 'a': CR, LF or NUL in its value"]


# --- which variables it sets ---


def test_the_variables_that_a_handler_may_set_are_kept(agent: Agent) -> None:
    agent.message("m", sets=["txn.add", "sess.a.b"])(lambda: None)
    agent.message("n")(lambda: None)
    assert agent.handlers["m"].sets == ("txn.add", "sess.a.b")
    assert agent.handlers["n"].sets == ()


class CallableObject:
    def __call__(self, a: int) -> None: ...


def takes_one(a: int) -> None: ...


@pytest.mark.parametrize(
    ("handler", "function"),
    [
        (takes_one, takes_one),
        (functools.partial(takes_one), takes_one),
        (CallableObject(), CallableObject.__call__),
        (CallableObject().__call__, CallableObject.__call__),
    ],
    ids=["function", "partial", "object", "method"],
)
@pytest.mark.parametrize(
    ("sets", "error", "complaint"),
    [
        ("txn.a", TypeError, "a sequence of variables"),
        (5, TypeError, "a sequence of variables"),
        (None, TypeError, "a sequence of variables"),
        ({"txn.a": 1}, TypeError, "a sequence of variables"),
        ([5], TypeError, "named by a str, not int"),
        ([["txn.a"]], TypeError, "list"),
        (["txn.a", "a"], ValueError, "'a' names no variable"),
        (["global.a"], ValueError, "'global.a' names no variable"),
        (["txn."], ValueError, "names no variable"),
        (["txn.a-b"], ValueError, "names no variable"),
    ],
    ids=str,
)
def test_what_is_no_list_of_variables_is_refused_with_its_place(
    agent: Agent, handler: Any, function: Any, sets: Any, error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint) as caught:
        agent.message("m", sets=sets)(handler)
    place = f"{__file__}:{function.__code__.co_firstlineno}"
    assert f"message 'm': sets= of the handler in {place}: " in str(caught.value)
    assert not agent.handlers


# --- what a signature may not be ---


def star_args(*args: int) -> None: ...
def star_kwargs(**kwargs: int) -> None: ...
def a_float(a: float) -> None: ...
def a_list(a: list[int]) -> None: ...
def partly(a: int | float) -> None: ...
def headers_or_text(a: Headers | str) -> None: ...
def headers_or_bytes(a: Optional[Headers | bytes]) -> None: ...
def unresolved(a: "Nowhere") -> None: ...  # type: ignore[name-defined] # noqa: F821, UP037


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (star_args, r"takes \*args"),
        (star_kwargs, r"takes \*\*kwargs"),
        (a_float, "float"),
        (a_list, r"list\[int\]"),
        (partly, "float"),
        (headers_or_text, "Headers"),
        (headers_or_bytes, "Headers"),
        (unresolved, "Nowhere"),
    ],
)
def test_signatures_are_checked_when_the_handler_is_registered(
    agent: Agent, function: Any, complaint: str
) -> None:
    with pytest.raises(TypeError, match=rf"message 'm': .*{complaint}"):
        agent.message("m")(function)
    assert not agent.handlers


def test_callables_that_are_no_functions(agent: Agent, ask: Any) -> None:
    def handler(score: int, a: int) -> dict[str, int]:
        return {"sess.score": score + a}

    agent.message("m")(functools.partial(handler, 5))
    assert ask(Message("m", a=1)) == {"sess.score": 6}


@pytest.mark.parametrize(
    "limits", [{"max_frame_size": 255}, {"max_payload_size": 0}, {"max_in_flight": 0}], ids=str
)
def test_limits_are_checked(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Agent(**limits)


def test_a_message_has_one_handler(agent: Agent) -> None:
    agent.message("m")(lambda: None)
    with pytest.raises(ValueError, match="has a handler already"):
        agent.message("m")(lambda: None)


def test_an_async_handler_is_not_blocking(agent: Agent) -> None:
    async def handler() -> None: ...

    with pytest.raises(TypeError, match="blocking"):
        agent.message("m", blocking=True)(handler)


# --- what becomes of failures ---


def failing(error: BaseException) -> Any:
    def handler() -> None:
        raise error

    return handler


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), SystemExit(1), RecursionError(), BaseException(), KeyboardInterrupt(),
        GeneratorExit(), asyncio.CancelledError(), StopIteration(),
    ],
    ids=repr,
)  # fmt: skip
def test_a_handler_that_raises_is_answered_for(agent: Agent, ask: Any, error: Any) -> None:
    told: list[tuple[str, BaseException]] = []
    agent.on_error(lambda name, error: told.append((name, error)))
    agent.message("m", on_error={"sess.failed": True})(failing(error))
    assert ask(Message("m")) == {"sess.failed": True}
    assert agent.errors == {"m": 1}
    assert told == [("m", error)]


@pytest.mark.parametrize(
    "result",
    ["text", 5, {"x": 1}, {"sess.x": 1.5}, {"sess.x": object()}, {5: 5}, {"sess.x": 2**64}, [1]],
    ids=repr,
)
def test_nonsense_is_answered_for(agent: Agent, ask: Any, result: Any) -> None:
    agent.message("m")(lambda: result)
    assert ask(Message("m")) == {}
    assert agent.errors == {"m": 1}


def test_a_missing_argument_is_an_error_of_the_message(agent: Agent, ask: Any) -> None:
    told: list[BaseException] = []
    agent.on_error(lambda name, error: told.append(error))

    @agent.message("m")
    def handler(needed: int) -> None: ...

    assert ask(Message("m", other=1)) == {}
    (error,) = told
    assert isinstance(error, HandlerError)
    assert "no argument needed" in str(error)


def test_messages_of_a_notify_are_handled_in_order_in_one_ack(agent: Agent, ask: Any) -> None:
    order: list[str] = []

    def handler(message: Message) -> dict[str, Any]:
        order.append(message.name)
        if message.name == "b":
            raise ValueError
        return {f"sess.{message.name}": 1}

    for name in "abc":
        agent.message(name)(handler)
    answer = ask(Message("c"), Message("b"), Message("unknown"), Message("a"))
    assert answer == {"sess.c": 1, "sess.a": 1}
    assert order == ["c", "b", "a"]
    assert agent.errors == {"b": 1}


def test_unknown_messages_are_answered_and_counted(agent: Agent, dispatch: ModuleType) -> None:
    exchange = Exchange(agent, dispatch)
    assert exchange(Message("nobody")) == {}
    assert exchange(Message("nobody"), Message("wants")) == {}
    assert exchange.dispatcher.unknown == {"nobody": 2, "wants": 1}
    assert exchange.dispatcher.cells[Cell.NOTIFIES] == 2


def test_an_unknown_message_is_answered_in_its_place(dispatch: ModuleType) -> None:
    agent = Agent(on_error={"txn.x": "default"})
    agent.message("m")(lambda: {"txn.x": "m"})
    agent.message("slow", blocking=True)(lambda: None)
    exchange = Exchange(agent, dispatch)
    assert exchange(Message("m"), Message("nobody")) == {"txn.x": "default"}
    assert exchange(Message("nobody"), Message("m")) == {"txn.x": "m"}
    deferred = exchange(Message("nobody"), Message("slow"), Message("nobody"), Message("m"))
    assert codec.decode_actions(deferred.actions) == [Action("txn", "x", "default")]
    assert [call.values for call in deferred.calls] == [[], None, []]
    assert deferred.calls[1].route.on_error == deferred.actions
    assert agent.errors == {}


@pytest.mark.parametrize(
    ("on_error", "expected"),
    [({}, {}), (None, {"txn.default": True}), ({"sess.x": bytes(300)}, {})],
    ids=["nothing", "the default", "what fits no frame either"],
)
def test_an_answer_that_fits_no_frame_is_an_error_of_its_message(
    dispatch: ModuleType, on_error: Any, expected: dict[str, Any]
) -> None:
    agent, told = Agent(on_error={"txn.default": True}), []
    agent.on_error(lambda name, error: told.append((name, error)))
    agent.message("m", on_error=on_error)(lambda: {"sess.x": bytes(300)})
    agent.message("n")(lambda: {"sess.n": 1})
    ask = Exchange(agent, dispatch)
    assert ask(Message("n"), Message("m"), max_frame_size=256) == {"sess.n": 1} | expected
    ((name, error),) = told
    assert name == "m"
    assert isinstance(error, FrameTooBigError)
    assert str(error) == "answer of 308 bytes where the ACK has room for 242"
    assert ask.dispatcher.cells[row_size(0) + RouteCell.ERRORS] == 1
    assert len(ask(Message("m"), max_frame_size=400)) == 1


def test_an_answer_of_exactly_the_room_there_is_fits(dispatch: ModuleType) -> None:
    agent = Agent()
    agent.message("m")(lambda: {"sess.x": bytes(240)})
    agent.message("n", blocking=True)(lambda: None)
    ask = Exchange(agent, dispatch)
    size = len(codec.encode_ack(7, 3, {"sess.x": bytes(240)})) - 4
    assert ask(Message("m"), max_frame_size=size) == {"sess.x": bytes(240)}
    assert ask(Message("m"), max_frame_size=size - 1) == {}
    deferred = ask(Message("n"), max_frame_size=size)
    actions = codec.encode_actions({"sess.x": bytes(240)})
    assert deferred.room == len(actions)


def test_a_malformed_notify_calls_no_handler(agent: Agent, dispatch: ModuleType) -> None:
    calls: list[int] = []
    agent.message("m")(lambda: calls.append(1))
    good = codec.encode_notify(1, 1, [Message("m")])
    bad = codec.encode_raw_frame(3, 1, 2, 1, codec.encode_messages([Message("m")]) + b"\x01")
    exchange = Exchange(agent, dispatch)
    frames, acks = exchange.dispatcher.receive(exchange.intake, good + bad)
    assert (frames, exchange.intake.unread) == ([], len(bad))
    assert acks == codec.encode_ack(1, 1)
    assert calls == [1]
    with pytest.raises(ProtocolError):
        exchange.dispatcher.receive(exchange.intake, b"")


def test_hooks_that_fail_are_logged_and_no_more(
    agent: Agent, ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    agent.on_error(failing(ValueError("hook")))
    agent.on_connect(lambda peer: 1 / 0)
    agent.message("m")(failing(KeyError("x")))
    assert ask(Message("m")) == {}
    agent.connected(PEER)
    agent.disconnected(PEER, Disconnect(0, "", True))
    assert caplog.text.count("hook") >= 2


def test_errors_are_logged_at_a_limited_rate(
    agent: Agent, ask: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spop.logs.time, "monotonic", lambda: 5.0)
    agent.message("m")(failing(ValueError("x")))
    ask(*[Message("m")] * 50)
    assert agent.errors == {"m": 50}
    assert 1 <= len(caplog.records) <= 10


# --- what is left to the server ---


def test_what_has_to_be_waited_for_is_deferred_with_its_values(
    agent: Agent, ask: Any, dispatch: ModuleType
) -> None:
    @agent.message("slow", blocking=True)
    def slow(a: int, *, b: int = 2) -> dict[str, Any]:
        return {"sess.a": a, "sess.b": b}

    agent.message("quick")(lambda n: {"sess.n": n})
    deferred = ask(
        Message("quick", n=1), Message("slow", a=1), Message("unknown"), Message("quick", n=2)
    )
    assert isinstance(deferred, dispatch.Deferred)
    assert (deferred.stream_id, deferred.frame_id) == (7, 3)
    assert codec.decode_actions(deferred.actions) == [Action("sess", "n", 1)]
    call, quick = deferred.calls
    assert call.run() == {"sess.a": 1, "sess.b": 2}
    assert quick.run() == {"sess.n": 2}


def test_a_deferred_message_that_cannot_be_bound_answers_on_error(agent: Agent, ask: Any) -> None:
    @agent.message("slow", blocking=True, on_error={"sess.failed": True})
    def slow(a: int) -> None: ...

    assert ask(Message("slow")) == {"sess.failed": True}
    assert agent.errors == {"slow": 1}
    waiting, failed = ask(Message("slow", a=1), Message("slow")).calls
    assert waiting.values == [1]
    assert failed.values is None
    assert agent.errors == {"slow": 2}


def test_ack_knows_its_scopes() -> None:
    ack = Ack().set("sess", "a", 1).unset("txn", "b")
    assert ack.actions == [Action("sess", "a", 1), Action("txn", "b", UNSET)]
    with pytest.raises(ValueError, match="no variable scope 'session'"):
        ack.set("session", "a", 1)
