"""Rules about messages and the handlers that an agent has for them."""

from __future__ import annotations

from collections.abc import Iterator

from spop.constants import DataType
from spop.engine.config.diagnostics import Diagnostic
from spop.engine.config.model import Argument
from spop.engine.haproxy.types import arriving_types
from spop.engine.samples.errors import did_you_mean
from spop.engine.validate.setup import EngineSetup, Setup, error, warning
from spop.parameters import HEADERS

Found = Iterator[Diagnostic]


def message_without_handler(setup: Setup, engine: EngineSetup) -> Found:
    """A message that no handler is for."""
    for message in engine.messages:
        if setup.handlers is not None and message.name not in setup.handlers:
            yield warning(
                message.location,
                f"the agent has no handler of the message '{message.name}'",
                did_you_mean(message.name, setup.handlers) or "it answers nothing",
            )


def handler_without_message(setup: Setup) -> Found:
    """A handler of a message that the file does not send."""
    if len(setup.engines) < len(setup.scopes):
        return  # Another engine of the file may send it.
    sent = {message.name for engine in setup.engines for message in engine.messages}
    for name, facts in (setup.handlers or {}).items():
        if name not in sent:
            yield warning(
                facts.location,
                f"{setup.file} sends no message '{name}', which this handler is for",
                did_you_mean(name, sent) or "add the message, or delete the handler",
            )


def argument_missing(setup: Setup, engine: EngineSetup) -> Found:
    """An argument that the handler needs and the message lacks."""
    for message in engine.messages:
        facts = (setup.handlers or {}).get(message.name)
        given = [argument.name for argument in message.arguments]
        for parameter in facts.required if facts else ():
            if parameter.name not in given:
                yield error(
                    message.location,
                    f"the handler of '{message.name}' needs the argument '{parameter.name}'",
                    did_you_mean(parameter.name, given)
                    or f"add '{parameter.name}=…' to its 'args' line",
                )


def argument_type(setup: Setup, engine: EngineSetup) -> Found:
    """An argument whose types the annotation of the handler's parameter excludes."""
    for message in engine.messages:
        facts = (setup.handlers or {}).get(message.name)
        parameters = {p.name: p for p in facts.arguments} if facts else {}
        for index, argument in enumerate(message.arguments):
            parameter = parameters.get(argument.name)
            types = _types(argument)
            if parameter and types and not any(_takes(parameter.accepts, t) for t in types):
                arriving = " or ".join(sorted(t.name for t in types))
                yield error(
                    engine.argument(message, index),
                    f"'{argument.expression.text}' arrives as {arriving}, which the handler's "
                    f"'{argument.name}' does not take",
                    "change the annotation, or convert the sample",
                )


def _types(argument: Argument) -> frozenset[DataType]:
    expression = argument.expression
    return frozenset() if expression.converted else arriving_types(expression.text)


def _takes(accepts: int, kind: DataType) -> bool:
    if accepts & HEADERS and kind in (DataType.STRING, DataType.BINARY):
        return True
    return bool(accepts >> kind & 1)
