"""The agent: handlers by message name, their signatures, and their failures.

It knows no sockets. A server, such as `spop.server`, gets a `Dispatcher` of it for each loop, and
runs the handlers of each `Deferred`.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol, Self, TypeVar

from spop import codec
from spop.address import Address
from spop.connection import MAX_IN_FLIGHT, Disconnect
from spop.constants import (
    DEFAULT_MAX_FRAME_SIZE,
    DEFAULT_MAX_PAYLOAD_SIZE,
    MIN_FRAME_SIZE,
    DataType,
)
from spop.dispatch import (
    ACK,
    ARGUMENT,
    ASYNC,
    HEADERS,
    INLINE,
    LEFT,
    MESSAGE,
    MISSING,
    Dispatcher,
    Intake,
    Parameter,
    Route,
)
from spop.forks import FORKED, end_child
from spop.frames import Ack, Message, Peer
from spop.headers import Headers
from spop.logs import RateLimitedLog, SafeLogger, text_of
from spop.values import UNSET, Value, type_unset

logger = SafeLogger("spop.agent")

Handler = TypeVar("Handler", bound=Callable[..., Any])
Answer = Mapping[str, Value | type_unset]
"""Values by ``"scope.name"``; `UNSET` or None removes the variable."""

_ANY = -1
_ACCEPTED: dict[Any, int] = {
    None: 1 << DataType.NULL,
    type(None): 1 << DataType.NULL,
    bool: 1 << DataType.BOOL,
    int: 1 << DataType.BOOL
    | 1 << DataType.INT32
    | 1 << DataType.UINT32
    | 1 << DataType.INT64
    | 1 << DataType.UINT64,
    IPv4Address: 1 << DataType.IPV4,
    IPv6Address: 1 << DataType.IPV6,
    str: 1 << DataType.STRING,
    bytes: 1 << DataType.BINARY,
    Headers: HEADERS,
    object: _ANY,
    Any: _ANY,
    inspect.Parameter.empty: _ANY,
}

_TEXT = _ACCEPTED[str] | _ACCEPTED[bytes]


class HandlerInfo(typing.NamedTuple):
    """A registered handler.

    Attributes:
        on_error, on_timeout: the encoded actions that answer for it.
    """

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    blocking: bool
    asynchronous: bool
    on_error: bytes
    timeout: float | None = None
    on_timeout: bytes = b""
    concurrency: int | None = None
    sets: tuple[str, ...] = ()

    @property
    def kind(self) -> int:
        """How a dispatcher calls it. Calls that may wait in line are left to the server."""
        if self.blocking or self.concurrency is not None:
            return LEFT
        return ASYNC if self.asynchronous else INLINE

    @property
    def limited(self) -> bool:
        """The time or the number of its calls has a limit."""
        return self.timeout is not None or self.concurrency is not None


class _Options(typing.NamedTuple):
    """What `Agent.message` was called with."""

    blocking: bool
    on_error: Answer | None
    timeout: float | None
    on_timeout: Answer | None
    concurrency: int | None
    sets: Sequence[str]


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

    Attributes:
        errors: number of failed messages, by message name.
        default_on_error, default_on_timeout: the defaults. To change them later has no effect.

    Raises:
        TypeError: `on_error` or `on_timeout` has a value of a type that SPOP lacks.
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
        self._interrupt: KeyboardInterrupt | None = None
        self._errors_lock = threading.Lock()
        self._connect_hooks: list[Callable[[Peer], object]] = []
        self._disconnect_hooks: list[Callable[[Peer, Disconnect], object]] = []
        self._error_hooks: list[Callable[[str, BaseException], object]] = []
        self._error_log = RateLimitedLog(logger, per_second=10)
        place = _caller()
        self._on_error = _encoded(f"agent {name!r}: on_error", place, on_error)
        self._on_timeout = _encoded(f"agent {name!r}: on_timeout", place, on_timeout)
        self.default_on_error = dict(on_error or {})
        self.default_on_timeout = dict(on_timeout or {})

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
    ) -> Callable[[Handler], Handler]:
        """Register the handler of a message, as a decorator.

        The handler's parameters are the message's arguments by name; "-" and "." in a name
        become "_". A parameter annotated `Message` gets the message, one annotated `Ack` the
        answer to fill in. If an argument is missing, or is NULL and the annotation excludes
        None, the parameter gets its default. The handler returns None or
        ``{"scope.name": value}``. There `UNSET` or None removes the variable.

        Args:
            name: as in ``spoe-message``.
            blocking: run it in the thread pool, because it waits for something.
            on_error: the answer if the handler fails. The default is the agent's; an empty one
                answers nothing.
            timeout: seconds after which the message is answered without the handler. They begin
                when the call is given to the pool or its task is made. A later result is
                dropped; an ``async def`` handler is cancelled.
            on_timeout: the answer then. The default is the agent's.
            concurrency: number of calls of the handler that may run at a time; others wait.
            sets: the variables that it may set, as ``"scope.name"``; for tools.

        `timeout` and `concurrency` are for handlers that are blocking or ``async def``.

        Raises:
            TypeError: the signature can't be served, the options don't fit the handler, or
                `on_error` or `on_timeout` has a value of a type that SPOP lacks.
            ValueError: the message has a handler already, a limit is not positive, `sets` has an
                invalid name, or `on_error` or `on_timeout` can't be encoded.
        """
        _check_limits(name, timeout, concurrency)
        options = _Options(blocking, on_error, timeout, on_timeout, concurrency, sets)

        def register(function: Handler) -> Handler:
            if name in self.handlers:
                raise ValueError(f"message {name!r} has a handler already")
            self.handlers[name] = self._info(name, function, options)
            return function

        return register

    def _info(self, name: str, function: Callable[..., Any], options: _Options) -> HandlerInfo:
        asynchronous = inspect.iscoroutinefunction(function)
        may_wait = asynchronous or options.blocking
        if asynchronous and options.blocking:
            raise TypeError(f"message {name!r}: an async handler can't be blocking=True")
        if not may_wait and (options.timeout or options.on_timeout or options.concurrency):
            raise TypeError(
                f"message {name!r}: timeout, on_timeout and concurrency need a handler that "
                "is blocking=True or async def"
            )

        def answer(option: str, own: Answer | None, default: bytes) -> bytes:
            if own is None:
                return default
            return _encoded(f"message {name!r}: {option} of the handler", _place(function), own)

        return HandlerInfo(
            name,
            function,
            _parameters(name, function),
            options.blocking,
            asynchronous,
            answer("on_error", options.on_error, self._on_error),
            options.timeout,
            answer("on_timeout", options.on_timeout, self._on_timeout if may_wait else b""),
            options.concurrency,
            _variables(name, function, options.sets),
        )

    def on_connect(self, hook: Callable[[Peer], object]) -> Callable[[Peer], object]:
        """Call `hook` with the `Peer` of each connection that has said HELLO."""
        self._connect_hooks.append(hook)
        return hook

    def on_disconnect(
        self, hook: Callable[[Peer, Disconnect], object]
    ) -> Callable[[Peer, Disconnect], object]:
        """Call `hook` with `Peer` and `Disconnect` when such a connection has ended."""
        self._disconnect_hooks.append(hook)
        return hook

    def on_error(
        self, hook: Callable[[str, BaseException], object]
    ) -> Callable[[str, BaseException], object]:
        """Call `hook` with the name and the exception of each failed message."""
        self._error_hooks.append(hook)
        return hook

    def dispatcher(self, **limits: Any) -> Dispatcher:
        """A dispatcher with all handlers, for one thread. `Dispatcher` has the limits."""
        routes = [
            Route(info.name, info.function, info.parameters, info.kind, info.on_error, info.limited)
            for info in self.handlers.values()
        ]
        return Dispatcher(routes, self.failed, on_unknown=self._on_error, **limits)

    def test(self, name: str, /, **args: Value) -> dict[str, Value | type_unset]:
        """Handle one message without sockets: for tests of handlers.

        As in a server, arguments and actions are encoded and decoded. An ``async def`` handler
        runs on an event loop of its own.

        Returns:
            The variables that were set, ``{"scope.name": value}``; `UNSET` where one is removed.

        Raises:
            LookupError: the message has no handler.
            HandlerError: an argument is missing or of another type than annotated.
            Exception: the handler raised it.
        """
        if name not in self.handlers:
            raise LookupError(f"message {name!r} has no handler")
        info, errors = self.handlers[name], []
        function = _awaited(info.function) if info.asynchronous else info.function
        dispatcher = Dispatcher(
            [Route(name, function, info.parameters)], lambda _, error: errors.append(error)
        )
        size = self.max_payload_size
        notify = codec.encode_notify(1, 1, [Message(name, args)])
        intake = Intake(size)
        intake.peer = Peer("test", "2.0", self.max_frame_size, frozenset())
        intake.is_open = True
        _, acks = dispatcher.receive(intake, notify)
        if errors:
            raise errors[0]
        (ack,), _ = codec.decode_frames(acks, max_frame_size=size)
        assert isinstance(ack, Ack)
        return ack.variables

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
        if self._error_log.allows() is not None:
            summary = repr(f"{type(error).__name__}: {text_of(error)}")
            logger.failure(error, "message %r failed: %s", name, summary)
        self._keep_interrupt(error)
        for hook in self._error_hooks:
            self._run_hook(hook, name, error)

    def _run_hook(self, hook: Callable[..., object], *args: object) -> None:
        try:
            hook(*args)
        except BaseException as error:  # As with a handler: the loop goes on.
            logger.failure(error, "hook %s failed", text_of(hook, _function_name))
            self._keep_interrupt(error)
        finally:
            if FORKED:
                end_child()

    def _keep_interrupt(self, error: BaseException) -> None:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and in_main_thread:
            self._interrupt = error

    def pass_on_interrupt(self) -> None:
        """Raise the KeyboardInterrupt that came in a handler or hook in the main thread.

        A server in that thread calls this once the message was answered.
        """
        error, self._interrupt = self._interrupt, None
        if error is not None:
            raise error

    def serve(self, bind: str | list[str] = "127.0.0.1:9000", **options: Any) -> None:
        """Serve until SIGINT or SIGTERM; `spop.server.Server` has the options."""
        from spop.server import Server

        Server(self, bind, **options).run()

    def serve_in_background(
        self, bind: str | list[str] = "127.0.0.1:0", **options: Any
    ) -> AgentServer:
        """A server for a ``with`` statement. Inside of it, it serves in threads of its own."""
        from spop.server import Server

        return Server(self, bind, **options)

    async def serve_async(
        self,
        bind: str | list[str] = "127.0.0.1:9000",
        ready: Callable[[AgentServer], object] | None = None,
        **options: Any,
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


def _check_limits(name: str, timeout: float | None, concurrency: int | None) -> None:
    if timeout is not None and timeout <= 0:
        raise ValueError(f"message {name!r}: timeout is {timeout:g}, more than 0 is needed")
    if concurrency is not None and concurrency < 1:
        raise ValueError(f"message {name!r}: concurrency is {concurrency}, 1 at least")


def _encoded(what: str, place: str, actions: Answer | None) -> bytes:
    """The answer in place of a handler's. It is encoded now, to find errors at registration."""
    try:
        return bytes(codec.encode_answer(actions or {}))
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{what} in {place}: {error}") from None


