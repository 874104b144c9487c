"""What ``spop validate`` says of a file: text for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import click

from spop.agent import Agent
from spop.constants import DEFAULT_BUFSIZE
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
from spop.engine.config.model import MessageConfig
from spop.engine.config.versions import Version
from spop.engine.validate import EngineSetup, Setup, check_setup, facts_of, read_haproxy_cfg
from spop.engine.validate import bufsize as bufsize_of
from spop.errors import reason

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


class Verdict(NamedTuple):
    """A file's engines, and what is wrong with them.

    Attributes:
        together: what is wrong with the file, the haproxy.cfg and the agent together.
    """

    path: Path
    version: str
    reports: list[Report]
    together: list[Diagnostic]

    @classmethod
    def of(
        cls,
        path: Path,
        scope: str | None,
        proxy: str,
        haproxy_version: str,
        haproxy_cfg: Path | None = None,
        agent: Agent | None = None,
        bufsize: int | None = None,
    ) -> Self:
        """Read a scope, or every one that the file has.

        Raises:
            click.UsageError: a file can't be read.
        """
        try:
            known = scopes(path)
            version = Version.of_haproxy(haproxy_version)
            around = read_haproxy_cfg(haproxy_cfg, version) if haproxy_cfg else None
            # A limit below HAProxy's default is a finding of the haproxy.cfg.
            limit = bufsize or max(bufsize_of(around), DEFAULT_BUFSIZE)
            read = partial(
                check_spoe, path, proxy=Proxy(proxy), haproxy_version=haproxy_version,
                bufsize=limit, environment=around.environment if around else None,
            )  # fmt: skip
            reports = [
                read(engine) for engine in ([scope] if scope is not None else known or [None])
            ]
        except (ConfigError, OSError) as error:
            raise click.UsageError(reason(error)) from None
        engines = [EngineSetup(r.config, r.sections) for r in reports if r.config]
        handlers = facts_of(agent) if agent else None
        setup = Setup(str(path), engines, around, handlers, version, known)
        return cls(path, haproxy_version, reports, list(check_setup(setup)) if engines else [])

    @property
    def valid(self) -> bool:
        """Whether HAProxy starts with the file, and no finding is an error."""
        return not any(d.severity is Severity.ERROR for d in self.diagnostics)

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """Those of all engines; what is wrong with the file itself is found in each of them."""
        found = dict.fromkeys(d for report in self.reports for d in report.diagnostics)
        found |= dict.fromkeys(self.together)
        own = str(self.path)

        def place(diagnostic: Diagnostic) -> tuple[bool, str, int, int]:
            location = diagnostic.location
            return location.file != own, location.file, location.line, location.column

        return sorted(found, key=place)

    def as_text(self) -> str:
        return "\n".join(self._text())

    def _text(self) -> Iterator[str]:
        for diagnostic in self.diagnostics:
            yield from _lines(diagnostic)
        version = f" for HAProxy {self.version}"
        if self.valid:
            yield f"{self.path} {click.style('is valid', fg='green')}{version}"
            for report in self.reports:
                yield from _summary(report.result())
        else:
            count = sum(d.severity is Severity.ERROR for d in self.diagnostics)
            verdict = click.style("is not valid", fg="red")
            yield f"{self.path} {verdict}{version}: {count} error{'s' if count > 1 else ''}"

    def as_json(self) -> str:
        return json.dumps(
            {
                "file": str(self.path),
                "haproxy_version": self.version,
                "valid": self.valid,
                "diagnostics": [_diagnostic(diagnostic) for diagnostic in self.diagnostics],
                "engines": [_engine(report.config) for report in self.reports if report.config],
            }
        )


def _diagnostic(diagnostic: Diagnostic) -> dict[str, Any]:
    return {
        "severity": diagnostic.severity.value,
        "rule": diagnostic.rule,
        "file": diagnostic.location.file,
        "line": diagnostic.location.line,
        "column": diagnostic.location.column,
        "message": diagnostic.message,
        "hint": diagnostic.hint,
    }


@cache
def _source(file: str) -> list[str]:
    try:
        return Path(file).read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return []


def _lines(diagnostic: Diagnostic) -> Iterator[str]:
    """A diagnostic, the line it is about, and a caret under the place."""
    location = diagnostic.location
    severity = click.style(diagnostic.severity.value, fg=_COLOURS[diagnostic.severity], bold=True)
    hint = f" ({diagnostic.hint})" if diagnostic.hint else ""
    rule = "" if diagnostic.rule == "syntax" else f" [{diagnostic.rule}]"
    yield f"{location}: {severity}: {_printable(diagnostic.message + hint)}{rule}"
    source = _source(location.file)
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


def _engine(config: AgentConfig) -> dict[str, Any]:
    def names(messages: tuple[MessageConfig, ...]) -> list[str]:
        return [message.name for message in messages]

    return {
        "engine": config.engine,
        "agent": config.name,
        "backend": config.backend,
        "var_prefix": config.var_prefix,
        "events": {event.value: names(messages) for event, messages in config.events.items()},
        "groups": {name: names(group.messages) for name, group in config.groups.items()},
    }
