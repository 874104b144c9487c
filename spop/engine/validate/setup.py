"""What the rules look at: an SPOE file's engines, the haproxy.cfg and the agent around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from spop.engine.config.diagnostics import Diagnostic, Severity
from spop.engine.config.model import AgentConfig, Location, MessageConfig
from spop.engine.config.resolution import ScopeSections
from spop.engine.config.versions import Version
from spop.engine.validate.handlers import HandlerFacts
from spop.engine.validate.haproxy_cfg import Filter, GroupRule, HAProxyConfig, ProxySection, Use


@dataclass
class EngineSetup:
    """One engine of the file, and what is around it.

    Attributes:
        filters: the ``filter spoe`` lines that name it.
    """

    config: AgentConfig
    sections: ScopeSections
    filters: list[Filter] = field(default_factory=list)
    group_rules: list[GroupRule] = field(default_factory=list)
    backend: ProxySection | None = None

    def place(self, keyword: str) -> Location:
        """The line of a keyword of the agent; without one, the agent's name."""
        agent = self.sections.agent
        return agent.places.get(keyword, agent.location) if agent else self.config.location

    @property
    def messages(self) -> Iterator[MessageConfig]:
        """The messages that it sends, each once."""
        found = [message for messages in self.config.events.values() for message in messages]
        found += [message for group in self.config.groups.values() for message in group.messages]
        return iter({message.name: message for message in found}.values())

    def argument(self, message: MessageConfig, index: int) -> Location:
        """Where an argument of a message is."""
        return self.sections.messages[message.name].arguments[index][1]


@dataclass
class Setup:
    """All that is checked together. The haproxy.cfg and the agent may be missing."""

    file: str
    engines: list[EngineSetup]
    haproxy: HAProxyConfig | None
    handlers: Mapping[str, HandlerFacts] | None
    version: Version
    scopes: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.haproxy is None:
            return
        for engine in self.engines:
            name = engine.config.engine
            engine.filters = [f for f in self.own_filters if self._names(f, engine)]
            engine.group_rules = [r for r in self.haproxy.group_rules() if r.engine == name]
            engine.backend = self.haproxy.find(engine.config.backend)

    @cached_property
    def own_filters(self) -> list[Filter]:
        """The filters that name this file. It may be elsewhere on the machine of HAProxy."""
        name = Path(self.file).name
        filters = self.haproxy.filters() if self.haproxy else ()
        return [line for line in filters if Path(line.config).name == name]

    def _names(self, line: Filter, engine: EngineSetup) -> bool:
        anonymous = None in self.scopes
        return line.engine == engine.config.engine or (line.engine is None and anonymous)

    @cached_property
    def reads(self) -> list[Use]:
        """The variables that the haproxy.cfg reads."""
        return list(self.haproxy.variables_read()) if self.haproxy else []


def error(location: Location, message: str, hint: str) -> Diagnostic:
    return Diagnostic(Severity.ERROR, location, message, hint)


def warning(location: Location, message: str, hint: str) -> Diagnostic:
    return Diagnostic(Severity.WARNING, location, message, hint)


def note(location: Location, message: str, hint: str) -> Diagnostic:
    return Diagnostic(Severity.NOTE, location, message, hint)
