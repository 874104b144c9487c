"""One rule for what goes wrong: answered, counted once, logged once, and all goes on.

What can fail (`FAILURES`) is tried in every kind of handler (`KINDS`) and hook. What ends a
server is at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from event_loops import EVENT_LOOPS, Serve, serve_on
from haproxy import wait_until
from implementations import intake_class, route_class
from serving import served, wait_until_serving

from spop import Agent, Client, Message, codec
from spop.connection import Disconnect, EngineConnection, Peer
from spop.counters import RouteCell
from spop.errors import DisconnectedError
from spop.logs import FORMATTERS, class_name
from spop.poller import READ
from spop.server import Server
from spop.server.health import Health
from spop.server.loop import Loop

PEER = Peer("peer:1", "2.0", 16380, frozenset())
FAILED = {"sess.failed": True}


# --- what can fail ---


class BareError(BaseException):
    """Not an `Exception`."""


def refuse(*_: object) -> Any:
    raise BareError("no text")


class NoTextError(Exception):
    __str__ = __repr__ = refuse


class NoNotesError(ValueError):
    """Python's own formatting of its traceback raises."""

    __notes__ = property(refuse)


class NoTraceError(Exception):
    """Nothing can be asked of it, not even by a debugger."""

    __getattribute__ = with_traceback = add_note = refuse


class NoNameMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        return refuse() if name == "__name__" else super().__getattribute__(name)


class NoClassError(Exception, metaclass=NoNameMeta):
    __class__ = property(refuse)  # type: ignore[assignment]


class UnusableText(str):
    __slots__ = ()
    __format__ = __contains__ = __len__ = __str__ = refuse  # type: ignore[assignment]


class UnusableTextError(Exception):
    def __str__(self) -> str:
        return UnusableText("x")


class Unusable:
    """A result that raises when it is encoded."""

    __iter__ = refuse


def raising(kind: type[BaseException], *args: Any) -> Callable[..., Any]:
    """A function that raises an error of its own each time."""

    def function(first: Any = None, second: Any = None) -> None:
        raise kind(*args)

    return function


def recurse(first: Any = None, second: Any = None) -> Any:
    return recurse(first, second)  # With `*args` Python 3.13.0 has no limit.


ERRORS: dict[str, Callable[..., Any]] = {
    "ValueError": raising(ValueError, "x"),
    "SystemExit": raising(SystemExit, 1),
    "KeyboardInterrupt": raising(KeyboardInterrupt),
    "CancelledError": raising(asyncio.CancelledError),
    "GeneratorExit": raising(GeneratorExit),
    "StopIteration": raising(StopIteration),
    "StopAsyncIteration": raising(StopAsyncIteration),
    "MemoryError": raising(MemoryError),
    "RecursionError": recurse,
    "BaseExceptionGroup": raising(BaseExceptionGroup, "x", [BareError(), ValueError()]),
    "BareError": raising(BareError, "x"),
    "NoTextError": raising(NoTextError),
    "NoNotesError": raising(NoNotesError, "x"),
    "NoTraceError": raising(NoTraceError),
    "NoClassError": raising(NoClassError),
    "UnusableTextError": raising(UnusableTextError),
    "UnicodeEncodeError": raising(UnicodeEncodeError, "utf-8", "\udcff", 0, 1, "x"),
}
FAILURES: dict[str, Callable[..., Any]] = ERRORS | {
    "an answer that raises": Unusable,
    "an answer of no type": lambda: {"sess.x": 1.5},
    "an answer that fits no frame": lambda: {"sess.x": bytes(20_000)},
}

every_error = pytest.mark.parametrize("fail", ERRORS.values(), ids=ERRORS)
every_failure = pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)


# --- where it can ---


def add_inline(agent: Agent, act: Callable[[], Any], **options: Any) -> None:
    agent.message("m", **options)(lambda: act())


def add_blocking(agent: Agent, act: Callable[[], Any], **options: Any) -> None:
    agent.message("m", blocking=True, **options)(lambda: act())


def add_in_line(agent: Agent, act: Callable[[], Any], **options: Any) -> None:
    add_blocking(agent, act, concurrency=1, **options)


