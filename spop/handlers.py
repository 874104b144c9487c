"""A registered handler: the function, its parameters and its options, all checked."""

from __future__ import annotations

import functools
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from spop import codec
from spop.batch import Batch
from spop.cache import Cache, HandlerCache
from spop.constants import MAX_SECONDS
from spop.dispatch import Route
from spop.frames import Message
from spop.parameters import (
    ACK,
    ARGUMENT,
    ASYNC,
    INLINE,
    LEFT,
    MESSAGE,
    STATE,
    Parameter,
    described,
    is_async,
    is_generator,
    place_of,
)
from spop.signature import parameters_of
from spop.state import STATES
from spop.values import UNSET, Value, type_unset

Answer = Mapping[str, Value | type_unset]
"""Values by ``"scope.name"``; `UNSET` or None removes the variable."""

Wrap = Callable[[Callable[[], Any], Message], Any]
"""Called around handlers with a call and its message; the call gives the handler's answer."""


class HandlerOptions(typing.NamedTuple):
    """What `Agent.message` is called with.

    Attributes:
        blocking: run it in the thread pool, because it waits for something.
        on_error: the answer if the handler fails, `{}` for none. The default is the agent's.
        timeout: seconds after which the message is answered without the handler, if that is
            blocking or ``async def``. A later result is dropped, a coroutine cancelled.
        on_timeout: the answer then. The default is the agent's. It needs a `timeout`.
        concurrency: number of calls of such a handler at a time; others wait.
        sets: the variables that it may set, as ``"scope.name"``; for tools.
        ack_first: acknowledge the message at once, and handle it afterwards.
        batch: call the handler with a list of messages, for a list of answers.
        cache: keep its answers, by the arguments that it takes.
    """

    blocking: bool = False
    on_error: Answer | None = None
    timeout: float | None = None
    on_timeout: Answer | None = None
    concurrency: int | None = None
    sets: Sequence[str] = ()
    ack_first: bool = False
    batch: Batch | None = None
    cache: Cache | None = None


class HandlerInfo(typing.NamedTuple):
    """A registered handler.

    Attributes:
        on_error, on_timeout: the encoded actions that answer for it.
        wraps: called around it, the outermost first.
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
    ack_first: bool = False
    batch: Batch | None = None
    cache: HandlerCache | None = None
    wraps: tuple[Wrap, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        function: Callable[..., Any],
        options: HandlerOptions,
        on_error: bytes,
        on_timeout: bytes,
    ) -> Self:
        """The handler of message `name`. `on_error` and `on_timeout` are the agent's defaults.

        Raises:
            TypeError, ValueError: as `Agent.message`.
        """
        asynchronous = is_async(function)
        may_wait = asynchronous or options.blocking or options.batch is not None
        parameters = parameters_of(name, function, batch=options.batch is not None)
        _check_options(name, function, options, parameters, asynchronous)

        def answer(option: str, own: Answer | None, default: bytes) -> bytes:
            if own is None:
                return default
            return encoded_answer(
                f"message {name!r}: {option} of the handler", place_of(function), own
            )

        return cls(
            name,
            function,
            parameters,
            options.blocking,
            asynchronous,
            answer("on_error", options.on_error, b"" if options.ack_first else on_error),
            options.timeout,
            answer(
                "on_timeout",
                options.on_timeout,
                on_timeout if may_wait and not options.ack_first else b"",
            ),
            options.concurrency,
            _variables(name, function, options.sets) + _state_variables(parameters),
            options.ack_first,
            options.batch,
            None if options.cache is None else HandlerCache(options.cache),
        )

    @property
    def needs_event_loop(self) -> bool:
        """Whether a server calls it on an event loop."""
        waits_for_another = self.cache is not None and self.blocking
        return self.asynchronous or self.ack_first or self.batch is not None or waits_for_another

    @property
    def kind(self) -> int:
        """How a dispatcher calls it. Calls that may wait in line are left to the server."""
        if self.blocking or self.concurrency is not None:
            return LEFT
        return ASYNC if self.asynchronous else INLINE

    def alone(self) -> Self:
        """A handler with ``batch=`` as one that takes one message; ``async def``, as in a server."""
        function, asynchronous = self.function, self.asynchronous

        @functools.wraps(function)
        async def call(message: Message) -> Any:
            answers = function([message])
            (answer,) = (await answers) if asynchronous else answers
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return self._replace(
            function=call, parameters=(Parameter("message", MESSAGE),), asynchronous=True
        )

    def route(
        self,
        kind: int | None = None,
        around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
        more: Sequence[Parameter] = (),
    ) -> Route:
        """What a dispatcher calls: the handler, with its states read and its wraps around it.

        Wraps that are ``async def`` are for such handlers, and plain ones for plain handlers.

        Args:
            kind: in place of its own.
            around: gives the outermost function.
            more: parameters that this function has besides.
        """
        function, parameters = self.function, self.parameters
        states = [each.name for each in parameters if each.kind == STATE]
        if states:
            function = STATES.around(self.name, function, states, self.asynchronous)
            parameters = tuple(map(_by_keyword, parameters))
        wraps = [w for w in self.wraps if is_async(w) == self.asynchronous]
        if wraps:
            function = _wrapped(function, wraps)
            parameters += (Parameter(_OF_WRAPS, MESSAGE, keyword_only=True),)
        if around is not None:
            function = around(function)
        kind = self.kind if kind is None else kind
        limited = self.timeout is not None or self.concurrency is not None
        return Route(self.name, function, (*parameters, *more), kind, self.on_error, limited)


def _by_keyword(parameter: Parameter) -> Parameter:
    """A parameter as a dispatcher has it for a handler with states."""
    if parameter.kind == STATE:
        return Parameter(parameter.name, default=None, keyword_only=True)
    return parameter._replace(keyword_only=True)


def _state_variables(parameters: Sequence[Parameter]) -> tuple[str, ...]:
    return tuple(f"txn.{each.name}" for each in parameters if each.kind == STATE)


def _check_options(
    name: str,
    function: Callable[..., Any],
    options: HandlerOptions,
    parameters: Sequence[Parameter],
    asynchronous: bool,
) -> None:
    """Refuse options that don't fit the handler or one another."""
    who = f"message {name!r}: {described(function)}"
    may_wait = asynchronous or options.blocking
    kinds = {each.kind for each in parameters}
    if is_generator(function):
        raise TypeError(f"{who} is a generator; it has to return its answer, not to yield it")
    if asynchronous and options.blocking:
        raise TypeError(f"message {name!r}: an async handler can't be blocking=True")
    if options.batch is not None:
        _check_batch(who, options, asynchronous)
    elif not may_wait and (options.timeout or options.on_timeout or options.concurrency):
        raise TypeError(
            f"message {name!r}: timeout, on_timeout and concurrency need a handler that "
            "is blocking=True or async def"
        )
    if options.cache is not None:
        _check_cache(who, options, kinds)
    if not options.ack_first:
        if options.on_timeout is not None and options.timeout is None:
            raise TypeError(f"{who} has on_timeout, but no timeout after which that would answer")
        return
    if not may_wait:
        raise TypeError(f"{who}: ack_first needs a handler that is blocking=True or async def")
    if options.on_error or options.on_timeout or kinds & {ACK, STATE}:
        raise TypeError(
            f"{who}: with ack_first nothing is answered, so it can't have on_error, on_timeout, "
            "an Ack or a StreamState"
        )