def _caller() -> str:
    """File and line of the caller's caller."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _place(function: Callable[..., Any]) -> str:
    """File and line of a function, or its name where it has none."""
    code = getattr(inspect.unwrap(_annotated(function)), "__code__", None)
    if code is None:
        return text_of(function, _function_name)
    return f"{code.co_filename}:{code.co_firstlineno}"


def _function_name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", None) or repr(function)


def _awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """An ``async def`` handler as a plain function, with an event loop in its own thread."""

    def call(*args: Any, **kwargs: Any) -> Any:
        import asyncio

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, function(*args, **kwargs)).result()

    return call


def _variables(message: str, function: Callable[..., Any], sets: Any) -> tuple[str, ...]:
    """The names of variables that `sets` has."""
    try:
        if not isinstance(sets, Sequence) or isinstance(sets, (str, bytes)):
            raise TypeError(f"a sequence of variables is needed, not {sets!r}")
        codec.encode_actions(dict.fromkeys(sets, UNSET))
    except (TypeError, ValueError) as error:
        where = _place(function)
        raise type(error)(
            f"message {message!r}: sets= of the handler in {where}: {error}"
        ) from None
    return tuple(sets)


def _parameters(message: str, function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The parameters of a handler's signature."""
    hints = _hints(message, function)
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"message {message!r}: handler takes {parameter}; name the arguments it needs, "
                "or take a parameter annotated Message"
            )
        parameters.append(
            _parameter(message, parameter, hints.get(parameter.name, parameter.annotation))
        )
    return tuple(parameters)


