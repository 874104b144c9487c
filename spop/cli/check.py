"""``spop check``: is an agent healthy?"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from spop.address import Address
from spop.cli.parameters import ADDRESS, max_frame_size_option, timeout_option
from spop.cli.wire import Wire
from spop.errors import SpopError, reason


@click.command(short_help="Check the health of an agent.")
@click.argument("address", type=ADDRESS)
@timeout_option(2.0)
@max_frame_size_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each check.")
@click.option("--watch", type=click.FloatRange(0.05), metavar="SECONDS", help="Repeat the check.")
@click.option(
    "--count", type=click.IntRange(1), help="With --watch: number of checks.  [default: no end]"
)
def check(
    address: Address, as_json: bool, watch: float | None, count: int | None, **options: Any
) -> None:
    """Check the health of an agent, as HAProxy's `option spop-check` does.

    A second HELLO, which is no health check, shows what the agent can do. The exit status is 0
    if the agent was healthy at the last check, 1 if it did not answer or refused, 2 for a mistake
    in the command.

    \b
    Examples:
      spop check 127.0.0.1:9000
      spop check unix:/run/agent.sock --json
      spop check 127.0.0.1:9000 --watch 1
    """
    results: list[bool] = []
    left = count if watch else 1
    try:
        while left is None or len(results) < left:
            if results:
                time.sleep(watch or 0)
            found = examine(address, **options)
            results.append(found["healthy"])
            click.echo(json.dumps(found) if as_json else _line(found))
    except KeyboardInterrupt:
        click.echo("", err=True)
    if watch:
        summary = f"{address}: {len(results)} checks, {results.count(True)} healthy"
        click.echo(f"{summary}, {results.count(False)} unhealthy", err=True)
    sys.exit(0 if results and results[-1] else 1)


def examine(address: Address, **options: Any) -> dict[str, Any]:
    """The result of two HELLOs, in types of JSON. The options are those of `Wire`."""
    found: dict[str, Any] = {"address": str(address), "healthy": False}
    started = time.perf_counter()
    try:
        with Wire(address, healthcheck=True, **options):
            found["seconds"] = round(time.perf_counter() - started, 6)
        with Wire(address, engine_id="spop-check", **options) as wire:
            found |= {
                "healthy": True,
                "version": wire.peer.version,
                "max_frame_size": wire.peer.max_frame_size,
                "capabilities": sorted(wire.peer.capabilities),
            }
    except (OSError, SpopError) as error:
        found["error"] = reason(error)
        found["status"] = getattr(error, "code", None)
    return {**found, "well": found["healthy"]}  # Its old name, for one release more.


def _line(found: dict[str, Any]) -> str:
    if not found["healthy"]:
        status = f" (status {found['status']})" if found["status"] is not None else ""
        unhealthy = click.style("is unhealthy", fg="red")
        return f"{found['address']} {unhealthy}: {found['error']}{status}"
    return (
        f"{found['address']} {click.style('is healthy', fg='green')}: SPOP {found['version']}, "
        f"max-frame-size {found['max_frame_size']}, "
        f"{','.join(found['capabilities']) or 'no capabilities'}, "
        f"{found['seconds'] * 1000:.2f} ms"
    )
