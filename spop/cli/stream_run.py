"""What ``spop engine`` does: a stream through an engine, and what came of it on the screen."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from spop.address import Address
from spop.cli import tree
from spop.cli.notation import as_json, show, type_name
from spop.cli.stream_notation import parse_stream
from spop.engine import BlockingStream, ConfigError, Engine, Event, Processing, Stream
from spop.errors import reason
from spop.frames import Notify
from spop.values import DecodedValue

Processed = Sequence[tuple[str, Processing | None]]

_HTTP_EVENTS = {event for event in Event if "http" in event}
_RESPONSE_EVENTS = (Event.ON_TCP_RESPONSE, Event.ON_HTTP_RESPONSE)


class _Everywhere(dict[str, list[str]]):
    """The same addresses for each backend."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses

    def __missing__(self, name: str) -> list[str]:
        return self._addresses


def everywhere(addresses: Iterable[Address]) -> dict[str, list[str]]:
    """A mapping that finds these addresses for any backend."""
    return _Everywhere(list(map(str, addresses)))


class Run:
    """A run of one stream.

    Args:
        path, scope, backends, haproxy_version: those of `Engine.from_file`.
    """

    def __init__(
        self, path: Path, scope: str | None, backends: Any, haproxy_version: str | None
    ) -> None:
        self._path = path
        self._scope = scope
        self._backends = backends
        self._haproxy_version = haproxy_version

    def __call__(
        self,
        words: Sequence[str],
        events: Sequence[str],
        groups: Sequence[str],
        *,
        as_object: bool,
        verbose: bool,
    ) -> bool:
        """Run it and print. Returns whether all messages were answered.

        Raises:
            click.UsageError: a word, an event, a group or a file is wrong.
        """
        # What is to be told, is printed; the log would say it again.
        logging.getLogger("spop.engine").addHandler(logging.NullHandler())
        stream = parse_stream(words, http=not _HTTP_EVENTS.isdisjoint(events))
        try:
            with self._engine() as engine, engine.stream(stream) as context:
                processed = _process(context, stream, events, groups)
                if as_object:
                    click.echo(json.dumps(_object(engine, context, processed)))
                else:
                    _print(engine, context, processed, verbose)
        except (ConfigError, ValueError, OSError) as error:
            raise click.UsageError(_first_line(error)) from None
        return not any(processing and processing.status for _, processing in processed)

    def _engine(self) -> Engine:
        return Engine.from_file(
            self._path,
            self._scope,
            backends=self._backends,
            haproxy_version=self._haproxy_version,
        )


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
        click.echo(_variable(click.style(name, bold=True), value))
    for name, value in sorted(context.ignored.items()):
        note = click.style("ignored: nothing knows it", fg="yellow")
        click.echo(f"{_variable(name, value)} {note}")
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
