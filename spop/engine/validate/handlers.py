"""What an agent's handlers need and set, without running them.

The variables that a handler sets are its ``sets=``, or the literals in its source: keys such as
``"txn.score"``, and ``ack.set("txn", "score", …)``.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spop.agent import Agent
from spop.engine.config.model import Location
from spop.handlers import HandlerInfo
from spop.parameters import ARGUMENT, MISSING, Parameter
from spop.values import SCOPES, VARIABLE


@dataclass(frozen=True)
class HandlerFacts:
    """A handler.

    Attributes:
        arguments: the parameters that take an argument of the message.
        sets: the variables that it may set, without the agent's prefix: ``"txn.score"``.
        defaults: those that the agent's ``on_error`` and ``on_timeout`` set for it.
    """

    message: str
    location: Location
    arguments: tuple[Parameter, ...]
    sets: frozenset[str]
    defaults: frozenset[str]

    @property
    def required(self) -> Iterator[Parameter]:
        return (parameter for parameter in self.arguments if parameter.default is MISSING)


def facts_of(agent: Agent) -> Mapping[str, HandlerFacts]:
    """The facts of each handler, by the name of its message."""
    defaults = frozenset((*agent.default_on_error, *agent.default_on_timeout))
    return {name: _facts(name, info, defaults) for name, info in agent.handlers.items()}


def _facts(name: str, info: HandlerInfo, defaults: frozenset[str]) -> HandlerFacts:
    function = inspect.unwrap(info.function)
    arguments = tuple(p for p in info.parameters if p.kind == ARGUMENT)
    sets = frozenset(info.sets) or frozenset(_literals(function))
    return HandlerFacts(name, _location(function), arguments, sets, defaults)


def _location(function: Callable[..., Any]) -> Location:
    code = getattr(function, "__code__", None)
    return Location(code.co_filename, code.co_firstlineno) if code else Location("<agent>", 1)


def _literals(function: Callable[..., Any]) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if VARIABLE.fullmatch(node.value):
                yield node.value
        elif isinstance(node, ast.Call) and len(node.args) >= 2:
            scope, name = (getattr(arg, "value", None) for arg in node.args[:2])
            if scope in SCOPES and isinstance(name, str):
                yield f"{scope}.{name}"
