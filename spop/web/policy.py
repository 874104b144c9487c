"""What a middleware is to do, from its engine's configuration and its rules: which events have
messages, and what must have arrived before they can be made."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spop.engine.config.model import AgentConfig, Event, MessageConfig
from spop.web.rules import Rule, SendGroup

MAX_BODY = 64 * 1024
"""Bytes of a body that are waited for, by default."""

_REQUEST_EVENTS = (
    Event.ON_CLIENT_SESSION,
    Event.ON_FRONTEND_TCP_REQUEST,
    Event.ON_FRONTEND_HTTP_REQUEST,
    Event.ON_BACKEND_TCP_REQUEST,
    Event.ON_BACKEND_HTTP_REQUEST,
)
_RESPONSE_EVENTS = (Event.ON_SERVER_SESSION, Event.ON_TCP_RESPONSE, Event.ON_HTTP_RESPONSE)

_BODY = re.compile(r"\b(req|res)\.body")


class Policy:
    """Events and rules of both directions.

    Args:
        config: the engine's.
        http_request: rules that follow the events of the request.
        http_response: rules that follow those of the response.
        max_body: bytes of a body that are waited for.
        wait_for_body: wait for the request's body; None: where messages or rules read it.
        wait_for_response_body: the same for the response's.

    Attributes:
        request_events, response_events: those that have messages.
        answers: there is something to do when the response comes.
        request_body, response_body: how much to wait for; 0 is nothing.
        variables: those that rules read, so that agents must be allowed to set them.

    Raises:
        ValueError: there is no such group, or `max_body` is less than one byte.
    """

    def __init__(
        self,
        config: AgentConfig,
        http_request: Iterable[Rule],
        http_response: Iterable[Rule],
        *,
        max_body: int,
        wait_for_body: bool | None,
        wait_for_response_body: bool | None,
    ) -> None:
        if max_body < 1:
            raise ValueError(f"max_body is {max_body}, 1 at least")
        self.http_request = tuple(http_request)
        self.http_response = tuple(http_response)
        self.request_events = tuple(e for e in _REQUEST_EVENTS if config.events.get(e))
        self.response_events = tuple(e for e in _RESPONSE_EVENTS if config.events.get(e))
        self.answers = bool(self.response_events or self.http_response)
        rules = (*self.http_request, *self.http_response)
        read = _bodies_read(config, rules)
        self.request_body = max_body if _or(wait_for_body, "req" in read) else 0
        self.response_body = max_body if _or(wait_for_response_body, "res" in read) else 0
        readers = [reader for rule in rules for reader in rule.readers()]
        self.variables = frozenset[str]().union(*(reader.variables for reader in readers))


def _bodies_read(config: AgentConfig, rules: Iterable[Rule]) -> set[str]:
    """Of ``req`` and ``res``, those whose bodies are mentioned."""
    messages = [message for event in config.events.values() for message in event]
    texts = []
    for rule in rules:
        texts += [reader.text for reader in rule.readers()]
        if isinstance(rule, SendGroup):
            messages += _group(config, rule.group)
    texts += [argument.expression.text for message in messages for argument in message.arguments]
    return {found for text in texts for found in _BODY.findall(text)}


def _group(config: AgentConfig, name: str) -> tuple[MessageConfig, ...]:
    if name not in config.groups:
        known = ", ".join(config.groups) or "there is none"
        raise ValueError(f"unknown group {name!r}: {known}")
    return config.groups[name].messages


def _or(said: bool | None, found: bool) -> bool:
    return found if said is None else said