def add_async_at_once(agent: Agent, act: Callable[[], Any], **options: Any) -> None:
    @agent.message("m", **options)
    async def handler() -> Any:
        return act()


def add_async(agent: Agent, act: Callable[[], Any], **options: Any) -> None:
    @agent.message("m", **options)
    async def handler() -> Any:
        await asyncio.sleep(0)
        return act()


def add_async_in_line(agent: Agent, act: Callable[[], Any], **options: Any) -> None:
    add_async(agent, act, concurrency=1, **options)


KINDS: dict[str, Callable[..., None]] = {
    "inline": add_inline,
    "blocking": add_blocking,
    "blocking in line": add_in_line,
    "async that does not suspend": add_async_at_once,
    "async": add_async,
    "async in line": add_async_in_line,
}
MAY_WAIT = {name: add for name, add in KINDS.items() if add is not add_inline}

every_kind = pytest.mark.parametrize("add", KINDS.values(), ids=KINDS)
every_kind_on_every_event_loop = pytest.mark.parametrize(
    ("add", "event_loop"),
    [
        pytest.param(add, event_loop, id=f"{kind} on {event_loop}")
        for kind, add in KINDS.items()
        for event_loop in EVENT_LOOPS
        if kind.startswith("async") or event_loop in ("asyncio", "serve_async")
    ],
)
every_kind_that_may_wait = pytest.mark.parametrize("add", MAY_WAIT.values(), ids=MAY_WAIT)


@pytest.fixture
def agent() -> Agent:
    return with_neighbours(Agent())


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What handlers wait for that never return by themselves."""
    event = threading.Event()
    yield event
    event.set()


def with_neighbours(agent: Agent) -> Agent:
    agent.message("inline")(lambda: {"txn.inline": 1})
    agent.message("blocking", blocking=True)(lambda: {"txn.blocking": 1})

    @agent.message("async")
    async def asynchronous() -> dict[str, Any]:
        return {"txn.async": 1}

    return agent


NEIGHBOURS = [Message("inline"), Message("blocking"), Message("async")]
ANSWERS = {"txn.inline": 1, "txn.blocking": 1, "txn.async": 1}


@contextlib.contextmanager
def serving(
    agent: Agent, serve: Serve = Agent.serve_in_background, **options: Any
) -> Iterator[tuple[Server, Client]]:
    """A server and a client. In the end all frames were answered, and it is healthy."""
    with (
        serve(agent, pool_size=2, **options) as server,
        Client(str(server.address), timeout=10) as client,
    ):
        yield server, client
        assert client.notify(NEIGHBOURS).variables == ANSWERS
        assert_all_is_well(server)


def assert_all_is_well(server: Server) -> None:
    counts = server.totals().counts()
    assert counts.frames_received == counts.frames_sent + counts.acks_dropped
    assert counts.frames_in_hand == counts.queued == 0
    assert server.health() == Health(alive=True, ready=True)


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What we logged as errors, up to the first colon."""
    records = [r for r in caplog.records if r.levelno >= logging.ERROR and r.name[:4] == "spop"]
    return [record.getMessage().partition(": ")[0] for record in records]


# --- handlers ---


