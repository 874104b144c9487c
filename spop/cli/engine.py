"""``spop engine``: one stream through an SPOE file, from the command line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from spop.address import Address
from spop.cli import tree
from spop.cli.notation import as_json, show, type_name
from spop.cli.parameters import ADDRESS, reason
from spop.cli.stream_notation import parse_stream
from spop.cli.validate import VersionType
from spop.engine import BlockingStream, ConfigError, Engine, Event, Processing
from spop.frames import Notify
from spop.values import DecodedValue

_CONNECTION_EVENTS = (
    Event.ON_CLIENT_SESSION, Event.ON_FRONTEND_TCP_REQUEST, Event.ON_BACKEND_TCP_REQUEST,
    Event.ON_SERVER_SESSION, Event.ON_TCP_RESPONSE,
)  # fmt: skip


@click.command()
@click.argument(
    "path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.argument("words", nargs=-1, metavar="[name=value]...")
@click.option(
    "--event", "events", multiple=True, type=click.Choice([event.value for event in Event]),
    help="An event that happens. Several do in HAProxy's order.",
)  # fmt: skip
@click.option("--group", "groups", multiple=True, help="A group to send after the events.")
@click.option("--scope", metavar="NAME", help="The engine of `filter spoe engine NAME`.")
@click.option(
    "--agent", "agents", multiple=True, type=ADDRESS, metavar="ADDRESS",
    help="Where the agent is, for any `use-backend`.",
)  # fmt: skip
@click.option(
    "--haproxy-cfg", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The haproxy.cfg with the backend.",
)  # fmt: skip
@click.option("--haproxy-version", type=VersionType(), metavar="X.Y", help="Behave as this one.")
@click.option("--json", "as_object", is_flag=True, help="Print a JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Show the messages that are sent.")
def engine(
    path: Path,
    words: tuple[str, ...],
    events: tuple[str, ...],
    groups: tuple[str, ...],
    scope: str | None,
    agents: tuple[Address, ...],
    haproxy_cfg: Path | None,
    haproxy_version: str | None,
    as_object: bool,
    verbose: bool,
) -> None:
    """Run one stream through an SPOE file's engine, as HAProxy's filter would: evaluate the
    messages of its events, ask the agent, set variables. Prints those, and HAProxy's log lines.

    The stream is told by words: method=GET url=/x?y=z (or path= and query=) version=1.1
    hdr:NAME=VALUE body=TEXT (@FILE for a file's bytes) src=IP src_port=N dst=IP dst_port=N
    fe_name= be_name= unique_id= ssl=true ssl:sni=NAME, of the response status=200
    res.hdr:NAME=VALUE res.body= res.version=, and var:txn.NAME=VALUE for variables that are set
    already.

    The exit status is 0 when all went well, 1 when messages were not answered, 2 for a mistake
    in the command or in the file.

    \b
    Examples:
      spop engine spoe.cfg --agent 127.0.0.1:9000 --event on-client-session src=10.0.0.1
      spop engine spoe.cfg --haproxy-cfg haproxy.cfg --event on-frontend-http-request \\
          method=POST path=/login hdr:user-agent=curl body=@request.bin
      spop engine waf.cfg --agent unix:/run/waf.sock --group waf-request path=/ -v
    """
    if not events and not groups:
        raise click.UsageError("nothing happens: name an --event or a --group")
    if bool(agents) is bool(haproxy_cfg):
        raise click.UsageError("where is the agent? --agent ADDRESS or --haproxy-cfg FILE")
    logging.getLogger("spop.engine").addHandler(logging.NullHandler())
    stream = parse_stream(words, http=bool(set(events) - set(_CONNECTION_EVENTS)))
    response, stream.response = stream.response, None
    try:
        made = Engine.from_file(
            path,
            scope,
            backends=haproxy_cfg or _Everywhere(map(str, agents)),
            haproxy_version=haproxy_version,
        )
    except (ConfigError, ValueError, OSError) as error:
        raise click.UsageError(_first_line(error)) from None
    with made, made.stream(stream) as context:
        processed = []
        try:
            for event in (event for event in Event if event.value in events):
                if event in (Event.ON_TCP_RESPONSE, Event.ON_HTTP_RESPONSE):
                    stream.response = response
                processed.append((event.value, context.event(event)))
            stream.response = response
            processed += [(f"group {name}", context.send_group(name)) for name in groups]
        except ValueError as error:
            raise click.UsageError(_first_line(error)) from None
        if as_object:
            click.echo(json.dumps(_object(made, context, processed)))
        else:
            _print(made, context, processed, verbose)
    sys.exit(1 if any(p is not None and p.status for _, p in processed) else 0)


Processed = Sequence[tuple[str, Processing | None]]


class _Everywhere(dict[str, list[str]]):
    """The same addresses for each backend."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._addresses = list(addresses)

    def __missing__(self, name: str) -> list[str]:
        return self._addresses


def _first_line(error: Exception) -> str:
    first, *more = str(error).splitlines() or [reason(error)]
    return first + (f" (and {len(more)} more: spop validate shows them)" if more else "")


def _print(engine: Engine, context: BlockingStream, processed: Processed, verbose: bool) -> None:
    for name, processing in processed:
        if processing is None:
            click.echo(f"{name}: nothing was sent")
            continue
        if verbose:
            frame = Notify(*processing.ids, processing.messages or ())
            click.echo("\n".join(tree.lines(frame)))
        click.echo(engine.log_line(processing))
    for name, value in sorted(context.vars.items()):
        click.echo(_variable(click.style(name, bold=True), value))
    for name, value in sorted(context.ignored.items()):
        reason = click.style("ignored: nothing knows it", fg="yellow")
        click.echo(f"{_variable(name, value)} {reason}")
    if context.ignored:
        click.echo("  (rules that read it, register-var-names or force-set-var make it known)")


def _variable(name: str, value: DecodedValue) -> str:
    return f"{name} = {show(value)} ({type_name(value)})"


def _object(engine: Engine, context: BlockingStream, processed: Processed) -> dict[str, Any]:
    return {
        "processed": [
            {
                "name": name,
                "sent": processing is not None,
                "status": None if processing is None else int(processing.status),
                "log": None if processing is None else engine.log_line(processing),
            }
            for name, processing in processed
        ],
        "variables": {name: as_json(value) for name, value in context.vars.items()},
        "ignored": {name: as_json(value) for name, value in context.ignored.items()},
    }
