"""Reads SPOE files: `load_spoe`, `check_spoe` and `parse_spoe` make the configuration of an engine.

What HAProxy refuses is an error. What it accepts is accepted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from spop.constants import DEFAULT_BUFSIZE
from spop.engine.config.diagnostics import Collector, ConfigError, Diagnostic, Severity, refusal
from spop.engine.config.dialect import Dialect
from spop.engine.config.lines import Line, Reader
from spop.engine.config.model import AgentConfig, Location, Proxy
from spop.engine.config.resolution import ScopeSections, no_agent, resolve
from spop.engine.config.sections import (
    SECTIONS,
    AgentSection,
    GroupSection,
    MessageSection,
    Section,
)
from spop.engine.config.versions import DEFAULT_VERSION
from spop.errors import reason

_HAPROXY_SECTION = re.compile(r"^(?:global|defaults|frontend|backend|listen)\b", re.MULTILINE)
_SPOE_SECTION = re.compile(r"^\s*(?:spoe-(?:agent|message|group)\b|\[)", re.MULTILINE)
_FILTER = re.compile(r"^\s*filter\s+spoe\b.*\bconfig\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of reading the configuration of one engine.

    Attributes:
        config: the configuration; None if there are errors.
        diagnostics: errors and warnings, in the order of the file.
        sections: the sections that the configuration is made of, with their places.
    """

    config: AgentConfig | None
    diagnostics: tuple[Diagnostic, ...]
    sections: ScopeSections = field(default_factory=ScopeSections)

    def result(self) -> AgentConfig:
        """The configuration.

        Raises:
            ConfigError: there are errors.
        """
        if self.config is None:
            raise ConfigError(self.diagnostics)
        return self.config


def load_spoe(
    path: str | PathLike[str],
    engine: str | None = None,
    *,
    proxy: Proxy = Proxy.FRONTEND,
    haproxy_version: str | None = None,
    missing: str = "error",
    bufsize: int = DEFAULT_BUFSIZE,
    environment: Mapping[str, str] | None = None,
) -> AgentConfig:
    """Read the configuration that ``filter spoe [engine ENGINE] config PATH`` selects.

    Args:
        engine: the scope ``[ENGINE]``; None is the part of the file before all scopes.
        proxy: the kind of section of the filter. It decides where samples are available.
        haproxy_version: the HAProxy that decides, such as ``"3.0"``; ``"2.6"`` by default.
        missing: what becomes of samples that HAProxy has and the engine can't evaluate. They are
            an ``"error"``, or ``"unavailable"``: never available.
        bufsize: ``tune.bufsize`` in bytes. A frame has 4 bytes less at most.
        environment: the variables of the environment; by default this process's.

    Raises:
        ConfigError: the file can't be read, HAProxy would refuse it, or a sample is missing.
        ValueError: `haproxy_version` is no version of HAProxy, or `missing` none of the two.
    """
    return check_spoe(
        path,
        engine,
        proxy=proxy,
        haproxy_version=haproxy_version,
        missing=missing,
        bufsize=bufsize,
        environment=environment,
    ).result()


