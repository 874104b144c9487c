"""The text of spoe.cfg and haproxy.cfg for an agent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from spop.agent import Agent
from spop.engine.config.model import Event
from spop.engine.draft.guesses import Guess, event_of, guess
from spop.engine.draft.rules import in_order, is_logged, rules_of
from spop.engine.validate.handlers import HandlerFacts, facts_of
from spop.errors import SpopError
from spop.haproxy_version import Version
from spop.options import DEFAULT_BIND
from spop.parameters import STATE, Parameter

DEFAULT_PATH = (2, 5)
"""The first branch with ``default-path config``, by which spoe.cfg is found beside haproxy.cfg."""

_NAME = re.compile(r"[A-Za-z0-9_.:-]+", re.ASCII)
_SPECIAL = re.compile(r"[\s\"'\\#$]")
_NOT_IN_ARGUMENTS = re.compile(r"[=\x00-\x1f\x7f]")
_WAIT = 0.5
"""Seconds that a request waits for the agent, where no handler has a timeout."""


class DraftError(SpopError):
    """There is nothing to write for this agent. The message says why."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What surrounds the agent: addresses as HAProxy writes them.

    Attributes:
        target: ``MODULE:AGENT``, for the files' first line.
        spoe_path: where haproxy.cfg finds spoe.cfg.
    """

    target: str
    version: Version
    listen: str = "127.0.0.1:8080"
    agent_address: str = DEFAULT_BIND
    server: str = "127.0.0.1:8000"
    spoe_path: str = "spoe.cfg"


class Draft(NamedTuple):
    """The text of both files."""

    spoe: str
    haproxy: str


class _Message(NamedTuple):
    """A message: when it is sent, its arguments, and the variables that it sets, by whole name."""

    name: str
    event: Event
    arguments: list[Guess]
    left_out: list[str]
    variables: list[str]


def draft(agent: Agent, plan: Plan) -> Draft:
    """Write both files.

    Raises:
        DraftError: the agent has no handler, or one of a message or argument that HAProxy can't
            name.
    """
    if not agent.handlers:
        raise DraftError("the agent has no handlers: there is no message to send")
    for name in agent.handlers:
        if not _NAME.fullmatch(name):
            raise DraftError(
                f"HAProxy can't name the message {name!r}: it takes A-Z a-z 0-9 _ . : -"
            )
    engine = re.sub(r"[^A-Za-z0-9_.-]+", "-", agent.name).strip("-") or "agent"
    prefix = re.sub(r"[^A-Za-z0-9_]", "_", engine)
    messages = [_message(agent, facts, prefix) for facts in facts_of(agent).values()]
    spoe = "\n".join(_spoe(agent, plan, engine, prefix, messages)) + "\n"
    return Draft(spoe, "\n".join(_haproxy(plan, engine, messages)) + "\n")


def _message(agent: Agent, facts: HandlerFacts, prefix: str) -> _Message:
    info = agent.handlers[facts.message]
    states = [p.name for p in info.parameters if p.kind == STATE]
    wanted = [*facts.arguments, *map(Parameter, facts.reads)]
    event = event_of(facts.message, [p.name for p in wanted])
    for parameter in wanted:
        if _NOT_IN_ARGUMENTS.search(parameter.name):
            raise DraftError(f"HAProxy can't name the argument {parameter.name!r}")
    guesses = {p.name: guess(p, event) for p in wanted}
    arguments = [found for found in guesses.values() if found]
    arguments += [Guess(name, f"var(txn.{prefix}.{name})") for name in states]
    sets = facts.sets - {f"txn.{name}" for name in states}
    variables = [
        f"{scope}.{prefix}.{rest}" for scope, rest in (v.split(".", 1) for v in in_order(sets))
    ]
    left_out = [name for name, found in guesses.items() if not found]
    return _Message(facts.message, event, arguments, left_out, variables)


def _spoe(
    agent: Agent, plan: Plan, engine: str, prefix: str, messages: list[_Message]
) -> Iterator[str]:
    yield f"# What HAProxy {_shown(plan.version)} sends to the agent {plan.target}, and when."
    yield f"[{engine}]"
    yield ""
    yield f"spoe-agent {engine}"
    yield from (f"    messages {message.name}" for message in messages)
    yield f"    option var-prefix {prefix}"
    if not plan.version.rewritten:
        yield "    timeout hello 1s"
        yield "    timeout idle 2m"
    yield f"    timeout processing {_wait(agent)}ms  # then the request goes on without an answer"
    names = {name.split(".", 2)[2] for message in messages for name in message.variables}
    names |= {
        name.split(".", 1)[1] for facts in facts_of(agent).values() for name in facts.defaults
    }
    if names:
        yield f"    register-var-names {' '.join(sorted(names))}"
    yield "    use-backend agents"
    for message in messages:
        yield ""
        yield from _section(message)


def _section(message: _Message) -> Iterator[str]:
    yield f"spoe-message {message.name}"
    for argument in message.arguments:
        remark = f"  # {argument.remark}" if argument.remark else ""
        yield f"    args {_word(f'{argument.name}={argument.expression}')}{remark}"
    if message.left_out:
        yield f"    # Left out, their defaults are used: {' '.join(message.left_out)}"
    if not message.arguments:
        yield "    # args NAME=FETCH: fill in what the handler reads"
    yield f"    event {message.event.value}"


def _word(text: str) -> str:
    """A word of HAProxy's configuration, in quotes where it needs them."""
    if _SPECIAL.search(text) is None:
        return text
    return '"' + re.sub(r'["\\$]', r"\\\g<0>", text) + '"'


