"""What an agent's handlers need and set, without running them.

The variables that a handler sets are its ``sets=``, or the literals in its source: keys such as
``"txn.score"``, and ``ack.set("txn", "score", …)``. A handler of whole messages needs the arguments
that its source reads: ``message["ip"]``.
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
from spop.parameters import ARGUMENT, MESSAGE, MESSAGES, MISSING, STATE, Parameter
from spop.values import SCOPES, VARIABLE


@dataclass(frozen=True)
class HandlerFacts:
    """A handler.

    Attributes:
        arguments: the parameters that take an argument of the message.
        sets: the variables that it may set, without the agent's prefix: ``"txn.score"``.
        defaults: those that the agent's ``on_error`` and ``on_timeout`` set for it.
        reads: the arguments that it reads from whole messages, in its source; there may be others.
        declared: whether `sets` is its ``sets=``, and so what it sets at most.
    """

    message: str
    location: Location
    arguments: tuple[Parameter, ...]
    sets: frozenset[str]
    defaults: frozenset[str]
    reads: tuple[str, ...] = ()
    declared: bool = False

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
    tree = _tree(function)
    states = {f"txn.{p.name}" for p in info.parameters if p.kind == STATE}
    declared = frozenset(info.sets) - states  # A state is one of `sets`, declared or not.
    sets = (declared or frozenset(_literals(tree))) | states
    whole = {p.name for p in info.parameters if p.kind in (MESSAGE, MESSAGES)}
    reads = tuple(dict.fromkeys(_reads(tree, whole)))
    place = _location(function)
    return HandlerFacts(name, place, arguments, sets, defaults, reads, bool(declared))


def _location(function: Callable[..., Any]) -> Location:
    code = getattr(function, "__code__", None)
    return Location(code.co_filename, code.co_firstlineno) if code else Location("<agent>", 1)


def _tree(function: Callable[..., Any]) -> ast.AST:
    """The function's source; an empty one if there is none."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


def _reads(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """The arguments read from messages: variables of these names, and what loops over them gives."""
    loops = (node for node in ast.walk(tree) if isinstance(node, (ast.For, ast.comprehension)))
    names = names | {
        loop.target.id
        for loop in loops
        if isinstance(loop.iter, ast.Name)
        and isinstance(loop.target, ast.Name)
        and loop.iter.id in names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            key = node.slice
            if node.value.id in names and isinstance(key, ast.Constant) and type(key.value) is str:
                yield key.value


def _literals(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if VARIABLE.fullmatch(node.value):
                yield node.value
        elif isinstance(node, ast.Call) and len(node.args) >= 2:
            scope, name = (getattr(arg, "value", None) for arg in node.args[:2])
            if scope in SCOPES and isinstance(name, str):
                yield f"{scope}.{name}"