def _hints(message: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations, resolved."""
    try:
        return typing.get_type_hints(_annotated(function))
    except NameError as error:
        raise TypeError(f"message {message!r}: annotation can't be resolved: {error}") from None


def _annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that has the annotations: that of a partial, or an object's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _parameter(message: str, parameter: inspect.Parameter, annotation: Any) -> Parameter:
    keyword_only = parameter.kind is parameter.KEYWORD_ONLY
    if annotation is Message:
        return Parameter(parameter.name, MESSAGE, keyword_only=keyword_only)
    if annotation is Ack:
        return Parameter(parameter.name, ACK, keyword_only=keyword_only)
    accepts = _accepted(annotation)
    if accepts is None:
        raise TypeError(
            f"message {message!r}: parameter {parameter.name} is annotated {annotation!r}, "
            "which no SPOP value can be; use None, bool, int, str, bytes, IPv4Address, "
            "IPv6Address, Headers, a union of these (Headers with neither str nor bytes), "
            "Message or Ack"
        )
    default = MISSING if parameter.default is parameter.empty else parameter.default
    return Parameter(parameter.name, ARGUMENT, accepts, default, keyword_only)


def _accepted(annotation: Any) -> int | None:
    """The data types that an annotation admits, as bits; None if it is no type of SPOP."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        union = 0
        for member in typing.get_args(annotation):
            accepts = _accepted(member)
            if accepts is None:
                return None
            union |= accepts
        # A STRING or BINARY could become either of the two.
        ambiguous = union != _ANY and union & HEADERS and union & _TEXT
        return None if ambiguous else union
    if typing.get_origin(annotation) is typing.Annotated:
        return _accepted(typing.get_args(annotation)[0])
    try:
        return _ACCEPTED.get(annotation)
    except TypeError:
        return None
