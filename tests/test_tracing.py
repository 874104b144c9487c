"""OpenTelemetry spans from a trace context that arrives as an argument."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from haproxy import wait_until
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from spop import Agent, Cache, Client, Message
from spop.context import log_ids
from spop.logs import JSONFormatter
from spop.tracing import trace_messages

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.mark.parametrize("kind", ["inline", "blocking", "async"])
@pytest.mark.parametrize("takes_it", [False, True])
def test_a_message_is_a_span_of_the_trace_it_brings(kind: str, takes_it: bool) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    agent = Agent()

    def answer(n: int) -> dict[str, Any]:
        span = trace.get_current_span().get_span_context()
        return {"txn.n": n, "txn.trace": f"{span.trace_id:032x}"}

    if kind == "async":

        async def handler(n: int) -> dict[str, Any]:
            await asyncio.sleep(0)
            return answer(n)
    elif takes_it:

        def handler(n: int, traceparent: str | None = None) -> dict[str, Any]:  # type: ignore[misc]
            return {**answer(n), "txn.parent": traceparent}
    else:
        handler = answer  # type: ignore[assignment]
    agent.message("m", blocking=kind == "blocking")(handler)
    trace_messages(agent, provider=provider)
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        ack = client.notify([Message("m", n=5, traceparent=PARENT)])
        assert ack.variables["txn.n"] == 5
        assert ack.variables["txn.trace"] == TRACE
        client.notify("m", n=6)
    first, second = exporter.get_finished_spans()
    assert first.name == "spop/m"
    assert first.kind is trace.SpanKind.SERVER
    assert first.parent is not None
    assert f"{first.parent.span_id:016x}" == "b7ad6b7169203331"
    assert first.attributes is not None
    assert first.attributes["spop.stream_id"] == ack.stream_id
    assert first.attributes["rpc.system.name"] == "spop"
    assert first.attributes["rpc.method"] == "spop/m"
    assert "error.type" not in first.attributes
    assert second.parent is None


def test_a_failing_handlers_span_has_the_error() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    agent = Agent()

    @agent.message("m")
    def handler() -> None:
        raise ValueError("broken")

    trace_messages(agent, provider=provider)
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("m").actions == []
    (span,) = exporter.get_finished_spans()
    assert not span.status.is_ok
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ValueError"
    assert agent.errors == {"m": 1}


@pytest.mark.parametrize("kind", ["inline", "blocking", "async"])
def test_durations_are_recorded_by_method_and_error(kind: str) -> None:
    reader = InMemoryMetricReader()
    agent = Agent("a")

    class OddError(Exception):
        pass

    if kind == "async":

        async def handler(n: int) -> None:
            if n < 0:
                raise OddError
    else:

        def handler(n: int) -> None:  # type: ignore[misc]
            if n < 0:
                raise OddError

    agent.message("m", blocking=kind == "blocking")(handler)
    trace_messages(agent, meter_provider=MeterProvider([reader]))
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        for n in (1, 2, -1):
            client.notify("m", n=n)
    found = reader.get_metrics_data()
    assert found is not None
    (metric,) = found.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("rpc.server.call.duration", "s")
    method = {"rpc.system.name": "spop", "rpc.method": "a/m"}
    points: dict[Any, Any] = {
        each.attributes.get("error.type"): each for each in metric.data.data_points
    }
    assert {error: point.count for error, point in points.items()} == {
        None: 2,
        f"{__name__}.{OddError.__qualname__}": 1,
    }
    assert dict(points[None].attributes) == method
    assert 0 < points[None].sum < 1
    assert points[None].explicit_bounds[0] == 0.0001


@pytest.mark.usefixtures("context_filter")
@pytest.mark.parametrize("kind", ["inline", "blocking", "async"])
def test_log_records_have_the_ids_of_the_span(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Beside other ids, and in the line of the failure, too."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    agent = Agent()

    def look() -> None:
        logging.getLogger("mine").warning("seen")
        raise ValueError("broken")

    async def look_async() -> None:
        look()

    agent.message("look", blocking=kind == "blocking")(look_async if kind == "async" else look)
    log_ids(agent)
    trace_messages(agent, provider=provider)
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        client.notify("look", **{"unique-id": "u1", "traceparent": PARENT})
        wait_until(lambda: any("failed" in r.getMessage() for r in caplog.records), "a failure")
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    records = [r for r in caplog.records if r.name == "mine" or "failed" in r.getMessage()]
    assert len(records) == 2
    for record in records:
        shown = json.loads(JSONFormatter().format(record))
        assert shown["trace_id"] == TRACE
        assert shown["span_id"] == f"{span.context.span_id:016x}"
        assert shown["unique_id"] == "u1"


def test_without_its_extra_it_says_which() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import spop.tracing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "spop.tracing needs an extra: pip install 'haproxy-spop[otel]'" in done.stderr
    assert "During handling" not in done.stderr


@pytest.mark.parametrize("kind", ["inline", "blocking", "async"])
def test_a_cached_answer_does_not_depend_on_the_trace(kind: str) -> None:
    exporter, provider, agent = InMemorySpanExporter(), TracerProvider(), Agent()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def asynchronous(n: int) -> dict[str, Any]:
        return {"txn.n": n}

    def plain(n: int) -> dict[str, Any]:
        return {"txn.n": n}

    function = asynchronous if kind == "async" else plain
    agent.message("m", blocking=kind == "blocking", cache=Cache(60.0, 10))(function)
    trace_messages(agent, traceparent="trace-parent", provider=provider)
    with agent.serve_in_background() as server, Client(server.address) as client:
        for parent in (PARENT, PARENT.replace(TRACE, "f" * 32)):
            message = Message("m", {"n": 5, "trace-parent": parent})
            assert client.notify([message]).variables == {"txn.n": 5}
    (span,) = exporter.get_finished_spans()
    assert f"{span.get_span_context().trace_id:032x}" == TRACE
