"""``spop validate``: is an SPOE file what HAProxy takes?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from spop.engine.config import (
    AgentConfig,
    ConfigError,
    Diagnostic,
    Proxy,
    Report,
    Severity,
    check_spoe,
    scopes,
)
from spop.engine.config.model import Event, MessageConfig
from spop.engine.config.versions import Version

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


class VersionType(click.ParamType):  # type: ignore[type-arg]
    """A version of HAProxy."""

    name = "version"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            Version.of_haproxy(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


@click.command()
@click.argument(
    "path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--scope", metavar="NAME", help="The engine of `filter spoe engine NAME`.  [default: every one]"
)
@click.option(
    "--proxy", type=click.Choice([proxy.value for proxy in Proxy]), default=Proxy.FRONTEND.value,
    show_default=True, help="The kind of section that the filter stands in.",
)  # fmt: skip
@click.option(
    "--haproxy-version", type=VersionType(), metavar="X.Y",
    help="Warn of what this HAProxy lacks or ignores.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def validate(
    path: Path, scope: str | None, proxy: str, haproxy_version: str | None, as_json: bool
) -> None:
    """Check an SPOE file as HAProxy 2.6 does, with all errors at once and where they are.

    The exit status is 0 when HAProxy would take the file, with or without warnings, 1 when it
    would not, 2 for a mistake in the command.

    \b
    Examples:
      spop validate spoe.cfg
      spop validate spoe.cfg --scope ip-reputation --haproxy-version 3.2
      spop validate spoe.cfg --json
    """
    try:
        engines = [scope] if scope is not None else scopes(path) or [None]
        reports = [
            check_spoe(path, engine, proxy=Proxy(proxy), haproxy_version=haproxy_version)
            for engine in engines
        ]
        source = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except (ConfigError, OSError) as error:
        raise click.UsageError(" ".join(str(error).split())) from None
    # What is wrong with the file itself is found in every scope of it.
    diagnostics = list(dict.fromkeys(d for report in reports for d in report.diagnostics))
    diagnostics.sort(key=lambda d: (d.location.line, d.location.column))
    valid = all(report.config is not None for report in reports)
    if as_json:
        click.echo(json.dumps(_as_object(path, valid, diagnostics, reports)))
    else:
        _show(path, valid, diagnostics, reports, source)
    sys.exit(0 if valid else 1)


def _show(
    path: Path, valid: bool, diagnostics: list[Diagnostic], reports: list[Report], source: list[str]
) -> None:
    for diagnostic in diagnostics:
        click.echo("\n".join(_lines(diagnostic, source)))
    if not valid:
        count = sum(d.severity is Severity.ERROR for d in diagnostics)
        verdict = click.style("is not valid", fg="red")
        click.echo(f"{path} {verdict}: {count} error{'s' if count > 1 else ''}")
        return
    click.echo(f"{path} {click.style('is valid', fg='green')}")
    for report in reports:
        click.echo("\n".join(_summary(report.result())))


def _lines(diagnostic: Diagnostic, source: list[str]) -> Iterator[str]:
    """A diagnostic, the line it is about, and a caret under the place."""
    location = diagnostic.location
    severity = click.style(diagnostic.severity.value, fg=_COLOURS[diagnostic.severity], bold=True)
    hint = f" ({diagnostic.hint})" if diagnostic.hint else ""
    yield f"{location}: {severity}: {_printable(diagnostic.message + hint)}"
    line = source[location.line - 1] if location.line <= len(source) else ""
    if line.strip():
        before = line[: location.column - 1]
        yield f"    {_printable(line.rstrip())}"
        # Tabs stay tabs, so that the caret is where the terminal has the character.
        yield (
            "    " + "".join(c if c == "\t" else " " for c in before) + click.style("^", bold=True)
        )


def _printable(text: str) -> str:
    """Text that changes nothing on a terminal, as long as it was."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)


def _summary(config: AgentConfig) -> Iterator[str]:
    yield f"engine {click.style(config.engine, bold=True)}"
    yield f"  agent    {config.name}, variables {config.var_prefix}.*"
    yield f"  backend  {config.backend}"
    for event, messages in config.events.items():
        yield f"  {event.value}"
        yield from (f"    {_message(message)}" for message in messages)
    for group in config.groups.values():
        yield f"  group {group.name}"
        yield from (f"    {_message(message)}" for message in group.messages)


def _message(message: MessageConfig) -> str:
    names = [argument.name or argument.expression.text for argument in message.arguments]
    condition = " when its condition " + ("fails" if message.unless else "holds")
    return f"{message.name}({', '.join(names)})" + (condition if message.condition else "")


def _as_object(
    path: Path, valid: bool, diagnostics: list[Diagnostic], reports: list[Report]
) -> dict[str, Any]:
    return {
        "file": str(path),
        "valid": valid,
        "diagnostics": [
            {
                "severity": diagnostic.severity.value,
                "line": diagnostic.location.line,
                "column": diagnostic.location.column,
                "message": diagnostic.message,
                "hint": diagnostic.hint,
            }
            for diagnostic in diagnostics
        ],
        "engines": [_engine(report.config) for report in reports if report.config],
    }


def _engine(config: AgentConfig) -> dict[str, Any]:
    def names(messages: tuple[MessageConfig, ...]) -> list[str]:
        return [message.name for message in messages]

    events: dict[Event, tuple[MessageConfig, ...]] = dict(config.events)
    return {
        "engine": config.engine,
        "agent": config.name,
        "backend": config.backend,
        "var_prefix": config.var_prefix,
        "events": {event.value: names(messages) for event, messages in events.items()},
        "groups": {name: names(group.messages) for name, group in config.groups.items()},
    }
