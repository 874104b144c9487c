"""A server's status as Prometheus metrics; `prometheus_client` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from spop.counters import BUCKET_SHIFT, BUCKETS, Cell, RouteCell, Totals

_COUNTERS = {
    "spop_frames_received": ("NOTIFY frames received.", Cell.NOTIFIES),
    "spop_frames_sent": ("ACK frames made.", Cell.ACKS),
    "spop_acks_elsewhere": (
        "ACKs sent on another connection of the engine.",
        Cell.ACKS_ELSEWHERE,
    ),
    "spop_acks_dropped": ("ACKs that nobody was left to take.", Cell.ACKS_DROPPED),
    "spop_unknown_messages": ("Messages that have no handler.", Cell.UNKNOWN_MESSAGES),
    "spop_received_bytes": ("Bytes received.", Cell.BYTES_RECEIVED),
    "spop_sent_bytes": ("Bytes sent.", Cell.BYTES_SENT),
    "spop_connections_opened": ("Connections accepted.", Cell.CONNECTIONS_OPENED),
    "spop_health_checks": ("Health checks answered.", Cell.HEALTHCHECKS),
    "spop_connections_handed_over": (
        "Connections given to a new worker.",
        Cell.HANDED_OVER,
    ),
    "spop_accept_errors": ("Connections that could not be accepted.", Cell.ACCEPT_ERRORS),
}
_LIMITS = {
    "max_connections": Cell.REFUSED_CONNECTIONS,
    "max_connections_per_peer": Cell.REFUSED_PER_PEER,
    "allow": Cell.REFUSED_NOT_ALLOWED,
    "handshake_timeout": Cell.HANDSHAKE_TIMEOUTS,
    "idle_timeout": Cell.IDLE_TIMEOUTS,
    "max_payload_size": Cell.PAYLOADS_TOO_BIG,
    "max_in_flight": Cell.PAUSED_IN_FLIGHT,
    "max_unsent": Cell.PAUSED_UNSENT,
    "max_messages_or_arguments": Cell.TOO_MANY_MESSAGES,
    "max_frame_size": Cell.FRAMES_TOO_BIG,
    "max_queue": Cell.REJECTED,
}


def exposition(status: dict[str, Any], accept: str) -> tuple[str, str]:
    """The content type and the text, in the format that `accept` asks for."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(_Collector(status))
    return content_type, encode(registry).decode()


class _Collector(Collector):
    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status
        self._totals = Totals()
        self._totals.cells = status["cells"]
        self._totals.routes = status["routes"]

    def collect(self) -> Iterator[Metric]:
        yield from self._server()
        for name, (meaning, cell) in _COUNTERS.items():
            yield CounterMetricFamily(name, meaning, self._totals.cells[cell])
        limits = CounterMetricFamily(
            "spop_limit_reached", "How often a limit took effect.", labels=["limit"]
        )
        for limit, cell in _LIMITS.items():
            limits.add_metric([limit], self._totals.cells[cell])
        yield limits
        yield self._disconnects()
        yield from self._handlers()

    def _server(self) -> Iterator[Metric]:
        status, totals = self._status, self._totals
        info = GaugeMetricFamily("spop_info", "What runs.", labels=["version", "codec", "agent"])
        info.add_metric([status["version"], status["codec"], status["agent"]], 1)
        yield info
        for name, meaning, value in (
            ("spop_ready", "Whether connections are served.", int(status["ready"])),
            ("spop_start_time_seconds", "When it started.", status["started"]),
            ("spop_connections", "Open connections.", totals.connections),
            ("spop_frames_in_hand", "NOTIFY frames not yet answered.", totals.in_hand),
            ("spop_queue_depth", "Messages that wait for a thread.", totals.cells[Cell.QUEUED]),
            ("spop_handlers_running", "Handlers that run elsewhere.", totals.cells[Cell.RUNNING]),
            ("spop_workers", "Worker processes.", len(status["workers"])),
        ):
            yield GaugeMetricFamily(name, meaning, value)
        yield CounterMetricFamily(
            "spop_worker_restarts", "Workers restarted because they died.", status["restarts"]
        )
        yield CounterMetricFamily(
            "spop_frames_lost", "NOTIFY frames in the hands of workers that died.",
            status["frames_lost"],
        )  # fmt: skip

    def _disconnects(self) -> Metric:
        family = CounterMetricFamily(
            "spop_disconnects",
            "DISCONNECTs, by who sent them and status code.",
            labels=["sender", "status"],
        )
        for sender, base in (
            ("agent", Cell.DISCONNECTS_SENT),
            ("peer", Cell.DISCONNECTS_RECEIVED),
        ):
            for status, count in self._totals.status_counts(base).items():
                family.add_metric([sender, str(int(status))], count)
        return family

    def _handlers(self) -> Iterator[Metric]:
        errors = CounterMetricFamily(
            "spop_message_errors", "Messages that failed.", labels=["message"]
        )
        timeouts = CounterMetricFamily(
            "spop_message_timeouts", "Handlers that took too long.", labels=["message"]
        )
        seconds = HistogramMetricFamily(
            "spop_message_seconds", "Time that messages took.", labels=["message"]
        )
        for name, route in self._totals.routes.items():
            errors.add_metric([name], route[RouteCell.ERRORS])
            timeouts.add_metric([name], route[RouteCell.TIMEOUTS])
            seconds.add_metric([name], _buckets(route), route[RouteCell.NANOSECONDS] / 1e9)
        yield from (errors, timeouts, seconds)


def _buckets(route: list[int]) -> list[tuple[str, float]]:
    """Cumulated, as Prometheus has them: upper bound in seconds and count."""
    counted = 0
    buckets: list[tuple[str, float]] = []
    for index, count in enumerate(route[RouteCell.BUCKETS :]):
        counted += count
        last = index == BUCKETS - 1
        buckets.append(("+Inf" if last else str(2 ** (index + BUCKET_SHIFT) / 1e9), counted))
    return buckets
