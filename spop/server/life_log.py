"""The log lines about the whole service: it serves, it has stopped."""

from __future__ import annotations

from spop import codec
from spop.address import Address
from spop.counters import Totals
from spop.logs import SafeLogger, fields
from spop.options import Options
from spop.server.ages import warn_if_short

logger: SafeLogger = SafeLogger("spop.server")


def log_start(name: str, addresses: list[Address], options: Options) -> None:
    """Log once that the agent serves."""
    warn_if_short(options.max_connection_age)
    logger.info(
        "agent %r serves on %s (codec: %s, processes: %d, threads: %d%s)",
        name,
        ", ".join(map(str, addresses)),
        codec.IMPLEMENTATION,
        options.processes,
        options.threads,
        ", TLS" if options.tls_cert else "",
        extra=fields(
            "serves",
            agent=name,
            addresses=",".join(map(str, addresses)),
            codec=codec.IMPLEMENTATION,
            processes=options.processes,
            threads=options.threads,
            tls=bool(options.tls_cert),
        ),
    )


def log_stop(seconds: float, totals: Totals) -> None:
    """Log once that the service has stopped, and what that cost."""
    crossed = totals.counts().frames_crossed
    what = fields("stopped", duration=round(seconds, 3), frames_crossed=crossed)
    lost = f"; {crossed} frames have crossed a DISCONNECT and got no ACK" if crossed else ""
    logger.info("stopped in %.1f s%s", seconds, lost, extra=what)