def _wait(agent: Agent) -> int:
    """Milliseconds to wait for the agent: a little more than its handlers may take."""
    timeouts = [info.timeout for info in agent.handlers.values() if info.timeout is not None]
    return int(1000 * (max(timeouts) + 0.1)) if timeouts else int(1000 * _WAIT)


def _haproxy(plan: Plan, engine: str, messages: list[_Message]) -> Iterator[str]:
    yield f"# HAProxy {_shown(plan.version)} with the agent {plan.target}."
    yield "global"
    if plan.version.branch >= DEFAULT_PATH:
        yield "    default-path config  # spoe.cfg is beside this file"
    yield "    log stdout format raw local0"
    yield ""
    yield "defaults"
    yield from (f"    {line}" for line in _DEFAULTS)
    yield ""
    yield "frontend www"
    yield from (f"    {line}" for line in _frontend(plan, engine, messages))
    yield ""
    yield "backend site"
    yield f"    server site {plan.server}"
    yield ""
    yield "backend agents"
    yield f"    mode {'spop' if plan.version.rewritten else 'tcp'}"
    yield "    option spop-check"
    yield "    timeout server 3m  # longer than connections to the agent are idle"
    yield f"    server agent {plan.agent_address} check"


_DEFAULTS = (
    "mode http", "log global", "option httplog", "timeout connect 5s", "timeout client 30s",
    "timeout server 30s",
)  # fmt: skip


def _frontend(plan: Plan, engine: str, messages: list[_Message]) -> Iterator[str]:
    yield f"bind {plan.listen}"
    fetches = [argument.expression for message in messages for argument in message.arguments]
    if any(fetch.startswith("req.body") for fetch in fetches):
        yield "option http-buffer-request  # for req.body"
    yield f"filter spoe engine {engine} config {plan.spoe_path}"
    events = {name: message.event for message in messages for name in message.variables}
    for name, event in events.items():
        for rule in rules_of(name, event, plan.version):
            yield from rule.split("\n")
    logged = [name for name, event in events.items() if is_logged(name, event, plan.version)]
    if logged:
        fields = " ".join(f"{name.split('.', 2)[2]}=%[var({name})]" for name in logged)
        yield f'log-format "%ci:%cp [%tr] %ft %b/%s %ST %B %{{+Q}}r {fields}"'
    yield "default_backend site"


def _shown(version: Version) -> str:
    return f"{version.major}.{version.minor}"
