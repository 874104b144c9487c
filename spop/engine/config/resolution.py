"""Makes an `AgentConfig` of the sections of one scope, and resolves the names in them.

HAProxy does these checks at the end of the file: names must exist, and arguments must be available
where their message is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from spop.engine.config.diagnostics import Collector, ConfigError, listed, refusal
from spop.engine.config.model import (
    AgentConfig,
    Argument,
    Event,
    GroupConfig,
    Location,
    MessageConfig,
    Proxy,
)
from spop.engine.config.sections import (
    NOT_IN_VARIABLES,
    AgentSection,
    GroupSection,
    Mention,
    MessageSection,
)
from spop.engine.config.versions import Version, ignores
from spop.engine.samples import Place
from spop.engine.samples.errors import did_you_mean
from spop.values import SCOPES

T = TypeVar("T")

_IN_LISTEN = {
    Event.ON_BACKEND_TCP_REQUEST: Event.ON_FRONTEND_TCP_REQUEST,
    Event.ON_BACKEND_HTTP_REQUEST: Event.ON_FRONTEND_HTTP_REQUEST,
}
"""In a ``listen`` section, HAProxy sends messages of backend events at the frontend event."""

_NO_PLACE = Place(0)
_PLACES = {
    Event.ON_CLIENT_SESSION: (Place.FE_CON_ACC, _NO_PLACE),
    Event.ON_FRONTEND_TCP_REQUEST: (Place.FE_REQ_CNT, _NO_PLACE),
    Event.ON_FRONTEND_HTTP_REQUEST: (Place.FE_HRQ_HDR, _NO_PLACE),
    Event.ON_BACKEND_TCP_REQUEST: (Place.FE_REQ_CNT, Place.BE_REQ_CNT),
    Event.ON_BACKEND_HTTP_REQUEST: (Place.FE_HRQ_HDR, Place.BE_HRQ_HDR),
    Event.ON_SERVER_SESSION: (Place.BE_SRV_CON, Place.BE_SRV_CON),
    Event.ON_TCP_RESPONSE: (Place.FE_RES_CNT, Place.BE_RES_CNT),
    Event.ON_HTTP_RESPONSE: (Place.FE_HRS_HDR, Place.BE_HRS_HDR),
}
"""Where each event's samples are taken, in a frontend and in a backend."""


@dataclass(slots=True)
class ScopeSections:
    """The sections of one scope of an SPOE file that have a valid name."""

    agent: AgentSection | None = None
    messages: dict[str, MessageSection] = field(default_factory=dict)
    groups: dict[str, GroupSection] = field(default_factory=dict)


def misplaced(arguments: Sequence[Argument], place: Place) -> Iterator[int]:
    """The indexes of the arguments that are not available at a place."""
    for index, argument in enumerate(arguments):
        if not argument.expression.places & place:
            yield index


def group_for_rule(config: AgentConfig, name: str, place: Place) -> GroupConfig:
    """The group that a rule ``send-spoe-group`` names, checked as HAProxy checks it at its start.

    Args:
        place: the place of the rule, such as ``Place.FE_HRQ_HDR`` for ``http-request``.

    Raises:
        ConfigError: the engine has no such group, or an argument is not available there.
    """
    group = config.groups.get(name)
    if group is None:
        message = f"the engine '{config.engine}' has no group '{name}'"
        raise refusal(config.location, message, did_you_mean(name, config.groups))
    collector = Collector()
    for sent in group.messages:
        for index in misplaced(sent.arguments, place):
            text = sent.arguments[index].expression.text
            collector.error(
                sent.location,
                f"'{text}' can't be had where a rule sends the group '{name}' ({place.name})",
            )
    if collector.failed:
        raise ConfigError(collector.all())
    return group


def resolve(
    scope: ScopeSections,
    engine: str | None,
    proxy: Proxy,
    version: Version | None,
    collector: Collector,
) -> AgentConfig | None:
    """The configuration of a scope; None if it has no agent or an error."""
    if scope.agent is None:
        return None
    return _Resolver(scope, scope.agent, proxy, version, collector).resolve(engine)


