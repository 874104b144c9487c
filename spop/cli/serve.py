"""``spop serve``: run an agent."""

from __future__ import annotations

import logging
import os

import click

from spop.cli.loading import load_agent
from spop.server import Server
from spop.server.server import DEFAULT_POOL_SIZE

DEFAULT_BIND = "127.0.0.1:9000"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@click.command()
@click.argument("target", metavar="MODULE:AGENT")
@click.option(
    "--bind",
    multiple=True,
    metavar="ADDRESS",
    help=f"HOST:PORT or unix:PATH; may be repeated. [default: {DEFAULT_BIND}]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Selector loops, each in a thread of its own.",
)
@click.option(
    "--pool-size",
    type=click.IntRange(1, 10_000),
    default=DEFAULT_POOL_SIZE,
    show_default=True,
    help="Threads for handlers that are blocking=True.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Seconds that handlers have to finish when the server stops.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def serve(
    target: str,
    bind: tuple[str, ...],
    threads: int,
    pool_size: int,
    drain_timeout: float,
    log_level: str,
) -> None:
    """Serve the agent that MODULE:AGENT names until SIGINT or SIGTERM.

    MODULE is a module's dotted name or the path of a .py file.

    \b
    Examples:
      spop serve app:agent
      spop serve examples/ip_reputation.py:agent --bind 127.0.0.1:9000 --bind unix:/run/spop.sock
    """
    logging.basicConfig(level=log_level.upper(), format=LOG_FORMAT)
    agent = load_agent(target)
    try:
        server = Server(
            agent,
            bind or (DEFAULT_BIND,),
            threads=threads,
            pool_size=pool_size,
            drain_timeout=drain_timeout,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        server.run()
    except OSError as error:
        raise click.UsageError(error.strerror or str(error)) from None
    if server.busy_handlers:
        # Python would wait for them before it exits.
        logging.shutdown()
        os._exit(0)
