"""OpenTelemetry spans for the messages of an agent; needs ``pip install 'haproxy-spop[otel]'``.

HAProxy can send the trace context of a request as an argument of a message, such as
``traceparent=req.hdr(traceparent)``. `trace_messages` makes a span of that trace for each message
that is handled.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, TracerProvider

from spop.agent import Agent
from spop.context import current
from spop.dispatch import Parameter
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

    for name, info in list(agent.handlers.items()):
        parameters = [p.name for p in info.parameters]
        added = [
            Parameter(each.replace("-", "_"), default=None, keyword_only=True)
            for each in (traceparent, tracestate)
            if each.replace("-", "_") not in parameters
        ]
        agent.handlers[name] = info._replace(
            function=_traced(info.function, name, traceparent, tracestate, added, span),
            parameters=(*info.parameters, *added),
        )


def _traced(
    function: Callable[..., Any],
    name: str,
    traceparent: str,
    tracestate: str,
    added: list[Parameter],
    span: Callable[[str, object, object], Any],
) -> Callable[..., Any]:
    """The handler in a span. The handler is not given the `added` parameters."""
    names = [each.replace("-", "_") for each in (traceparent, tracestate)]
    signature = inspect.signature(function)
    extra = {parameter.name for parameter in added}

    def context_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        own = {k: v for k, v in kwargs.items() if k not in extra}
        given = {**kwargs, **signature.bind_partial(*args, **own).arguments}
        return [given.get(each) for each in names]

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def traced_async(*args: Any, **kwargs: Any) -> Any:
            with span(name, *context_of(args, kwargs)):
                return await function(*args, **_without(kwargs, extra))

        return traced_async

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with span(name, *context_of(args, kwargs)):
            return function(*args, **_without(kwargs, extra))

    return traced


def _without(kwargs: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key not in names}


def _attributes(name: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"spop.message": name}
    running = current()
    if running is not None:
        attributes["spop.stream_id"] = running.stream_id
        attributes["spop.frame_id"] = running.frame_id
        attributes["network.peer.address"] = running.connection.address
    return attributes