def _check_cache(who: str, options: HandlerOptions, kinds: set[int]) -> None:
    if not isinstance(options.cache, Cache):
        raise TypeError(f"{who}: cache is {options.cache!r}, a Cache is needed")
    if options.ack_first or options.batch is not None or kinds - {ARGUMENT}:
        raise TypeError(
            f"{who}: an answer is kept by the arguments alone, so cache can't be combined with "
            "ack_first, batch, Message, Ack or StreamState"
        )


def _check_batch(who: str, options: HandlerOptions, asynchronous: bool) -> None:
    if not isinstance(options.batch, Batch):
        raise TypeError(f"{who}: batch is {options.batch!r}, a Batch is needed")
    if options.blocking or options.ack_first:
        raise TypeError(f"{who}: batch can't be combined with blocking or ack_first")
    if asynchronous and options.batch.executor == "process":
        raise TypeError(f"{who}: an async handler can't run in a process")


_OF_WRAPS = "message_of_wraps"
"""The keyword by which wraps get the message."""


def _wrapped(function: Callable[..., Any], wraps: Sequence[Wrap]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        message = kwargs.pop(_OF_WRAPS)
        inner = functools.partial(function, *args, **kwargs)
        for wrap in reversed(wraps):
            inner = functools.partial(wrap, inner, message)
        return inner()

    return call


def check_limits(name: str, timeout: float | None, concurrency: int | None) -> None:
    """Refuse limits that are not positive, and a time without an end."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float, type(None))):
        raise TypeError(f"message {name!r}: timeout is {timeout!r}, a number of seconds is needed")
    if timeout is not None and not 0 < timeout <= MAX_SECONDS:
        wanted = f"up to {MAX_SECONDS:g}" if timeout > 0 else "more than 0"
        raise ValueError(f"message {name!r}: timeout is {timeout:g}, {wanted} is needed")
    if concurrency is not None and concurrency < 1:
        raise ValueError(f"message {name!r}: concurrency is {concurrency}, 1 at least")


def check_name(name: object) -> None:
    """Refuse what is no name of a message, such as the function below ``@agent.message``."""
    if callable(name):
        place = described(name)
        raise TypeError(f'{place}: the message\'s name is missing: @agent.message("NAME")')
    if not isinstance(name, str):
        raise TypeError(f"a message's name is a str, not {type(name).__name__} ({caller(3)})")


def encoded_answer(what: str, place: str, actions: Answer | None) -> bytes:
    """The answer in place of a handler's. It is encoded now, to find errors at registration."""
    try:
        return bytes(codec.encode_answer(actions or {}))
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{what} in {place}: {error}") from None


def caller(depth: int = 2) -> str:
    """File and line of the caller's caller, or of one further out."""
    frame = sys._getframe(depth)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _variables(message: str, function: Callable[..., Any], sets: Any) -> tuple[str, ...]:
    """The names of variables that `sets` has."""
    try:
        if not isinstance(sets, Sequence) or isinstance(sets, (str, bytes)):
            raise TypeError(f"a sequence of variables is needed, not {sets!r}")
        codec.encode_actions(dict.fromkeys(sets, UNSET))
    except (TypeError, ValueError) as error:
        where = place_of(function)
        raise type(error)(
            f"message {message!r}: sets= of the handler in {where}: {error}"
        ) from None
    return tuple(sets)