@every_failure
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
@every_kind_on_every_event_loop
def test_whatever_a_handler_does_is_answered_counted_and_logged_once(
    agent: Agent,
    add: Any,
    event_loop: str,
    beside: bool,
    fail: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    agent.on_error(lambda name, error: told.append(name))
    add(agent, fail, on_error=FAILED)
    sent = [*NEIGHBOURS, Message("m"), *NEIGHBOURS] if beside else [Message("m")]
    with serving(agent, serve_on(event_loop, monkeypatch)) as (server, client):
        assert client.notify(sent).variables == FAILED | (ANSWERS if beside else {})
        assert agent.errors == {"m": 1}
        assert told == ["m"]
        assert server.totals().routes["m"][RouteCell.ERRORS] == 1
        assert failures(caplog) == ["message 'm' failed"]
        with Client(str(server.address), timeout=10) as neighbour:
            assert neighbour.notify(NEIGHBOURS).variables == ANSWERS
        assert client.notify("m").variables == FAILED


@pytest.mark.parametrize("add", [add_async_at_once, add_async])
def test_a_handler_that_cancels_itself_is_answered_for(agent: Agent, add: Any) -> None:
    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    @agent.message("later", on_error=FAILED)
    async def later() -> None:
        cancel()
        await asyncio.sleep(0)

    add(agent, cancel, on_error=FAILED)
    with serving(agent) as (_, client):
        assert client.notify("later").variables == FAILED
        assert client.notify([Message("m"), Message("inline")]).variables == {"txn.inline": 1}


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_task_that_a_handler_started_ends_nothing_but_itself(
    agent: Agent, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[Any] = []

    @agent.message("m")
    async def handler() -> None:
        async def later() -> None:
            raise error

        tasks.append(asyncio.create_task(later()))

    with serving(agent) as (_, client):
        client.notify("m")
        for _ in range(2):
            assert client.notify("async").variables == {"txn.async": 1}
    assert failures(caplog) == ["a task of a handler failed"]
    assert isinstance(tasks[0].exception(), error)  # Else asyncio logs it as well, at any time.


@every_kind_that_may_wait
def test_a_handler_that_never_returns_is_answered_when_its_time_is_over(
    agent: Agent, add: Any, released: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Even one that does not let itself be cancelled; its neighbours do not wait for it."""
    started = threading.Event()

    def block() -> None:
        started.set()
        released.wait(10)

    async def go_on() -> None:
        started.set()
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    options = {"timeout": 0.2, "on_timeout": {"txn.late": True}, "on_error": FAILED}
    if add in (add_blocking, add_in_line):
        add(agent, block, **options)
    else:
        options |= {"concurrency": 1} if add is add_async_in_line else {}
        agent.message("m", **options)(go_on)
    with serving(agent) as (server, client):
        waiting = client.send([Message("inline"), Message("m"), Message("async")])
        assert started.wait(10)
        with Client(str(server.address), timeout=10) as neighbour:
            assert neighbour.notify(NEIGHBOURS).variables == ANSWERS
        late = client.wait(waiting).variables
        assert late == {"txn.late": True, "txn.inline": 1, "txn.async": 1}
        assert agent.errors == {"m": 1}
        assert server.totals().routes["m"][RouteCell.TIMEOUTS] == 1
        assert failures(caplog) == ["message 'm' failed"]
        assert client.notify(NEIGHBOURS).variables == ANSWERS
        assert_all_is_well(server)
        released.set()


@pytest.mark.parametrize("where", ["handler", "on_connect", "on_error"])
def test_what_holds_a_loop_ends_its_health_until_it_returns(
    agent: Agent, where: str, released: threading.Event
) -> None:
    def hold(*_: object) -> None:
        released.wait(20)

    if where == "handler":
        agent.message("m")(lambda: hold())
    else:
        agent.message("m")(raising(ValueError))
        getattr(agent, where)(hold)
    with agent.serve_in_background(stuck_timeout=1.0) as server:
        with EngineOnASocket(server) as engine:
            if where != "on_connect":
                engine.receive()
                engine.notify("m")
            wait_until(lambda: server.health() == Health(False, False), "the end of health")
            released.set()
            wait_until(lambda: server.health() == Health(True, True), "its return")
            engine.receive()
        assert server.totals().in_hand == 0


class EngineOnASocket:
    """An engine that has said HELLO, and waits for nothing until it is told to."""

    def __init__(self, server: Server) -> None:
        self._protocol = EngineConnection()
        self._sock = socket.create_connection((server.address.host, server.address.port), 15)
        self._send()

    def _send(self) -> None:
        self._sock.sendall(self._protocol.data_to_send())

    def notify(self, name: str) -> None:
        self._protocol.notify(1, 1, [Message(name)])
        self._send()

    def receive(self) -> list[Any]:
        events: list[Any] = []
        while not events:
            events += self._protocol.receive_data(self._sock.recv(4096))
        return events

    def __enter__(self) -> EngineOnASocket:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sock.close()


@every_kind
@pytest.mark.parametrize("what", ["close", "stop"])
def test_a_handler_that_ends_the_event_loop_does_not_end_the_server(
    agent: Agent, add: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio does not close a loop that runs; one that was stopped goes on."""
    loops: list[asyncio.AbstractEventLoop] = []

    @agent.message("loop")
    async def loop() -> None:
        loops.append(asyncio.get_running_loop())

    add(agent, lambda: getattr(loops[0], what)(), on_error=FAILED)
    with serving(agent) as (_, client):
        client.notify("loop")
        for number in (1, 2):
            assert client.notify([Message("m"), *NEIGHBOURS]).variables == (
                ANSWERS | FAILED if what == "close" else ANSWERS
            )
            assert agent.errors["m"] == (number if what == "close" else 0)
    assert set(failures(caplog)) <= {"message 'm' failed"}
    assert all(loop.is_closed() for loop in loops)


# --- children ---


class Forks:
    """Forks when it is called, and goes on in both processes."""

    def __init__(self) -> None:
        self.children: list[int] = []

    def __call__(self, *_: object) -> dict[str, Any]:
        child = os.fork()
        if child:
            self.children.append(child)
        return {"txn.pid": os.getpid()}

    def status(self) -> int:
        """With what the child has ended."""
        (child,) = self.children
        ended: list[int] = []

        def has_ended() -> bool:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                ended.append(os.waitstatus_to_exitcode(status))
            return bool(pid)

        try:
            wait_until(has_ended, "the child's end")
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        return ended[0]


forking = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@forking
@every_kind_on_every_event_loop
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
def test_the_parent_alone_answers_for_a_handler_that_forks(
    agent: Agent, add: Any, event_loop: str, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks = Forks()
    add(agent, forks)
    sent = [*NEIGHBOURS, Message("m"), *NEIGHBOURS] if beside else [Message("m")]
    expected = {"txn.pid": os.getpid()} | (ANSWERS if beside else {})
    with serving(agent, serve_on(event_loop, monkeypatch)) as (_, client):
        assert client.notify(sent).variables == expected
        assert forks.status() == 1
        assert client.notify(NEIGHBOURS).variables == ANSWERS


@forking
@pytest.mark.parametrize("hook", ["on_connect", "on_disconnect", "on_error"])
def test_the_child_of_a_hook_that_forks_ends(agent: Agent, hook: str) -> None:
    forks = Forks()
    agent.message("m", on_error=FAILED)(raising(ValueError))
    getattr(agent, hook)(forks)
    with agent.serve_in_background() as server:
        with Client(str(server.address), timeout=10) as client:
            assert client.notify("m").variables == FAILED
        wait_until(lambda: bool(forks.children), "the hook")
        assert forks.status() == 1
        assert server.health() == Health(alive=True, ready=True)


@forking
def test_the_child_of_a_task_that_forks_ends(agent: Agent) -> None:
    forks, tasks = Forks(), []

    @agent.message("m")
    async def handler() -> None:
        async def fork() -> None:
            forks()

        tasks.append(asyncio.create_task(fork()))

    with serving(agent) as (_, client):
        client.notify("m")
        wait_until(lambda: bool(forks.children), "the task")
        assert forks.status() == 1


@forking
def test_a_child_that_does_not_come_back_has_its_own_end(agent: Agent) -> None:
    children: list[int] = []

    @agent.message("m", blocking=True)
    def handler() -> dict[str, Any]:
        child = os.fork()
        if child == 0:
            os._exit(7)
        children.append(child)
        return {"txn.status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}

    with serving(agent) as (_, client):
        assert client.notify("m").variables == {"txn.status": 7}


# --- memory ---


def test_a_fast_path_tells_of_memory_that_it_cannot_have(
    dispatch: ModuleType, port: ModuleType
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    told: list[Any] = []
    route = route_class(dispatch)("m", raising(ValueError))
    dispatcher = dispatch.Dispatcher([route], no_memory)
    shared = port.FastPaths(
        dispatcher, bytearray(4096), None, lambda *what: told.append(what), None
    )
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
    agent: Agent, fail: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[Peer] = []
    agent.on_connect(fail)
    agent.on_disconnect(fail)
    agent.on_error(fail)
    agent.on_disconnect(lambda peer, reason: ended.append(peer))
    agent.message("m", on_error=FAILED)(raising(ValueError))
    with agent.serve_in_background() as server:
        with Client(str(server.address), timeout=10) as client:
            assert client.notify("m").variables == FAILED
            assert agent.errors == {"m": 1}
        wait_until(lambda: bool(ended), "the hook")
        name = f"hook {fail.__name__} failed"
        assert failures(caplog) == [name, "message 'm' failed", name, name]
        with Client(str(server.address), timeout=10) as client:
            assert client.notify(NEIGHBOURS).variables == ANSWERS
            assert_all_is_well(server)


@every_kind
@every_error
def test_whatever_an_on_error_hook_raises_the_message_is_answered_and_counted_once(
    agent: Agent, add: Any, fail: Any, caplog: pytest.LogCaptureFixture
) -> None:
    agent.on_error(fail)
    add(agent, fail, on_error=FAILED)
    with serving(agent) as (server, client):
        assert client.notify([Message("m"), Message("inline")]).variables == {
            **FAILED,
            "txn.inline": 1,
        }
        assert agent.errors == {"m": 1}
        assert server.totals().routes["m"][RouteCell.ERRORS] == 1
        assert failures(caplog) == ["message 'm' failed", f"hook {fail.__name__} failed"]


def test_a_hook_without_a_name_is_told_of_by_what_it_is(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    class Hook:
        __call__ = raising(ValueError)
        __repr__ = refuse

    agent.on_connect(functools.partial(raising(ValueError), 1))
    agent.on_connect(Hook())
    agent.connected(PEER)
    partial, shown = failures(caplog)
    assert "functools.partial" in partial
    assert shown == "hook <Hook that raises BareError when it is shown> failed"


# --- logging ---


@pytest.mark.parametrize("style", FORMATTERS)
@every_error
def test_any_error_can_be_logged(
    agent: Agent, style: str, fail: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[style]())
    logging.getLogger("spop").addHandler(handler)
    try:
        agent.message("m")(lambda: fail())
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            agent.test("m")
        agent.failed("m", caught.value)
        agent.on_disconnect(fail)
        agent.disconnected(PEER, Disconnect(0, "", True))
    finally:
        logging.getLogger("spop").removeHandler(handler)
    logged = capsys.readouterr().err
    assert "Logging error" not in logged
    assert logged.count("test_failures.py") >= 2
    assert logged.count(class_name(caught.value)) >= 2


@contextlib.contextmanager
def logging_with(emit: Callable[..., Any]) -> Iterator[None]:
    broken = type("Broken", (logging.Handler,), {"emit": emit})()
    logger = logging.getLogger("spop")
    level = logger.level
    logger.addHandler(broken)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(broken)
        logger.setLevel(level)


@every_kind
@every_error
def test_whatever_a_log_handler_raises_harms_nobody(agent: Agent, add: Any, fail: Any) -> None:
    told: list[str] = []
    agent.on_error(lambda name, error: told.append(name))
    add(agent, raising(ValueError), on_error=FAILED)
    with logging_with(lambda self, record: fail()), serving(agent) as (server, client):
        assert client.notify([*NEIGHBOURS, Message("m")]).variables == ANSWERS | FAILED
        assert agent.errors == {"m": 1}
        assert told == ["m"]
        assert server.totals().routes["m"][RouteCell.ERRORS] == 1


@every_error
@pytest.mark.usefixtures("context_filter")
def test_a_context_filter_loses_no_failure(
    agent: Agent, fail: Any, caplog: pytest.LogCaptureFixture
) -> None:
    add_inline(agent, fail, on_error=FAILED)
    with serving(agent) as (_, client):
        assert client.notify(Message("m", {"unique-id": "u1"})).variables == FAILED
    assert failures(caplog) == ["message 'm' failed"]


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
        agent.message("m", blocking=blocking, timeout=1, **{option: actions})(function)
    assert f"{__file__}:" in str(e.value)
    assert "m" not in agent.handlers


def test_answers_are_encoded_once() -> None:
    changed, default = {"sess.failed": 1}, {"sess.default": 1}
    agent = Agent(on_error=default)
    agent.message("m", on_error=changed)(raising(ValueError))
    agent.message("n")(raising(ValueError))
    changed["sess.failed"] = default["sess.default"] = 2
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        answer = client.notify([Message("m"), Message("n")])
        assert answer.variables == {"sess.failed": 1, "sess.default": 1}
    assert agent.default_on_error == {"sess.default": 1}


@pytest.mark.parametrize("option", ["on_error", "on_timeout"])
@pytest.mark.parametrize(
    ("actions", "kind", "complaint"),
    [
        ({"score": 3}, ValueError, "'score' names no variable"),
        ({"sess.score": 1.5}, TypeError, "sess.score: float has no SPOP type"),
        (5, TypeError, "not iterable"),
    ],
    ids=str,
)
def test_defaults_that_cannot_be_encoded_are_an_error_where_the_agent_is_made(
    option: str, actions: Any, kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=rf"agent 'a': {option} in .*:[0-9]+: .*{complaint}") as caught:
        Agent("a", **{option: actions})
    assert f"{__file__}:" in str(caught.value)


def test_an_agent_without_defaults_has_empty_ones() -> None:
    agent = Agent()
    assert agent.default_on_error == agent.default_on_timeout == {}


OWN = {
    "the agent's": (None, {"txn.default": True}),
    "its own": ({"txn.own": True}, {"txn.own": True}),
    "nothing": ({}, {}),
}
every_answer = pytest.mark.parametrize(("own", "expected"), OWN.values(), ids=OWN)


@pytest.fixture
def with_defaults() -> Agent:
    """An agent with defaults, and a handler that may be asked to take its time."""
    return with_neighbours(Agent(on_error={"txn.default": True}, on_timeout={"txn.default": True}))


@every_answer
@every_kind
@pytest.mark.parametrize(
    "fail", ["raises", "an answer that fits no frame", "no argument", "another type"]
)
def test_a_failure_is_answered_with_the_agents_default_if_the_handler_has_none(
    with_defaults: Agent, add: Any, fail: str, own: Any, expected: dict[str, Any]
) -> None:
    agent = with_defaults
    add(agent, FAILURES.get(fail, raising(ValueError)), on_error=own)
    if fail in ("no argument", "another type"):
        info = agent.handlers["m"]
        del agent.handlers["m"]
        agent.message("m", blocking=info.blocking, concurrency=info.concurrency, on_error=own)(
            needs_async if info.asynchronous else needs
        )
    arguments = {"needed": "text"} if fail == "another type" else {}
    with serving(agent) as (_, client):
        for others, answers in (([], {}), (NEIGHBOURS, ANSWERS)):
            sent = [*others, Message("m", arguments), *others]
            assert client.notify(sent).variables == answers | expected
        assert agent.errors == {"m": 2}


def needs(needed: int) -> None: ...


async def needs_async(needed: int) -> None: ...


@every_answer
@every_kind_that_may_wait
def test_a_full_queue_is_answered_with_on_error(
    with_defaults: Agent, add: Any, own: Any, expected: dict[str, Any], released: threading.Event
) -> None:
    """Calls that wait for a thread or in line, and tasks that wait for whatever they like."""
    agent = with_defaults

    async def wait() -> None:
        while not released.is_set():
            await asyncio.sleep(0.01)

    if add in (add_blocking, add_in_line):
        add(agent, lambda: {"txn.open": released.wait(10)}, on_error=own)
    else:
        limits = {"concurrency": 1} if add is add_async_in_line else {}
        agent.message("m", on_error=own, **limits)(wait)
    with serving(agent, max_queue=1) as (server, client):
        waiting: list[int] = []

        def is_settled() -> bool:
            counts = server.totals().counts()
            return counts.running + counts.queued + agent.errors["m"] == len(waiting)

        while not agent.errors:
            waiting.append(client.send([Message("m")]))
            wait_until(is_settled, "the message")
        refused = waiting.pop()
        assert client.wait(refused).variables == expected
        assert agent.errors == {"m": 1}
        assert server.totals().limits()["max_queue"] == 1
        released.set()
        for stream_id in waiting:
            client.wait(stream_id)
        assert agent.errors == {"m": 1}


@every_answer
@every_kind_that_may_wait
def test_a_timeout_is_answered_with_the_agents_default_if_the_handler_has_none(
    with_defaults: Agent, add: Any, own: Any, expected: dict[str, Any], released: threading.Event
) -> None:
    agent = with_defaults
    if add in (add_blocking, add_in_line):
        add(agent, lambda: {"txn.open": released.wait(10)}, timeout=0.05, on_timeout=own)
    else:

        async def wait() -> None:
            await asyncio.sleep(10)

        limits = {"concurrency": 1} if add is add_async_in_line else {}
        agent.message("m", timeout=0.05, on_timeout=own, **limits)(wait)
    with serving(agent) as (_, client):
        answer = client.notify([*NEIGHBOURS, Message("m"), *NEIGHBOURS])
        assert answer.variables == ANSWERS | expected
        released.set()


@pytest.mark.parametrize(
    "before", [[], ["inline"], ["blocking"], ["async"], ["inline", "blocking", "async"]], ids=str
)
def test_a_message_that_no_handler_is_for_is_answered_with_the_agents_default(
    with_defaults: Agent, before: list[str]
) -> None:
    agent = with_defaults
    names = [*before, "nobody", "inline"]
    with serving(agent) as (server, client):
        expected = {"txn.default": True, "txn.inline": 1} | {f"txn.{n}": 1 for n in before}
        assert client.notify([Message(name) for name in names]).variables == expected
        assert server.totals().counts().unknown_messages == 1
        assert agent.errors == {}


@every_kind
def test_of_a_notify_whose_answers_fit_no_frame_only_what_is_too_much_fails(
    with_defaults: Agent, add: Any
) -> None:
    agent = with_defaults
    add(agent, lambda: {"sess.m": bytes(9_000)})
    agent.message("before")(lambda: {"sess.before": bytes(9_000)})
    agent.message("no-room", on_error={"sess.large": bytes(16_000)})(raising(ValueError))
    with serving(agent) as (_, client):
        sent = [Message("before"), Message("m"), Message("no-room"), *NEIGHBOURS]
        answer = client.notify(sent).variables
        assert answer == {"sess.before": bytes(9_000), "txn.default": True} | ANSWERS
        assert agent.errors == {"m": 1, "no-room": 1}


# --- what ends ---


@pytest.mark.parametrize("add", [add_in_line, add_async_in_line])
def test_what_the_server_does_not_expect_ends_that_connection_alone(
    agent: Agent, add: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add(agent, dict)
    with agent.serve_in_background() as server:
        address = str(server.address)
        with Client(address, timeout=10) as neighbour, Client(address, timeout=10) as client:
            assert neighbour.notify(NEIGHBOURS).variables == ANSWERS
            assert client.notify("m").variables == {}
            with monkeypatch.context() as patched:
                patched.setattr(Loop, "_acknowledge", raising(ValueError, "unexpected"))
                with pytest.raises(DisconnectedError):
                    client.notify("m")
            (failure,) = failures(caplog)
            assert re.fullmatch(r"connection from .* failed", failure)
            assert neighbour.notify(NEIGHBOURS).variables == ANSWERS
            assert client.notify("m").variables == {}
            assert_all_is_well(server)


@pytest.mark.parametrize("add", [add_blocking, add_async])
def test_an_answer_that_the_dispatcher_cannot_write_ends_that_connection_alone(
    agent: Agent, add: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add(agent, raising(LookupError))
    monkeypatch.setattr(Agent, "failed", raising(ValueError, "unexpected"))
    with agent.serve_in_background() as server:
        address = str(server.address)
        with Client(address, timeout=10) as neighbour, Client(address, timeout=10) as client:
            assert neighbour.notify(NEIGHBOURS).variables == ANSWERS
            with pytest.raises(DisconnectedError):
                client.notify("m")
            (told,) = failures(caplog)
            assert told.startswith("connection ")
            assert told.endswith(" failed")
            assert neighbour.notify(NEIGHBOURS).variables == ANSWERS
            assert_all_is_well(server)
