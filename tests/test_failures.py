"""Whatever handlers and hooks raise is answered, counted once and logged once; all goes on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import intake_class
from haproxy import wait_until
from serving import served, wait_until_serving

from spop import Agent, Client, Message, codec
from spop.connection import Disconnect, EngineConnection, Peer
from spop.counters import RouteCell
from spop.logs import FORMATTERS
from spop.poller import READ

PEER = Peer("peer:1", "2.0", 16380, frozenset())


class BareError(BaseException):
    """Not an `Exception`."""


def refuse(*_: object) -> Any:
    raise BareError("no text")


class NoTextError(Exception):
    __str__ = __repr__ = refuse


class NoNotesError(ValueError):
    """Python's own formatting of its traceback raises."""

    __notes__ = property(refuse)


class Unusable:
    """A result that raises when it is encoded."""

    __iter__ = refuse


def errors() -> list[BaseException]:
    return [
        ValueError("x"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(),
        GeneratorExit(), StopIteration(), MemoryError(), BareError("x"), NoTextError(),
        NoNotesError("x"), UnicodeEncodeError("utf-8", "\udcff", 0, 1, "x"),
    ]  # fmt: skip


every_error = pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)


def raising(error: BaseException) -> Any:
    def function(first: Any = None, second: Any = None) -> None:
        raise error

    return function


def add_failing(agent: Agent, kind: str, error: BaseException) -> None:
    """A handler of ``m`` that raises `error` each time."""
    if kind == "async":

        @agent.message("m", on_error={"sess.failed": True})
        async def failing() -> None:
            await asyncio.sleep(0)
            raise error
    else:

        @agent.message("m", blocking=kind == "blocking", on_error={"sess.failed": True})
        def failing_here() -> None:
            raise error


@pytest.fixture
def agent() -> Agent:
    agent = Agent()
    agent.message("inline")(lambda: {"txn.inline": 1})
    agent.message("blocking", blocking=True)(lambda: {"txn.blocking": 1})

    @agent.message("async")
    async def asynchronous() -> dict[str, Any]:
        return {"txn.async": 1}

    return agent


ALL_KINDS = {"txn.inline": 1, "txn.blocking": 1, "txn.async": 1}


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# --- handlers ---


