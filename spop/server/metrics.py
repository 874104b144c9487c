"""A server's status as Prometheus metrics; `prometheus_client` writes them."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from spop.server.status import WORKER_STATES, Status


def exposition(status: Status, accept: str) -> tuple[str, str]:
    """The content type and the text, in the format that `accept` asks for."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(_Collector(status))
    return content_type, encode(registry).decode()


class _Collector(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        limits = CounterMetricFamily(
            "spop_limit_reached", "How often a limit took effect.", labels=["limit"]
        )
        for limit, count in self._status.limits.items():
            limits.add_metric([limit], count)
        yield limits
        yield self._disconnects()
        yield from self._handlers()
        yield from self._own()

    def _gauges(self) -> Iterator[Metric]:
        status, counts = self._status, self._status.counts
        yield InfoMetricFamily(
            "spop_build",
            "The version that runs.",
            {
                "version": status.version,
                "codec": status.codec,
                "agent": status.agent,
                "python": platform.python_version(),
            },
        )
        for name, meaning, value in (
            ("alive", "Whether a worker does its work, as /healthz has it.", status.alive),
            ("ready", "Whether connections are served, as /readyz has it.", status.ready),
            (
                "start_time_seconds",
                "When the service started, in seconds since the epoch.",
                status.started,
            ),
            ("connections", "Open connections.", counts.connections),
            ("frames_in_hand", "NOTIFY frames not yet answered.", counts.frames_in_hand),
            ("queue_depth", "Messages that wait for a thread.", counts.queued),
            (
                "queue_oldest_seconds",
                "How long the first of them has waited.",
                counts.oldest_job,
            ),
            ("handlers_running", "Handlers that run elsewhere.", counts.running),
        ):
            yield GaugeMetricFamily(f"spop_{name}", meaning, value)
        workers = GaugeMetricFamily("spop_workers", "Worker processes, by state.", labels=["state"])
        states = Counter(worker.state for worker in status.workers)
        for state in WORKER_STATES:
            workers.add_metric([state], states[state])
        yield workers

    def _counters(self) -> Iterator[Metric]:
        status, counts = self._status, self._status.counts
        for name, meaning, value in (
            ("worker_restarts", "Workers restarted because they died.", status.restarts),
            (
                "frames_lost",
                "NOTIFY frames in the hands of workers that died.",
                status.frames_lost,
            ),
            ("frames_received", "NOTIFY frames received.", counts.frames_received),
            ("frames_sent", "ACK frames made.", counts.frames_sent),
            (
                "acks_elsewhere",
                "ACKs sent on another connection of the engine.",
                counts.acks_elsewhere,
            ),
            ("acks_dropped", "ACKs that nobody was left to take.", counts.acks_dropped),
            ("unknown_messages", "Messages that have no handler.", counts.unknown_messages),
            ("received_bytes", "Bytes received.", counts.bytes_received),
            ("sent_bytes", "Bytes sent.", counts.bytes_sent),
            ("connections_opened", "Connections accepted.", counts.connections_opened),
            ("health_checks", "Health checks answered.", counts.health_checks),
            (
                "connections_handed_over",
                "Connections given to a new worker.",
                counts.connections_handed_over,
            ),
            ("accept_errors", "Connections that could not be accepted.", counts.accept_errors),
        ):
            yield CounterMetricFamily(f"spop_{name}", meaning, value)

    def _own(self) -> Iterator[Metric]:
        """The agent's own metrics. Those of one name are one family."""
        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for each in self._status.metrics:
            if each.name not in families:
                families[each.name] = kinds[each.kind](
                    each.name, each.meaning, labels=[*each.labels]
                )
            families[each.name].add_metric([*each.labels.values()], each.value)
        yield from families.values()

    def _disconnects(self) -> Metric:
        family = CounterMetricFamily(
            "spop_disconnects",
            "DISCONNECTs, by who sent them and status code.",
            labels=["sender", "status"],
        )
        for sender, counts in self._status.disconnects.items():
            for code, count in counts.items():
                family.add_metric([sender, code], count)
        return family

    def _handlers(self) -> Iterator[Metric]:
        seconds = HistogramMetricFamily(
            "spop_message_duration_seconds", "Run time of handlers.", labels=["message"]
        )
        for handler in self._status.handlers:
            seconds.add_metric([handler.name], handler.buckets, handler.seconds)
        yield seconds
        for kind, name, meaning, count in (
            (CounterMetricFamily, "message_errors", "Messages that failed.", "errors"),
            (CounterMetricFamily, "message_timeouts", "Handlers that took too long.", "timeouts"),
            (CounterMetricFamily, "cache_hits", "Messages answered from the cache.", "hits"),
            (
                CounterMetricFamily,
                "cache_misses",
                "Messages whose answer was not cached.",
                "misses",
            ),
            (GaugeMetricFamily, "cache_answers", "Cached answers.", "kept"),
        ):
            family = kind(f"spop_{name}", meaning, labels=["message"])
            for handler in self._status.handlers:
                family.add_metric([handler.name], getattr(handler, count))
            yield family
