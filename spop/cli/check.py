"""``spop check``: is an agent healthy?"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from spop.address import Address
from spop.cli.decoder import begins_frame
from spop.cli.parameters import ADDRESS, Seconds, Whole, max_frame_size_option, timeout_option
from spop.cli.wire import Wire
from spop.constants import FLAGS_END, LENGTH_SIZE, FrameType
from spop.errors import SpopError, reason

_AGENT_TYPES = (FrameType.AGENT_HELLO, FrameType.AGENT_DISCONNECT)


@click.command(short_help="Check the health of an agent.")
@click.argument("address", type=ADDRESS)
@timeout_option(2.0)
@max_frame_size_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each check.")
@click.option("--watch", type=Seconds(0.05), metavar="SECONDS", help="Repeat the check.")
@click.option("--count", type=Whole(1), help="With --watch: number of checks.  [default: no end]")
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
    answers = _Answers()
    try:
        with Wire(address, trace=answers.hear, healthcheck=True, **options):
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
        if hint := answers.hint:
            found["hint"] = hint
    return {**found, "well": found["healthy"]}  # Its old name, for one release more.


class _Answers:
    """The bytes that came as an answer to a HELLO."""

    def __init__(self) -> None:
        self._asked = False
        self._came = bytearray()

    def hear(self, sent: bool, data: bytes) -> None:
        self._asked = self._asked or sent
        if not sent:
            self._came += data

    @property
    def hint(self) -> str:
        """Why it may not be SPOP; empty if it is, or if there was no connection."""
        if not self._asked:
            return ""
        if not self._came:
            return "is it an agent's address? An agent behind TLS does not answer plain SPOP"
        head = self._came[LENGTH_SIZE:FLAGS_END]
        if self._came[0] or (len(self._came) >= FLAGS_END and not begins_frame(head, _AGENT_TYPES)):
            return "this is not SPOP. Is it an agent's address?"
        return ""


def _line(found: dict[str, Any]) -> str:
    if not found["healthy"]:
        status = f" (status {found['status']})" if found["status"] is not None else ""
        unhealthy = click.style("is unhealthy", fg="red")
        hint = f"; hint: {found['hint']}" if "hint" in found else ""
        return f"{found['address']} {unhealthy}: {found['error']}{status}{hint}"
    return (
        f"{found['address']} {click.style('is healthy', fg='green')}: SPOP {found['version']}, "
        f"max-frame-size {found['max_frame_size']}, "
        f"{','.join(found['capabilities']) or 'no capabilities'}, "
        f"{found['seconds'] * 1000:.2f} ms"
    )