@dataclass(slots=True)
class _Resolver:
    scope: ScopeSections
    agent: AgentSection
    proxy: Proxy
    version: Version | None
    collector: Collector
    prefix: str = field(init=False)
    messages: dict[str, MessageConfig] = field(init=False)

    def __post_init__(self) -> None:
        agent = self.agent
        self.prefix = agent.name if agent.var_prefix is None else agent.var_prefix
        self.messages = {name: _config(section) for name, section in self.scope.messages.items()}

    def resolve(self, engine: str | None) -> AgentConfig | None:
        agent = self.agent
        if "backend" not in agent.settings:
            self.collector.error(
                agent.location, f"agent '{agent.name}' has no backend", "add 'use-backend NAME'"
            )
        self._check_timeouts()
        self._check_names_of_variables()
        events: dict[Event, tuple[MessageConfig, ...]] = {}
        groups: dict[str, GroupConfig] = {}
        if agent.messages or agent.groups:
            events = self._events()
            groups = self._groups()
        else:
            self.collector.warning(
                agent.location, f"agent '{agent.name}' uses no message and no group"
            )
        if self.collector.failed:
            return None
        settings = dict(agent.settings)
        settings.update((f"{name}_timeout", value) for name, value in agent.timeouts.items())
        settings.update((name.replace("-", "_"), value) for name, value in self._set_variables())
        return AgentConfig(
            name=agent.name,
            engine=agent.name if engine is None else engine,
            location=agent.location,
            events={event: events[event] for event in Event if event in events},
            groups=groups,
            var_prefix=self.prefix,
            log_targets=tuple(agent.log_targets),
            known_variables=frozenset(self._known_variables()),
            **settings,
        )

    def _check_timeouts(self) -> None:
        missing = [
            name
            for name, value in self.agent.timeouts.items()
            if value is None and not (self.version and ignores(f"timeout {name}", self.version))
        ]
        if missing:
            self.collector.warning(
                self.agent.location,
                f"agent '{self.agent.name}' has no timeout {listed(missing)}",
                "an agent that hangs then keeps streams waiting",
            )

    def _check_names_of_variables(self) -> None:
        # Section 2.2: the prefix is the name of the agent, unless "option var-prefix" sets another.
        agent = self.agent
        if agent.name and agent.var_prefix is None and NOT_IN_VARIABLES.search(agent.name):
            self.collector.error(
                agent.location,
                f"'{agent.name}' can't begin the names of variables: they have letters, digits, "
                "'_' and '.' only",
                "set another with 'option var-prefix'",
            )
        for mention in agent.registered:
            if bad := NOT_IN_VARIABLES.search(mention.name):
                self.collector.error(
                    mention.location,
                    f"'{bad[0]}' in '{mention.name}': a variable's name has letters, digits, '_' "
                    "and '.' only",
                )

    def _events(self) -> dict[Event, tuple[MessageConfig, ...]]:
        events: dict[Event, tuple[MessageConfig, ...]] = {}
        for mention in self.agent.messages:
            message = self._mentioned(MessageSection.kind, mention, self.messages)
            if message and (event := self._event_of(message)):
                self._check_places(message, event)
                events[event] = (*events.get(event, ()), message)
        return events

    def _mentioned(self, kind: str, mention: Mention, known: Mapping[str, T]) -> T | None:
        """The section of a name; None, with an error, if there is none."""
        found = known.get(mention.name)
        if found is None:
            hint = did_you_mean(mention.name, known)
            self.collector.error(mention.location, f"there is no {kind} '{mention.name}'", hint)
        return found

    def _event_of(self, message: MessageConfig) -> Event | None:
        """The event of a message in this kind of proxy; None, with a warning, if never sent."""
        event = message.event
        if event is None:
            self.collector.warning(
                message.location, f"message '{message.name}' has no event and is never sent"
            )
        elif self.proxy is Proxy.LISTEN:
            return _IN_LISTEN.get(event, event)
        elif self.proxy is Proxy.BACKEND and not _PLACES[event][1]:
            self.collector.warning(
                message.location,
                f"message '{message.name}' is never sent: '{event.value}' happens in frontends",
            )
            return None
        return event

    def _check_places(self, message: MessageConfig, event: Event) -> None:
        in_frontend, in_backend = _PLACES[event]
        place = _NO_PLACE
        if self.proxy is not Proxy.BACKEND:
            place |= in_frontend
        if self.proxy is not Proxy.FRONTEND:
            place |= in_backend
        arguments = self.scope.messages[message.name].arguments
        for index in misplaced(message.arguments, place):
            self.collector.error(
                arguments[index][1],
                f"'{message.arguments[index].expression.text}' can't be had at '{event.value}' "
                f"in a {self.proxy.value}",
            )

    def _groups(self) -> dict[str, GroupConfig]:
        groups: dict[str, GroupConfig] = {}
        owners: dict[str, str] = {}
        for mention in self.agent.groups:
            section = self._mentioned(GroupSection.kind, mention, self.scope.groups)
            if section is not None:
                groups[section.name] = self._group(section, owners)
        return groups

    def _group(self, section: GroupSection, owners: dict[str, str]) -> GroupConfig:
        messages: list[MessageConfig] = []
        for mention in section.messages:
            # Section 2.4: a message is in one group at most.
            owner = owners.setdefault(mention.name, section.name)
            if owner != section.name:
                self.collector.error(
                    mention.location, f"message '{mention.name}' is in group '{owner}' already"
                )
            elif message := self._mentioned(MessageSection.kind, mention, self.messages):
                messages.append(message)
        return GroupConfig(section.name, section.location, tuple(messages))

    def _set_variables(self) -> Iterator[tuple[str, str]]:
        """The options that name a variable, and its whole name."""
        for option, name in self.agent.set_variables.items():
            yield option, f"txn.{self.prefix}.{name}"

    def _known_variables(self) -> Iterator[str]:
        for section in self.scope.messages.values():
            yield from section.variables
        for mention in self.agent.registered:
            yield from (f"{scope}.{self.prefix}.{mention.name}" for scope in SCOPES)
        yield from (name for _, name in self._set_variables())


def _config(section: MessageSection) -> MessageConfig:
    return MessageConfig(
        section.name,
        section.location,
        tuple(argument for argument, _ in section.arguments),
        section.event,
        section.condition,
        section.unless,
    )


def no_agent(
    file: str, engine: str | None, others: Sequence[str | None]
) -> tuple[Location, str, str | None]:
    """Location, message and hint for a scope without an agent."""
    where = "outside of the scopes" if engine is None else f"in the scope '{engine}'"
    scopes = [name for name in others if name is not None]
    hint = None
    if engine is not None and (hint := did_you_mean(engine, scopes)) is None and None in others:
        hint = "the file's agent is in no scope"
    if hint is None and scopes:
        hint = f"the file has the scopes {listed(scopes)}"
    return Location(file, 1), f"there is no spoe-agent {where}", hint
