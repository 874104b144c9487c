"""When a rule applies: comparisons of variables in Python, or conditions in HAProxy's syntax.

A condition is compiled once, when the rule is made, to a function of the stream.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Container
from functools import partial
from typing import Any, ClassVar

from spop.engine.acl import AclError, compile_condition
from spop.engine.config.diagnostics import ConfigError
from spop.engine.config.model import Location
from spop.engine.config.words import split_words
from spop.values import VARIABLE
from spop.web.received import ReceivedStream

Test = Callable[[ReceivedStream], bool]


class Condition:
    """A test of a request, its response and its variables. ``&``, ``|`` and ``~`` combine them.

    Attributes:
        holds: whether the condition is true of a stream.
        variables: the whole names of the variables that it reads.
        text: its words as written; empty if it was made in Python.
    """

    __slots__ = ("holds", "text", "variables")

    def __init__(self, holds: Test, variables: frozenset[str], text: str = "") -> None:
        self.holds: Test = holds
        self.variables: frozenset[str] = variables
        self.text: str = text

    def __and__(self, other: Condition | str) -> Condition:
        other = condition_of(other)
        first, second = self.holds, other.holds
        return self._with(other, lambda stream: first(stream) and second(stream))

    def __or__(self, other: Condition | str) -> Condition:
        other = condition_of(other)
        first, second = self.holds, other.holds
        return self._with(other, lambda stream: first(stream) or second(stream))

    def __invert__(self) -> Condition:
        holds = self.holds
        return Condition(lambda stream: not holds(stream), self.variables, self.text)

    def _with(self, other: Condition, holds: Test) -> Condition:
        return Condition(holds, self.variables | other.variables, f"{self.text} {other.text}")

    def __bool__(self) -> bool:
        raise TypeError("a condition is true of a request: combine several with & | ~")


agent_failed: Condition = Condition(lambda stream: stream.failed, frozenset())
"""True if an exchange with an agent has failed for this request."""


class Variable:
    """A variable, to compare and to write into headers. A comparison gives a `Condition`.

    A variable that is not set equals nothing, and is neither less nor more. The same is true of a
    value of another type.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name: str = name

    def is_set(self) -> Condition:
        """Whether it has a value."""
        return self._when(lambda value, _: True)

    def is_in(self, values: Container[Any]) -> Condition:
        """Whether its value is one of several."""
        return self._when(lambda value, among: value in among, values)

    def __eq__(self, value: Any) -> Condition:  # type: ignore[override]
        return self._when(operator.eq, value)

    def __ne__(self, value: Any) -> Condition:  # type: ignore[override]
        return ~self._when(operator.eq, value)

    def __lt__(self, value: Any) -> Condition:
        return self._when(operator.lt, value)

    def __le__(self, value: Any) -> Condition:
        return self._when(operator.le, value)

    def __gt__(self, value: Any) -> Condition:
        return self._when(operator.gt, value)

    def __ge__(self, value: Any) -> Condition:
        return self._when(operator.ge, value)

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def _when(self, test: Callable[[Any, Any], bool], operand: Any = None) -> Condition:
        name = self.name

        def holds(stream: ReceivedStream) -> bool:
            value = stream.variables.get(name)
            try:
                return value is not None and test(value, operand)
            except TypeError:  # Values of different types have no order.
                return False

        return Condition(holds, frozenset((name,)))


def var(name: str) -> Variable:
    """The variable of a whole name, such as ``"txn.waf.action"``.

    Raises:
        ValueError: the scope is unknown, or the name is invalid.
    """
    if not VARIABLE.fullmatch(name):
        raise ValueError(f"{name!r} names no variable: 'txn.waf.action' would")
    return Variable(name)


def condition_of(when: Condition | str) -> Condition:
    """A condition as it is, or compiled from the words after HAProxy's ``if``.

    Raises:
        ValueError: HAProxy would refuse the words.
    """
    if not isinstance(when, str):
        return when
    try:
        words = split_words(when, os.environ.get, partial(Location, when, 1))
        compiled = compile_condition([word.text for word in words])
    except ConfigError as error:
        raise ValueError(f"{when!r}: {error.diagnostics[0].message}") from None
    except AclError as error:
        raise ValueError(f"{when!r}: {error}") from None
    return Condition(compiled.holds, compiled.variables, when)
