"""What ``spop engine`` does: a stream through an engine, and what came of it on the screen."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from spop.cli import tree
from spop.cli.notation import as_json, described
from spop.cli.stream_notation import parse_stream
from spop.engine import BlockingStream, ConfigError, Engine, Event, Processing, Stream
from spop.errors import reason
from spop.frames import Notify

Processed = Sequence[tuple[str, Processing | None]]

_HTTP_EVENTS = {event for event in Event if "http" in event}
_RESPONSE_EVENTS = (Event.ON_TCP_RESPONSE, Event.ON_HTTP_RESPONSE)


def run_stream(
    path: Path,
    words: Sequence[str],
    events: Sequence[str],
    groups: Sequence[str],
    *,
    as_object: bool,
    verbose: bool,
    **settings: Any,
) -> bool:
    """Run one stream and print. Returns whether all messages were answered.

    Args:
        path, settings: those of `Engine.from_file`.

    Raises:
        click.UsageError: a word, an event, a group or a file is wrong.
    """
    # What is to be told, is printed; the log would say it again.
    logging.getLogger("spop.engine").addHandler(logging.NullHandler())
    stream = parse_stream(words, http=not _HTTP_EVENTS.isdisjoint(events))
    try:
        engine = Engine.from_file(path, **settings)
        for group in groups:
            engine.config.group(group)
    except (ConfigError, ValueError, OSError) as error:
        raise click.UsageError(_first_line(error)) from None
    with engine, engine.stream(stream) as context:
        processed = _process(context, stream, events, groups)
        if as_object:
            click.echo(json.dumps(_object(engine, context, processed)))
        else:
            _print(engine, context, processed, verbose)
    return not any(processing and processing.status for _, processing in processed)


def _process(
    context: BlockingStream, stream: Stream, events: Sequence[str], groups: Sequence[str]
) -> Processed:
    """Have the events happen in their order, then send the groups."""
    response, stream.response = stream.response, None
    order = list(Event)
    processed: list[tuple[str, Processing | None]] = []
    for event in sorted(events, key=lambda e: order.index(Event(e)) if e in order else -1):
        if event in _RESPONSE_EVENTS:
            stream.response = response
        processed.append((event, context.event(event)))
    stream.response = response
    processed += [(f"group {name}", context.send_group(name)) for name in groups]
    return processed


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
        click.echo(f"{click.style(name, bold=True)} = {described(value)}")
    for name, value in sorted(context.ignored.items()):
        note = click.style(f"ignored: {_why_ignored(name)}", fg="yellow")
        click.echo(f"{name} = {described(value)} {note}")
    if context.ignored:
        click.echo(_how_to_let_in(context.ignored))


def _why_ignored(variable: str) -> str:
    """The reason for which the agent may not set a variable (``option var-prefix``)."""
    if variable.startswith("proc."):
        return "agents set no new variables of scope proc"
    return "the SPOE file and the rules do not name it, as HAProxy before 2.5 wants"


def _how_to_let_in(variables: Iterable[str]) -> str:
    """What to add so that the agent may set these."""
    proc = sorted(name for name in variables if name.startswith("proc."))
    others = sorted({name.split(".", 2)[2] for name in variables if not name.startswith("proc.")})
    ways = []
    if others:
        ways.append(
            f"to let it in: 'register-var-names {' '.join(others)}' in the spoe-agent, or 'option "
            "force-set-var' there, or a rule that reads it (--haproxy-cfg), or --haproxy-version 2.5"
        )
    if proc:
        ways.append(f"to let it in: a rule that reads {' and '.join(proc)} (--haproxy-cfg)")
    return "\n".join(f"  {way}" for way in ways)


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