@every_error
@pytest.mark.parametrize("kind", ["inline", "beside a deferred one", "blocking", "async"])
def test_whatever_a_handler_raises_is_answered_counted_and_logged_once(
    agent: Agent, kind: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    add_failing(agent, kind, error)
    others = ["blocking"] if kind == "beside a deferred one" else ["inline"]
    with (
        agent.serve_in_background(pool_size=1) as server,
        Client(str(server.address), timeout=10) as client,
    ):
        answer = client.notify([Message("m"), *map(Message, others)])
        assert answer.variables == {"sess.failed": True, f"txn.{others[0]}": 1}
        assert agent.errors == {"m": 1}
        assert server.totals().routes["m"][RouteCell.ERRORS] == 1
        assert [message.partition(": ")[0] for message in failures(caplog)] == [
            "message 'm' failed"
        ]
        assert client.notify("m").variables == {"sess.failed": True}
        answer = client.notify([Message("inline"), Message("blocking"), Message("async")])
        assert answer.variables == ALL_KINDS


@pytest.mark.parametrize("kind", ["inline", "blocking", "async"])
def test_a_result_that_raises_when_it_is_encoded_is_answered_for(agent: Agent, kind: str) -> None:
    @agent.message("m", blocking=kind == "blocking", on_error={"sess.failed": True})
    def unusable() -> Any:
        return Unusable()

    @agent.message("async-m", on_error={"sess.failed": True})
    async def unusable_async() -> Any:
        return Unusable()

    with (
        agent.serve_in_background(pool_size=1) as server,
        Client(str(server.address), timeout=10) as client,
    ):
        name = "async-m" if kind == "async" else "m"
        for _ in range(2):
            assert client.notify(name).variables == {"sess.failed": True}


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_task_that_a_handler_started_does_not_end_the_asyncio_thread(
    agent: Agent, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[Any] = []

    @agent.message("m")
    async def handler() -> None:
        async def later() -> None:
            raise error

        tasks.append(asyncio.create_task(later()))

    with (
        agent.serve_in_background() as server,
        Client(str(server.address), timeout=10) as client,
    ):
        client.notify("m")
        for _ in range(2):
            assert client.notify("async").variables == {"txn.async": 1}
    assert failures(caplog) == ["a task of a handler failed"]


# --- memory ---


def test_a_fast_path_tells_of_memory_that_it_cannot_have(
    dispatch: ModuleType, port: ModuleType
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    told: list[Any] = []
    route = dispatch.Route("m", raising(ValueError()))
    dispatcher = dispatch.Dispatcher([route], no_memory)
    shared = port.FastPaths(dispatcher, bytearray(4096), None, lambda *what: told.append(what))
    intake = intake_class(dispatch)(16380)
    intake.is_open = True
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fast_path = port.FastPath(shared, intake, ours.fileno(), "it")
        fast_path.enabled = True
        theirs.sendall(codec.encode_notify(1, 1, [Message("m")]))
        fast_path(READ)
    ((connection, *_, error),) = told
    assert connection == "it"
    assert isinstance(error, MemoryError)


GREEDY = """
import os, re, resource
from spop import Agent

agent = Agent("limited", max_payload_size=1 << 30)

@agent.message("limit")
def limit():
    size = 1024 * int(re.search("VmSize:\\s*([0-9]+)", open("/proc/self/status").read())[1])
    size += 200 * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size, size))

@agent.message("check")
def check():
    return {"txn.pid": os.getpid()}
"""


def ends_while_it_sends(sock: socket.socket) -> bool:
    """Send 48 MB in fragments, and not the last one. True: the connection ended before."""
    protocol = EngineConnection()
    sock.sendall(protocol.data_to_send())
    protocol.receive_data(sock.recv(4096))
    protocol.begin_fragments(1, 1, bytes(16_000))
    try:
        for _ in range(3_000):
            sock.sendall(protocol.data_to_send())
            protocol.continue_fragments(1, 1, bytes(16_000), final=False)
    except OSError:
        return True
    return False


def test_a_peer_that_takes_the_last_memory_loses_its_connection_and_no_more(
    tmp_path: Path,
) -> None:
    module, path = tmp_path / "limited.py", f"{tmp_path}/agent.sock"
    module.write_text(GREEDY)
    with served("--bind", f"unix:{path}", target=f"{module}:agent") as process:
        wait_until_serving(process)
        with Client(f"unix:{path}") as client:
            pid = client.notify("check").variables["txn.pid"]
            client.notify("limit")
        with contextlib.ExitStack() as greedy:
            ended = False
            while not ended:
                sock = greedy.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(path)
                ended = ends_while_it_sends(sock)
        with Client(f"unix:{path}") as client:
            assert client.notify("check").variables["txn.pid"] == pid
        assert "MemoryError" in process.log


# --- hooks ---


@every_error
def test_whatever_a_hook_raises_is_logged_once_and_all_goes_on(
    agent: Agent, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[Peer] = []
    agent.on_connect(raising(error))
    agent.on_disconnect(raising(error))
    agent.on_error(raising(error))
    agent.on_disconnect(lambda peer, reason: ended.append(peer))
    add_failing(agent, "inline", ValueError("x"))
    with agent.serve_in_background() as server:
        with Client(str(server.address), timeout=10) as client:
            assert client.notify("m").variables == {"sess.failed": True}
        wait_until(lambda: bool(ended), "the hook")
        assert [message.partition(": ")[0] for message in failures(caplog)] == [
            "hook function failed", "message 'm' failed", *["hook function failed"] * 2,
        ]  # fmt: skip
        with Client(str(server.address), timeout=10) as client:
            assert client.notify("inline").variables == {"txn.inline": 1}


def test_a_hook_without_a_name_is_told_of_by_what_it_is(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    class Hook:
        __call__ = raising(ValueError())
        __repr__ = refuse

    agent.on_connect(functools.partial(raising(ValueError()), 1))
    agent.on_connect(Hook())
    agent.connected(PEER)
    partial, shown = failures(caplog)
    assert "functools.partial" in partial
    assert shown == "hook <Hook that raises BareError when it is shown> failed"


# --- logging ---


@pytest.mark.parametrize("style", FORMATTERS)
@every_error
def test_any_error_can_be_logged(
    agent: Agent, style: str, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[style]())
    logging.getLogger("spop").addHandler(handler)
    try:
        agent.message("m")(raising(error))
        with pytest.raises(type(error)):
            agent.test("m")
        agent.failed("m", error)
        agent.on_disconnect(raising(error))
        agent.disconnected(PEER, Disconnect(0, "", True))
    finally:
        logging.getLogger("spop").removeHandler(handler)
    logged = capsys.readouterr().err
    assert "Logging error" not in logged
    assert logged.count("test_failures.py") >= 2
    assert logged.count(type(error).__name__) >= 2


def test_a_log_handler_that_raises_harms_nobody(agent: Agent) -> None:
    class Broken(logging.Handler):
        emit = refuse

    broken = Broken()
    logger = logging.getLogger("spop")
    level = logger.level
    logger.addHandler(broken)
    logger.setLevel(logging.DEBUG)
    try:
        add_failing(agent, "inline", ValueError("x"))
        with agent.serve_in_background() as server:
            for _ in range(2):
                with Client(str(server.address), timeout=10) as client:
                    assert client.notify("m").variables == {"sess.failed": True}
    finally:
        logger.removeHandler(broken)
        logger.setLevel(level)


# --- what answers for a failure ---


class Handler:
    def __call__(self) -> None: ...


def handler() -> None: ...


async def async_handler() -> None: ...


@pytest.mark.parametrize("option", ["on_error", "on_timeout"])
@pytest.mark.parametrize(
    ("actions", "kind", "complaint"),
    [
        ({"score": 3}, ValueError, "'score' names no variable"),
        ({"sess.score": 1.5}, TypeError, "sess.score: float has no SPOP type"),
        ({"sess.score": 2**70}, ValueError, "is not in"),
        ({"sess.score": "\ud800"}, ValueError, "surrogates not allowed"),
        (5, TypeError, "not iterable"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "function",
    [handler, async_handler, functools.partial(handler), Handler(), Handler().__call__],
    ids=lambda function: type(function).__name__,
)
def test_answers_that_cannot_be_encoded_are_an_error_of_the_handler(
    agent: Agent, option: str, actions: Any, kind: type[Exception], complaint: str, function: Any
) -> None:
    blocking = function is not async_handler
    with pytest.raises(kind, match=rf"message 'm': {option} of the handler in .*{complaint}") as e:
        agent.message("m", blocking=blocking, **{option: actions})(function)
    assert f"{__file__}:" in str(e.value)
    assert "m" not in agent.handlers


def test_answers_are_encoded_once(agent: Agent) -> None:
    changed = {"sess.failed": 1}
    agent.message("m", on_error=changed)(raising(ValueError()))
    changed["sess.failed"] = 2
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("m").variables == {"sess.failed": 1}
