"""Log lines about the service as a whole: it serves, and it has stopped."""

from __future__ import annotations

from spop import codec
from spop.address import Address
from spop.logs import SafeLogger, fields
from spop.options import Options

logger: SafeLogger = SafeLogger("spop.server")


def log_start(name: str, addresses: list[Address], options: Options) -> None:
    """Log once that the agent serves."""
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


def log_stop(seconds: float) -> None:
    """Log once that the service has stopped."""
    what = fields("stopped", duration=round(seconds, 3))
    logger.info("stopped in %.1f s", seconds, extra=what)
