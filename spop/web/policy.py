"""What a middleware has to do: events that have messages, rules, and bodies to wait for.

It follows from the configuration of the engine and the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from spop.engine.config.model import AgentConfig, Event
from spop.web.rules import Rule, SendGroup

MAX_BODY = 64 * 1024
"""Default of the bytes of a body that a middleware waits for."""

_RESPONSE_EVENTS = (Event.ON_SERVER_SESSION, Event.ON_TCP_RESPONSE, Event.ON_HTTP_RESPONSE)

Step = str | Rule
"""An event's name, as a plain str, or a rule."""

_BODY = re.compile(r"\b(req|res)\.body")


class Policy:
    """Events and rules of both directions.

    Args:
        config: the configuration of the engine.
        http_request: rules after the events of the request.
        http_response: rules after the events of the response.
        max_body: bytes of a body to wait for, 1 at least.
        wait_for_body: wait for the request's body. None: if messages or rules read it.
        wait_for_response_body: the same for the response's body.

    Attributes:
        request_steps, response_steps: the events that have messages, then the rules.
        acts_on_response: there are events or rules for the response.
        request_body, response_body: bytes to wait for; 0 is not to wait.
        variables: the variables that rules read. Agents must be permitted to set them.

    Raises:
        ValueError: a rule sends a group that does not exist, or `max_body` is less than 1.
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
        request_rules, response_rules = tuple(http_request), tuple(http_response)
        events = [event.value for event in Event if config.events.get(event)]
        self.request_steps: tuple[Step, ...] = (
            *(event for event in events if event not in _RESPONSE_EVENTS),
            *request_rules,
        )
        self.response_steps: tuple[Step, ...] = (
            *(event for event in events if event in _RESPONSE_EVENTS),
            *response_rules,
        )
        self.acts_on_response: bool = bool(self.response_steps)
        rules = (*request_rules, *response_rules)
        read = _bodies_read(config, rules)
        self.request_body: int = _bytes_to_wait_for(max_body, wait_for_body, "req" in read)
        self.response_body: int = _bytes_to_wait_for(
            max_body, wait_for_response_body, "res" in read
        )
        readers = [reader for rule in rules for reader in rule.readers()]
        self.variables: frozenset[str] = frozenset[str]().union(
            *(reader.variables for reader in readers)
        )


def _bodies_read(config: AgentConfig, rules: Iterable[Rule]) -> set[str]:
    """``req`` if a message or rule reads the request's body, and ``res`` for the response's."""
    messages = [message for event in config.events.values() for message in event]
    texts = []
    for rule in rules:
        texts += [reader.text for reader in rule.readers()]
        if isinstance(rule, SendGroup):
            messages += config.group(rule.group).messages
    texts += [argument.expression.text for message in messages for argument in message.arguments]
    return {found for text in texts for found in _BODY.findall(text)}


def _bytes_to_wait_for(max_body: int, wait: bool | None, is_read: bool) -> int:
    return max_body if wait or (wait is None and is_read) else 0
