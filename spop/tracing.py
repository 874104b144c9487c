"""OpenTelemetry spans for the messages of an agent; needs ``pip install 'haproxy-spop[otel]'``.

HAProxy can send the trace context of a request as an argument of a message, such as
``traceparent=req.hdr(traceparent)``. `trace_messages` makes a span of that trace for each message
that is handled.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

try:
    from opentelemetry import propagate, trace
    from opentelemetry.trace import SpanKind, TracerProvider
except ModuleNotFoundError as error:
    message = "spop.tracing needs an extra: pip install 'haproxy-spop[otel]'"
    raise ModuleNotFoundError(message, name=error.name) from None

from spop.agent import Agent
from spop.context import current
from spop.parameters import Parameter
from spop.version import __version__


def trace_messages(
    agent: Agent,
    *,
    traceparent: str = "traceparent",
    tracestate: str = "tracestate",
    provider: TracerProvider | None = None,
) -> None:
    """Make a span for each message of an agent's handlers.

    Call it after the handlers are registered, and before the agent serves.

    Args:
        traceparent: the argument with the trace context (W3C Trace Context). A message without it
            starts a new trace.
        tracestate: the argument with the state of the trace.
        provider: None is the global one.
    """
    tracer = trace.get_tracer("spop", __version__, provider)

    @contextmanager
    def span(name: str, parent: object, state: object) -> Iterator[None]:
        carrier = {"traceparent": str(parent or ""), "tracestate": str(state or "")}
        with tracer.start_as_current_span(
            f"spop {name}",
            propagate.extract({k: v for k, v in carrier.items() if v}),
            kind=SpanKind.SERVER,
            attributes=_attributes(name),
        ):
            yield

    names = [each.replace("-", "_") for each in (traceparent, tracestate)]
    for name, info in list(agent.handlers.items()):
        missing = set(names).difference(parameter.name for parameter in info.parameters)
        added = [Parameter(n, default=None, keyword_only=True) for n in names if n in missing]
        agent.handlers[name] = info._replace(
            function=_traced(info.function, functools.partial(span, name), names, missing),
            parameters=(*info.parameters, *added),
        )


def _traced(
    function: Callable[..., Any],
    span: Callable[..., AbstractContextManager[None]],
    names: list[str],
    missing: set[str],
) -> Callable[..., Any]:
    """The handler in a span. The handler is not given the arguments that it has no names for."""
    signature = inspect.signature(function)

    def called(
        args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[AbstractContextManager[None], dict[str, Any]]:
        """The span of a call, and the keyword arguments of the handler."""
        own = {name: value for name, value in kwargs.items() if name not in missing}
        given = {**kwargs, **signature.bind_partial(*args, **own).arguments}
        return span(*map(given.get, names)), own

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def traced_async(*args: Any, **kwargs: Any) -> Any:
            running, own = called(args, kwargs)
            with running:
                return await function(*args, **own)

        return traced_async

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        running, own = called(args, kwargs)
        with running:
            return function(*args, **own)

    return traced


def _attributes(name: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"spop.message": name}
    running = current()
    if running is not None:
        attributes["spop.stream_id"] = running.stream_id
        attributes["spop.frame_id"] = running.frame_id
        attributes["network.peer.address"] = running.connection.address
    return attributes
