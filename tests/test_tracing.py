"""OpenTelemetry spans from a trace context that arrives as an argument."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from spop import Agent, Client, Message
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
    assert first.name == "spop m"
    assert first.parent is not None
    assert f"{first.parent.span_id:016x}" == "b7ad6b7169203331"
    assert first.attributes is not None
    assert first.attributes["spop.stream_id"] == ack.stream_id
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
    assert agent.errors == {"m": 1}


def test_without_its_extra_it_says_which() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import spop.tracing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "spop.tracing needs an extra: pip install 'haproxy-spop[otel]'" in done.stderr
    assert "During handling" not in done.stderr
