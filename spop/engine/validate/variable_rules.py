"""Rules about variables: who sets and who reads them, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import NamedTuple

from spop.engine.config.diagnostics import Diagnostic
from spop.engine.config.lines import Line
from spop.engine.config.model import Event
from spop.engine.samples.errors import did_you_mean
from spop.engine.validate.haproxy_cfg import ProxySection
from spop.engine.validate.setup import EngineSetup, Setup, error, warning

Found = Iterator[Diagnostic]

_RULES: Mapping[str, tuple[int, int]] = {
    "tcp-request connection": (0, 0),
    "tcp-request session": (1, 1),
    "tcp-request content": (4, 10),
    "http-request": (6, 12),
    "redirect": (6, 12),
    "use_backend": (8, 8),
    "use-server": (13, 13),
    "tcp-response content": (16, 16),
    "http-response": (18, 18),
    "http-after-response": (19, 19),
}
"""When each kind of rule is evaluated, in a frontend and in a backend. Events are between them."""

_EVENTS: Mapping[Event, int] = {
    Event.ON_CLIENT_SESSION: 2,
    Event.ON_FRONTEND_TCP_REQUEST: 3,
    Event.ON_FRONTEND_HTTP_REQUEST: 5,
    Event.ON_BACKEND_TCP_REQUEST: 9,
    Event.ON_BACKEND_HTTP_REQUEST: 11,
    Event.ON_SERVER_SESSION: 14,
    Event.ON_TCP_RESPONSE: 15,
    Event.ON_HTTP_RESPONSE: 17,
}


class Moment(NamedTuple):
    """A point in the life of a stream: its phase, and the line of a rule within it."""

    phase: int
    line: int


def prefix_unknown(setup: Setup) -> Found:
    """A variable that is read with a prefix that is nearly an agent's."""
    if setup.haproxy is None:
        return
    known = setup.haproxy.variables_set()
    prefixes = {engine.config.var_prefix for engine in setup.engines}
    for use in setup.reads:
        rest = use.name.partition(".")[2]
        prefix, dot, _ = rest.partition(".")
        if use.name in known or not dot or prefix in prefixes:
            continue
        if any(rest.startswith(f"{it}.") for it in prefixes):
            continue
        if hint := did_you_mean(prefix, prefixes):
            yield warning(
                use.location, f"nothing sets '{use.name}': no agent has the prefix '{prefix}'", hint
            )


def variable_never_set(setup: Setup, engine: EngineSetup) -> Found:
    """A variable of the agent's prefix that is read and that no handler sets."""
    if setup.handlers is None:
        return
    sets = _by_name(setup, engine)
    defaults = {name for facts in setup.handlers.values() for name in facts.defaults}
    own = {name.replace(".", f".{engine.config.var_prefix}.", 1) for name in defaults} | {
        engine.config.set_on_error, engine.config.set_process_time, engine.config.set_total_time,
    }  # fmt: skip
    known = setup.haproxy.variables_set() if setup.haproxy else set()
    for use in setup.reads:
        if _of(engine, use.name) and not _is_set(use.name, sets.keys() | own | known):
            hint = did_you_mean(use.name, sets) or "correct the name, or set it in a handler"
            yield warning(use.location, f"no handler sets '{use.name}'", hint)


def variable_never_read(setup: Setup, engine: EngineSetup) -> Found:
    """A variable that a handler sets and nothing reads. What ``sets=`` names need not be used."""
    if setup.haproxy is None or setup.handlers is None or not engine.filters:
        return
    read = setup.haproxy.mentioned() | engine.config.known_variables
    for name, messages in _by_name(setup, engine).items():
        facts = setup.handlers[messages[0]]
        if name not in read and not facts.declared:
            yield warning(
                facts.location,
                f"the handler of '{messages[0]}' sets '{name}', which nothing reads",
                f"read it with 'var({name})' in {setup.haproxy.file}, or leave it out",
            )


def variable_not_registered(setup: Setup, engine: EngineSetup) -> Found:
    """A ``proc.`` variable that a handler sets and HAProxy does not know."""
    if setup.handlers is None or setup.haproxy is None or engine.config.force_set_var:
        return
    known = engine.config.known_variables | setup.haproxy.mentioned()
    for name, messages in _by_name(setup, engine).items():
        if name.startswith("proc.") and name not in known:
            yield error(
                setup.handlers[messages[0]].location,
                f"HAProxy ignores '{name}': a variable of the process must be registered",
                f"add 'register-var-names {name.split('.', 2)[2]}' to the agent",
            )


def variable_read_too_early(setup: Setup, engine: EngineSetup) -> Found:
    """A variable that a rule reads before the event or group that sets it."""
    if setup.handlers is None or setup.haproxy is None:
        return
    sets = _by_name(setup, engine)
    filtered = {line.proxy for line in engine.filters}
    for use in setup.reads:
        # What a session keeps may be of an earlier request.
        if use.proxy not in filtered or use.name not in sets or use.name.startswith("sess."):
            continue
        moment = _moment_of_rule(use.proxy, use.line)
        when = [at for message in sets[use.name] for at in _moments(engine, message)]
        if moment and when and moment < min(when):
            yield warning(
                use.location,
                f"'{use.name}' is read before it is set, by the message '{sets[use.name][0]}'",
                "move the rule behind it, or send the message at an earlier event",
            )


def _by_name(setup: Setup, engine: EngineSetup) -> dict[str, list[str]]:
    """The messages whose handlers set each variable, by its whole name."""
    found: dict[str, list[str]] = {}
    for message in engine.messages:
        facts = (setup.handlers or {}).get(message.name)
        for name in sorted(facts.sets) if facts else ():
            scope, _, rest = name.partition(".")
            found.setdefault(f"{scope}.{engine.config.var_prefix}.{rest}", []).append(message.name)
    return found


def _is_set(name: str, sets: Set[str | None]) -> bool:
    """Whether a name is set, or lies below one: ``txn.a.headers`` is also ``txn.a.headers.x_user``."""
    return any(name == each or name.startswith(f"{each}.") for each in sets)


def _of(engine: EngineSetup, name: str) -> bool:
    return name.partition(".")[2].startswith(f"{engine.config.var_prefix}.")


def _moment_of_rule(proxy: ProxySection, line: Line) -> Moment | None:
    words = [word.text for word in line.words[:2]]
    for kind, (frontend, backend) in _RULES.items():
        if words[: kind.count(" ") + 1] == kind.split():
            return Moment(backend if proxy.kind == "backend" else frontend, line.number)
    return None


def _moments(engine: EngineSetup, message: str) -> Iterator[Moment]:
    """When a message is sent."""
    for event, messages in engine.config.events.items():
        if any(message == sent.name for sent in messages):
            yield Moment(_EVENTS[event], 0)
    for rule in engine.group_rules:
        group = engine.config.groups.get(rule.group)
        if group and any(message == sent.name for sent in group.messages):
            yield _moment_of_rule(rule.proxy, rule.line) or Moment(0, 0)
