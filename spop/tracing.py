"""OpenTelemetry spans and metrics for an agent's messages; needs the extra ``otel``.

HAProxy can send the trace context of a request as an argument of a message, such as
``traceparent=req.hdr(traceparent)``. `trace_messages` makes a span of that trace for each message
that is handled. Names follow OpenTelemetry's semantic conventions for RPC: ``rpc.method`` is
``AGENT/MESSAGE``.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

try:
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import SpanKind, TracerProvider
except ModuleNotFoundError as _error:
    _message = "spop.tracing needs an extra: pip install 'haproxy-spop[otel]'"
    raise ModuleNotFoundError(_message, name=_error.name) from None

from spop.agent import Agent
from spop.context import current, logged_ids
from spop.frames import Message
from spop.parameters import MESSAGE, Parameter, is_async
from spop.version import __version__

__all__ = ["trace_messages"]

_BOUNDARIES = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75,
    1, 2.5, 5, 7.5, 10,
)  # fmt: skip
"""Bounds of the histogram's buckets in seconds: those of the conventions, and shorter ones."""


def trace_messages(
    agent: Agent,
    *,
    traceparent: str = "traceparent",
    tracestate: str = "tracestate",
    provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Make a span for each message of an agent's handlers, and record how long it took.

    The metric is the histogram ``rpc.server.call.duration``. Call this after the handlers are
    registered, and before the agent serves.

    Args:
        traceparent: the argument with the trace context (W3C Trace Context). A message without it
            starts a new trace.
        tracestate: the argument with the state of the trace.
        provider: of spans; None is the global one.
        meter_provider: of metrics; None is the global one.
    """
    instruments = _Instruments(provider, meter_provider)
    names = [each.replace("-", "_") for each in (traceparent, tracestate)]
    for name, info in list(agent.handlers.items()):
        missing = set(names).difference(parameter.name for parameter in info.parameters)
        added = [Parameter(n, default=None, keyword_only=True) for n in names if n in missing]
        if info.cache is not None:  # Its answers are kept by its arguments, so it gets no further.
            added = [Parameter(_OF_TRACE, MESSAGE, keyword_only=True)]
        agent.handlers[name] = info._replace(
            function=_traced(
                info.function,
                functools.partial(instruments.span, f"{agent.name}/{name}"),
                names,
                missing,
            ),
            parameters=(*info.parameters, *added),
        )


_OF_TRACE = "message_of_trace"
"""The keyword by which a cached handler gets the message."""


class _Instruments:
    """What makes spans and records durations."""

    def __init__(
        self, provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self._tracer = trace.get_tracer("spop", __version__, provider)
        meter = metrics.get_meter("spop", __version__, meter_provider)
        self._duration = meter.create_histogram(
            "rpc.server.call.duration",
            unit="s",
            description="Measures the duration of an incoming Remote Procedure Call (RPC).",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )

    @contextmanager
    def span(self, method: str, parent: object, state: object) -> Iterator[None]:
        """The span of a call, in the trace that the arguments of the message name."""
        carrier = {"traceparent": str(parent or ""), "tracestate": str(state or "")}
        attributes = {"rpc.system.name": "spop", "rpc.method": method}
        with self._tracer.start_as_current_span(
            method,
            propagate.extract({k: v for k, v in carrier.items() if v}),
            kind=SpanKind.SERVER,
            attributes={**attributes, **_attributes()},
        ) as span:
            began = time.perf_counter()
            try:
                with logged_ids(_ids_of(span)):
                    yield
            except BaseException as error:
                attributes["error.type"] = _type_name(error)
                span.set_attribute("error.type", attributes["error.type"])
                raise
            finally:
                self._duration.record(time.perf_counter() - began, attributes)


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
        whole = _arguments(kwargs.pop(_OF_TRACE, None))
        own = {name: value for name, value in kwargs.items() if name not in missing}
        given = {**whole, **kwargs, **signature.bind_partial(*args, **own).arguments}
        return span(*map(given.get, names)), own

    if is_async(function):

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


def _arguments(message: Message | None) -> dict[str, Any]:
    """The arguments of a message, by the names of parameters."""
    if message is None:
        return {}
    names = (name.replace("-", "_") for name in message.names)
    return dict(zip(names, message.values, strict=True))


def _ids_of(span: trace.Span) -> dict[str, str]:
    """What log records of the call show, so that they are found with its trace."""
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    trace_id, span_id = (
        trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id),
    )  # fmt: skip
    return {"trace_id": trace_id, "span_id": span_id}


def _attributes() -> dict[str, str | int]:
    """The attributes of a span alone: metrics would have a series for each of their values."""
    running = current()
    if running is None:
        return {}
    return {
        "spop.stream_id": running.stream_id,
        "spop.frame_id": running.frame_id,
        "network.peer.address": running.connection.address,
    }


def _type_name(error: BaseException) -> str:
    """The name of an exception's class, with its module unless it is one of Python's own."""
    type_ = type(error)
    if type_.__module__ == "builtins":
        return type_.__qualname__
    return f"{type_.__module__}.{type_.__qualname__}"
