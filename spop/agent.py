"""The agent: handlers by message name, their signatures, and their failures.

It knows no sockets. A server, such as `spop.server`, gets a `Dispatcher` of it for each loop, and
runs the handlers of each `Deferred`.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, Unpack

from spop import codec
from spop.address import Address, Addresses
from spop.batch import Batch
from spop.cache import Cache
from spop.connection import MAX_IN_FLIGHT, Disconnect
from spop.constants import (
    DEFAULT_MAX_FRAME_SIZE,
    DEFAULT_MAX_PAYLOAD_SIZE,
    MAX_SECONDS,
    MIN_FRAME_SIZE,
    MOST_UNKNOWN,
)
from spop.dispatch import Deferred, Dispatcher, Intake, Route
from spop.forks import FORKED, end_child
from spop.frames import Ack, Message, Peer
from spop.handlers import (
    Answer,
    HandlerInfo,
    HandlerOptions,
    Wrap,
    caller,
    check_limits,
    check_name,
    encoded_answer,
)
from spop.lifespan import Lifespan, Periodic, Resources, current_state
from spop.logs import (
    RateLimitedLog,
    SafeLogger,
    class_name,
    fields,
    shortened,
    text_of,
    trace_of,
)
from spop.metrics import Counter as CounterMetric
from spop.metrics import Gauge, Metrics
from spop.options import DEFAULT_BIND, ServeOptions
from spop.parameters import LEFT, described, is_async, is_generator, name_of, place_of
from spop.start_errors import users_part
from spop.values import Value, type_unset

if TYPE_CHECKING:
    from spop.loop_life import LoopThread

logger: SafeLogger = SafeLogger("spop.agent")

Handler = TypeVar("Handler", bound=Callable[..., Any])
LifespanFunction = TypeVar("LifespanFunction", bound=Lifespan)


class ServerHealth(Protocol):
    """Whether a server does its work, and whether it takes more."""

    @property
    def alive(self) -> bool: ...

    @property
    def ready(self) -> bool: ...


class AgentServer(Protocol):
    """What serves an agent; `spop.server.Server` is one."""

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, with the ports that it was given."""

    @property
    def address(self) -> Address:
        """The first of `addresses`."""

    @property
    def admin_address(self) -> Address | None:
        """Where the pages for operators are, if there are any."""

    @property
    def failed(self) -> BaseException | None:
        """The error that a thread of it died of."""

    def start(self) -> None:
        """Listen and serve, in threads."""

    def stop(self) -> None:
        """Stop listening, answer the frames in hand, say DISCONNECT, end the threads."""

    def health(self) -> ServerHealth:
        """Whether it serves, and whether it takes connections."""

    def connections(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The connections, for people; up to `limit` of them."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None: ...


class Agent:
    """A Stream Processing Offload Agent: the handlers of its messages.

    Args:
        name: for logs.
        max_frame_size: the largest frame in bytes that it accepts, 256 or more. HELLO agrees on
            the lower of both sides' limits.
        max_payload_size: the largest payload in bytes that may arrive in fragments.
        max_in_flight: number of NOTIFY frames of a connection that may wait for handlers.
        on_error: the default of its handlers' `on_error`. It also answers a message without a
            handler.
        on_timeout: the default of `on_timeout` for handlers that may have a timeout.
        config: the agent's own settings: a dataclass, or an instance of one. A class is filled
            by ``spop serve`` from the table ``[settings]`` of its file and from
            ``SPOP_SETTINGS__KEY`` of the environment.

    Attributes:
        errors: number of failed messages, by message name.
        metrics: its own metrics, for servers.
        default_on_error: the given `on_error`. Changing it later has no effect.
        default_on_timeout: the given `on_timeout`. Changing it later has no effect.

    Raises:
        TypeError: `on_error` or `on_timeout` has a value of a type that SPOP lacks, or `config`
            is no dataclass.
        ValueError: a limit is too low, or `on_error` or `on_timeout` can't be encoded.
    """

    def __init__(
        self,
        name: str = "spop",
        *,
        max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
        max_payload_size: int = DEFAULT_MAX_PAYLOAD_SIZE,
        max_in_flight: int = MAX_IN_FLIGHT,
        on_error: Answer | None = None,
        on_timeout: Answer | None = None,
        config: Any = None,
    ) -> None:
        if max_frame_size < MIN_FRAME_SIZE:
            raise ValueError(f"max_frame_size is {max_frame_size}, {MIN_FRAME_SIZE} at least")
        if max_payload_size < 1 or max_in_flight < 1:
            raise ValueError("max_payload_size and max_in_flight must be at least 1")
        self.name = name
        self.max_frame_size = max_frame_size
        self.max_payload_size = max_payload_size
        self.max_in_flight = max_in_flight
        self.handlers: dict[str, HandlerInfo] = {}
        self.errors: Counter[str] = Counter()
        self.metrics: Metrics = Metrics()
        self._wraps: tuple[Wrap, ...] = ()
        self._lifespans: list[Lifespan] = []
        self._periodic: list[Periodic] = []
        self._without_handler: set[str] = set()
        self._test_loop: LoopThread | None = None
        self._interrupt: BaseException | None = None
        self._errors_lock = threading.Lock()
        self._connect_hooks: list[Callable[[Peer], object]] = []
        self._disconnect_hooks: list[Callable[[Peer, Disconnect], object]] = []
        self._error_hooks: list[Callable[[str, BaseException], object]] = []
        self._error_log = RateLimitedLog(logger, per_second=10)
        self.failure_level: int = logging.ERROR
        place = caller()
        self._on_error = encoded_answer(f"agent {name!r}: on_error", place, on_error)
        self._on_timeout = encoded_answer(f"agent {name!r}: on_timeout", place, on_timeout)
        self.default_on_error: dict[str, Value | type_unset] = dict(on_error or {})
        self.default_on_timeout: dict[str, Value | type_unset] = dict(on_timeout or {})
        self.config_class: type | None
        self.config_class, self._config = _settings(config)

    def message(
        self,
        name: str,
        *,
        blocking: bool = False,
        on_error: Answer | None = None,
        timeout: float | None = None,
        on_timeout: Answer | None = None,
        concurrency: int | None = None,
        sets: Sequence[str] = (),
        ack_first: bool = False,
        batch: Batch | None = None,
        cache: Cache | None = None,
    ) -> Callable[[Handler], Handler]:
        """Register the handler of a message, as a decorator.

        Its parameters are the message's arguments by name; "-" and "." in a name become "_".
        One annotated `Message`, `Ack` or `StreamState` gets the message, the answer to fill in,
        the state of the stream. Without an argument, or for a NULL that the annotation excludes,
        it gets its default. The handler returns None or ``{"scope.name": value}``. There `UNSET`
        or None removes the variable.

        The other arguments are those of `HandlerOptions`.

        Raises:
            TypeError, ValueError: the signature can't be served, an option can't be used or does
                not fit the handler, or the message has a handler already.
        """
        check_name(name)
        check_limits(name, timeout, concurrency)
        options = HandlerOptions(
            blocking,
            on_error,
            timeout,
            on_timeout,
            concurrency,
            sets,
            ack_first,
            batch,
            cache,
        )

        def register(function: Handler) -> Handler:
            self._add(HandlerInfo.of(name, function, options, self._on_error, self._on_timeout))
            return function

        return register

    def _add(self, info: HandlerInfo) -> None:
        if info.name in self.handlers:
            raise ValueError(f"message {info.name!r} has a handler already")
        self.handlers[info.name] = info

    def wrap(self, function: Wrap) -> Wrap:
        """Call `function(call, message)` around each handler, as a decorator.

        ``call()`` runs the handler and gives its answer, which `function` returns, changed or
        not. An ``async def`` function wraps ``async def`` handlers and awaits ``call()``; a
        plain function wraps the others. The first that is registered is the outermost.
        """
        if not callable(function):
            raise TypeError(f"wrap: a function is needed, not {function!r}")
        self._wraps += (function,)
        return function

    def include(self, other: Agent, prefix: str = "") -> None:
        """Add another agent's handlers, hooks, lifespans, periodic calls, wraps and metrics.

        It takes what `other` has now. Its wraps are for its handlers alone, and its handlers
        keep its defaults.

        Args:
            prefix: what the names of its messages begin with here.

        Raises:
            ValueError: a message has a handler already, or `other` is this agent.
        """
        if other is self:
            raise ValueError("an agent can't include itself")
        for info in other.handlers.values():
            wraps = other._wraps + info.wraps
            self._add(info._replace(name=prefix + info.name, wraps=wraps))
        self._connect_hooks += other._connect_hooks
        self._disconnect_hooks += other._disconnect_hooks
        self._error_hooks += other._error_hooks
        self._lifespans += [each for each in other._lifespans if each not in self._lifespans]
        self._periodic += [each for each in other._periodic if each not in self._periodic]
        self.metrics.include(other.metrics)

    def lifespan(self, function: LifespanFunction) -> LifespanFunction:
        """Set up what handlers need, and tear it down, as a decorator of a generator function.

        What an async generator yields lives as long as a loop, on that loop's event loop. What
        a plain generator yields lives as long as the worker. Each yields a dict, which is merged
        into `state`, or None. They begin in the order of registration, before the first
        connection is accepted, and end in the opposite order, after the last one is gone.

        Raises:
            TypeError: `function` is no generator function.
        """
        if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
            raise TypeError(
                f"lifespan: {described(function)} is no generator: it has to yield a dict or None"
            )
        self._lifespans.append(function)
        return function

    def every(
        self, seconds: float, *, jitter: float = 0.0, once: bool = False
    ) -> Callable[[Handler], Handler]:
        """Call a function again and again, in each loop, as a decorator.

        The first call is `seconds` after the start, each next one `seconds` after the end of the
        last. A plain function runs in a thread. A failure is counted in `errors` and logged.

        Args:
            seconds: more than 0, up to 1e9.
            jitter: the part of `seconds` that is added or taken away at random, 0 to 1.
            once: call it in the first loop of each worker alone.

        Raises:
            ValueError: `seconds` or `jitter` is out of range.
            TypeError: the function takes arguments.
        """
        if callable(seconds) or not 0 < seconds <= MAX_SECONDS or not 0 <= jitter <= 1:
            raise ValueError(f"every: {seconds!r} seconds with jitter {jitter!r}, in {caller()}")

        def register(function: Handler) -> Handler:
            if is_generator(function):
                raise TypeError(f"every: {described(function)} is a generator")
            try:
                inspect.signature(function).bind()
            except TypeError as error:
                raise TypeError(f"every: {described(function)}: {error}") from None
            self._periodic.append(Periodic(function, seconds, jitter, once))
            return function

        return register

    def counter(self, name: str, meaning: str, **labels: str) -> CounterMetric:
        """A counter of the agent's own, which servers show beside theirs.

        The same name and labels give the same counter. Names and labels are fixed once the agent
        serves, so counters are made in the module or in a lifespan. All processes and threads
        of a service share its value.

        Args:
            name: as Prometheus has it, without ``_total``. ``spop_`` is for the server's own.
            meaning: a sentence for people.

        Raises:
            ValueError: a name can't be used, or is that of a gauge, or there are too many.
            TypeError: the meaning or a label's value is no text.
            RuntimeError: it is new, and the agent is served already.
        """
        return self.metrics.get(CounterMetric, name, meaning, labels)

    def gauge(self, name: str, meaning: str, **labels: str) -> Gauge:
        """A present value, an integer: as `counter`. Of many processes the largest is shown."""
        return self.metrics.get(Gauge, name, meaning, labels)

    @property
    def resources(self) -> Resources:
        """Its lifespans and periodic calls, for servers."""
        return Resources(tuple(self._lifespans), tuple(self._periodic), self.failed)

    @property
    def state(self) -> Mapping[str, Any]:
        """What the lifespans have yielded, in the loop whose handler runs.

        Raises:
            RuntimeError: no handler runs here.
        """
        return current_state()

    @property
    def config(self) -> Any:
        """The agent's own settings, an instance of its dataclass; None if it has none.

        Raises:
            SettingsError: a field has no default, and nothing has set it yet.
        """
        self.check_config()
        return self._config

    @config.setter
    def config(self, config: Any) -> None:
        self._config = config

    def check_config(self) -> None:
        """Servers call this before the lifespans.

        Raises:
            SettingsError: a field has no default, and nothing has set it.
        """
        if self.config_class is not None and self._config is None:
            from spop.settings import fill

            self._config = fill(self.config_class)

    def on_connect(self, hook: Callable[[Peer], object]) -> Callable[[Peer], object]:
        """Call `hook` with the `Peer` of each connection that has said HELLO."""
        self._connect_hooks.append(_hook(hook))
        return hook

    def on_disconnect(
        self, hook: Callable[[Peer, Disconnect], object]
    ) -> Callable[[Peer, Disconnect], object]:
        """Call `hook` with `Peer` and `Disconnect` when such a connection has ended."""
        self._disconnect_hooks.append(_hook(hook))
        return hook

    def on_error(
        self, hook: Callable[[str, BaseException], object]
    ) -> Callable[[str, BaseException], object]:
        """Call `hook` with the name and the exception of each failed message."""
        self._error_hooks.append(_hook(hook))
        return hook

    def dispatcher(
        self, route: Callable[[HandlerInfo], Route] = HandlerInfo.route, **limits: Any
    ) -> Dispatcher:
        """A dispatcher with all handlers, for one thread. `Dispatcher` has the limits.

        Args:
            route: makes the route of a handler.
        """
        routes = [route(self._handler(name)) for name in self.handlers]
        return Dispatcher(
            routes,
            self.failed,
            on_unknown=self._on_error,
            without_route=self._log_without_handler,
            **limits,
        )

    def test(self, name: str, /, **args: Value) -> dict[str, Value | type_unset]:
        """Handle one message without sockets: for tests of handlers.

        As in a server, arguments and actions are encoded and decoded. Handlers that are ``async
        def`` and lifespans use one event loop, in a thread of its own, until `close_test`.

        Returns:
            The variables that were set, ``{"scope.name": value}``; `UNSET` where one is removed.

        Raises:
            LookupError: the message has no handler.
            HandlerError: an argument is missing or of another type than annotated.
            Exception: the handler or a lifespan raised it.
        """
        info = self._handler_alone(name)
        if info.asynchronous or self.resources:
            loop = self._loop_for_tests()
            return loop.run(loop.with_state(self._handle(info, args)))
        try:
            self._handle(info, args).send(None)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        raise AssertionError("a plain handler has nothing to wait for")

    async def test_async(self, name: str, /, **args: Value) -> dict[str, Value | type_unset]:
        """`test` for tests that run in an event loop. The handler runs in that of `test`."""
        info = self._handler_alone(name)
        loop = self._loop_for_tests()
        return await loop.run_async(loop.with_state(self._handle(info, args)))

    def close_test(self) -> None:
        """End the event loop and the lifespans that `test` began.

        Raises:
            Exception: a lifespan raised it.
        """
        loop, self._test_loop = self._test_loop, None
        if loop is not None:
            loop.close()

    def _loop_for_tests(self) -> LoopThread:
        if self._test_loop is None:
            from spop.loop_life import LoopThread

            self._test_loop = LoopThread(self.resources)
        return self._test_loop

    def _handler(self, name: str) -> HandlerInfo:
        if name not in self.handlers:
            raise LookupError(f"message {name!r} has no handler")
        info = self.handlers[name]
        return info._replace(wraps=self._wraps + info.wraps)

    def _handler_alone(self, name: str) -> HandlerInfo:
        info = self._handler(name)
        return info if info.batch is None else info.alone()

    def _handle(
        self, info: HandlerInfo, args: Mapping[str, Value]
    ) -> Coroutine[Any, Any, dict[str, Value | type_unset]]:
        notify = bytes(codec.encode_notify(1, 1, [Message(info.name, args)]))
        return _handle(info, notify, Peer("test", "2.0", self.max_frame_size, frozenset()))

    def connected(self, peer: Peer) -> None:
        """Servers call this when a connection has said HELLO."""
        for hook in self._connect_hooks:
            self._run_hook(hook, peer)

    def disconnected(self, peer: Peer, reason: Disconnect) -> None:
        """Servers call this when such a connection has ended."""
        for hook in self._disconnect_hooks:
            self._run_hook(hook, peer, reason)

    def failed(self, name: str, error: BaseException) -> None:
        """Count and log a failed message, and call the hooks."""
        with self._errors_lock:
            self.errors[name] += 1
        where, about = self._where(name, error), self._about(name)
        self._log_failure(
            error, "message %r failed: %r%s", name, where, about=about, level=self.failure_level
        )
        self._keep_interrupt(error)
        for hook in self._error_hooks:
            self._run_hook(hook, name, error)

    def _where(self, name: str, error: BaseException) -> str:
        """The handler, if the error does not show it, because its argument or answer is wrong."""
        if name not in self.handlers or users_part(trace_of(error)) is not None:
            return ""
        function = self.handlers[name].function
        place = place_of(function)
        return "" if place in text_of(error) else f", {described(function, place)}"

    def _log_without_handler(self, name: str) -> None:
        with self._errors_lock:
            if name in self._without_handler or len(self._without_handler) >= MOST_UNKNOWN:
                return
            self._without_handler.add(name)
        logger.warning(
            "no handler is for message %r; there are: %s",
            name,
            ", ".join(self.handlers),
            extra=fields("message without handler", message=name),
        )

    def _about(self, name: str) -> dict[str, str]:
        """The fields of a log line about a message."""
        info = self.handlers.get(name)
        return {"message": name, **({"handler": name_of(info.function)} if info else {})}

    def _log_failure(
        self,
        error: BaseException,
        message: str,
        name: str,
        where: str = "",
        *,
        about: dict[str, str] | None = None,
        level: int = logging.ERROR,
    ) -> None:
        summary = shortened(f"{class_name(error)}: {text_of(error)}")
        event = "handler failed" if about else "hook failed"
        what = fields(event, error=summary, **(about or {"hook": name}))
        if self._error_log.allows(level, message, name, summary, where, extra=what):
            logger.failure(error, message, name, summary, where, extra=what, level=level)

    def _run_hook(self, hook: Callable[..., object], *args: object) -> None:
        try:
            hook(*args)
        except BaseException as error:  # As with a handler: the loop goes on.
            self._log_failure(error, "hook %s failed: %r%s", text_of(hook, name_of))
            self._keep_interrupt(error)
        finally:
            if FORKED:
                end_child()

    def _keep_interrupt(self, error: BaseException) -> None:
        in_main_thread = threading.current_thread() is threading.main_thread()
        # `isinstance` would ask the exception, which may raise.
        if issubclass(type(error), KeyboardInterrupt) and in_main_thread:
            self._interrupt = error

    def pass_on_interrupt(self) -> None:
        """Raise the KeyboardInterrupt that came in a handler or hook in the main thread.

        A server in that thread calls this once the message was answered.
        """
        error, self._interrupt = self._interrupt, None
        if error is not None:
            raise error

    def serve(self, bind: Addresses = DEFAULT_BIND, **options: Unpack[ServeOptions]) -> None:
        """Serve until SIGINT or SIGTERM; `spop.server.Server` has the options."""
        from spop.server import Server

        Server(self, bind, **options).run()

    def serve_in_background(
        self, bind: Addresses = "127.0.0.1:0", **options: Unpack[ServeOptions]
    ) -> AgentServer:
        """A server for a ``with`` statement. Inside of it, it serves in threads of its own."""
        from spop.server import Server

        return Server(self, bind, **options)

    async def serve_async(
        self,
        bind: Addresses = DEFAULT_BIND,
        ready: Callable[[AgentServer], object] | None = None,
        **options: Unpack[ServeOptions],
    ) -> None:
        """Serve on the running event loop, until this task is cancelled.

        It is one process with one loop, and handles no signals. When the task is cancelled, it
        answers the frames in hand, for up to `drain_timeout` seconds, and ends the connections
        with a DISCONNECT. Then it raises the CancelledError. A second cancellation does not
        wait for handlers.

        Args:
            ready: called with the server once it listens.
            options: as `serve` takes them.

        Raises:
            OSError: an address can't be listened on.
            ValueError: an option is out of range, or asks for more than one loop.
        """
        from spop.server import Server

        await Server(self, bind, **options).run_async(ready)


async def _handle(info: HandlerInfo, notify: bytes, peer: Peer) -> dict[str, Value | type_unset]:
    """Handle one NOTIFY, as a server does."""
    errors: list[BaseException] = []
    dispatcher = Dispatcher([info.route(LEFT)], lambda _, error: errors.append(error))
    intake = Intake(DEFAULT_MAX_PAYLOAD_SIZE)
    intake.peer = peer
    intake.is_open = True
    frames, _ = dispatcher.receive(intake, notify)
    if errors:
        raise errors[0]
    (deferred,) = frames
    assert isinstance(deferred, Deferred)
    (call,) = deferred.calls
    began = time.monotonic_ns()
    returned = call.run()
    if info.asynchronous:
        returned = await returned
    if info.ack_first:
        returned = None
    deferred.actions = bytes(dispatcher.result(call, returned, None, began, deferred.room))
    if errors:
        raise errors[0]
    dispatcher.acknowledge(intake, deferred, None)
    (ack,), _ = codec.decode_frames(intake.take_acks())
    assert isinstance(ack, Ack)
    return ack.variables


def _hook(hook: Callable[..., object]) -> Callable[..., object]:
    """A hook, which is called in the loop, and so can't wait.

    Raises:
        TypeError: to call it would run nothing.
    """
    if not callable(hook):
        raise TypeError(f"hook: a function is needed, not {hook!r}")
    if is_async(hook) or is_generator(hook):
        raise TypeError(
            f"hook: {described(hook)} is async def or a generator; a plain def is needed"
        )
    return hook


def _settings(config: Any) -> tuple[type | None, Any]:
    """The dataclass of an agent's settings, and its instance, where one can be made already."""
    if config is None:
        return None, None
    if not dataclasses.is_dataclass(config):
        raise TypeError(f"config: a dataclass is needed, not {config!r}")
    if not isinstance(config, type):
        return None, config
    from spop.settings import SettingsError, fill

    try:
        return config, fill(config)
    except SettingsError:  # A field without a default. `spop serve` fills it.
        return config, None