def check_spoe(
    path: str | PathLike[str],
    engine: str | None = None,
    *,
    proxy: Proxy = Proxy.FRONTEND,
    haproxy_version: str | None = None,
    missing: str = "note",
    bufsize: int = DEFAULT_BUFSIZE,
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Read a file as `load_spoe` does, and report errors, warnings and notes.

    Args:
        missing: as of `load_spoe`, or ``"note"``: HAProxy's own verdict.
    """
    file = str(path)
    try:
        data = read_file(path)
    except ConfigError as error:
        return Report(None, error.diagnostics)
    return parse_spoe(
        data,
        file,
        engine,
        proxy=proxy,
        haproxy_version=haproxy_version or DEFAULT_VERSION,
        missing=missing,
        bufsize=bufsize,
        environment=environment,
    )


def parse_spoe(
    text: str | bytes,
    file: str = "<text>",
    engine: str | None = None,
    *,
    proxy: Proxy = Proxy.FRONTEND,
    haproxy_version: str | None = None,
    missing: str = "note",
    bufsize: int = DEFAULT_BUFSIZE,
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Check a text as `check_spoe` does. `file` is its name in locations.

    Without a version, a last line that has no end is a warning.
    """
    dialect = Dialect.of(haproxy_version, missing, proxy, bufsize)
    version = dialect.version
    collector = Collector()
    if mistaken := _haproxy_cfg(text, file):
        return Report(None, (mistaken,))
    if dialect.vocabulary.remark:
        collector.note(Location(file, 1), dialect.vocabulary.remark, rule="version")
    scope = ScopeSections()
    open_sections: dict[str, Section] = {}
    others: list[str | None] = []
    variables = dict(os.environ if environment is None else environment)
    for line in Reader(text, file, collector, SECTIONS, version=version, environment=variables):
        if line.scope != engine:
            if line.keyword == AgentSection.kind:
                others.append(line.scope)
            continue
        with collector.collecting():
            if line.opens:
                section = SECTIONS[line.keyword](line, collector, dialect)
                open_sections[line.keyword] = section
                _enter(scope, section, line, collector)
            else:
                _take(line, open_sections)
    if AgentSection.kind not in open_sections:
        collector.error(*no_agent(file, engine, others))
    config = resolve(scope, engine, proxy, version, collector)
    return Report(None if collector.failed else config, collector.all(), scope)


def _haproxy_cfg(text: str | bytes, file: str) -> Diagnostic | None:
    """The one error of a file that is a ``haproxy.cfg``; None if it is none."""
    data = text if isinstance(text, str) else text.decode("utf-8", "surrogateescape")
    section = _HAPROXY_SECTION.search(data)
    if section is None or _SPOE_SECTION.search(data):
        return None
    used = _FILTER.search(data)
    named = f"the file that its line 'filter spoe … config {used[1]}' names" if used else None
    line = data.count("\n", 0, section.start()) + 1
    return Diagnostic(
        Severity.ERROR, Location(file, line), "this is a haproxy.cfg, not an SPOE file",
        f"give {named or 'the file that its filter spoe line names'}", "file",
    )  # fmt: skip


def scopes(path: str | PathLike[str]) -> list[str | None]:
    """The scopes of the engines that a file configures; None is the part before all scopes.

    Raises:
        ConfigError: the file can't be read.
    """
    reader = Reader(read_file(path), str(path), Collector(), SECTIONS)
    return list(dict.fromkeys(line.scope for line in reader if line.opens))


def read_file(path: str | PathLike[str]) -> bytes:
    """The contents of a file.

    Raises:
        ConfigError: the file can't be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise refusal(Location(str(path), 1), f"can't be read: {reason(error)}") from None


def _enter(scope: ScopeSections, section: Section, line: Line, collector: Collector) -> None:
    """Add a section to its scope, if it is the first of its name."""
    if isinstance(section, AgentSection):  # Section 2.1: a scope has one.
        if scope.agent is not None:
            collector.error(
                section.location,
                f"a scope has one spoe-agent; '{scope.agent.name}' is in line "
                f"{scope.agent.location.line}",
            )
        elif section.name:
            scope.agent = section
    elif isinstance(section, GroupSection):
        if _is_first(section, scope.groups, collector):
            scope.groups[section.name] = section
    elif isinstance(section, MessageSection) and _is_first(section, scope.messages, collector):
        scope.messages[section.name] = section


def _is_first(section: Section, known: Mapping[str, Section], collector: Collector) -> bool:
    first = known.get(section.name)
    if first:
        collector.error(
            section.location,
            f"another {section.kind} has the name '{section.name}', in line {first.location.line}",
        )
    return first is None and section.name != ""


def _take(line: Line, open_sections: Mapping[str, Section]) -> None:
    """Have a line read by its section.

    Raises:
        ConfigError: HAProxy would refuse the line, or crash on it: a section goes on behind the
            begin of another scope.
    """
    assert line.section
    section = open_sections.get(line.section)
    if section:
        section.take(line)
    elif line.section != MessageSection.kind or line.keyword in MessageSection.KEYWORDS:
        raise refusal(
            line.at(0), f"'{line.keyword}' is in no {line.section} of the scope it stands in"
        )
