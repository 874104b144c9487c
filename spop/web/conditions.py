"""When a rule applies: comparisons of variables in Python, or conditions in HAProxy's syntax.

A condition is compiled once, when the rule is made, to a closure over the transaction.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Container
from functools import partial
from typing import Any, ClassVar, Protocol

from spop.engine.acl import AclError, compile_condition
from spop.engine.config.diagnostics import ConfigError
from spop.engine.config.model import Location
from spop.engine.config.words import split_words
from spop.engine.stream import Stream
from spop.values import VARIABLE, DecodedValue


class Subject(Protocol):
    """What a condition tests. `spop.web.transaction.Transaction` is one."""

    stream: Stream
    failed: bool


Test = Callable[[Subject], bool]


class Condition:
    """A test of a request, its response and its variables. ``&``, ``|`` and ``~`` combine them.

    Attributes:
        holds: whether the condition is true of a transaction.
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
        return self._with(other, lambda transaction: first(transaction) and second(transaction))

    def __or__(self, other: Condition | str) -> Condition:
        other = condition_of(other)
        first, second = self.holds, other.holds
        return self._with(other, lambda transaction: first(transaction) or second(transaction))

    def __invert__(self) -> Condition:
        holds = self.holds
        return Condition(lambda transaction: not holds(transaction), self.variables, self.text)

    def _with(self, other: Condition, holds: Test) -> Condition:
        return Condition(holds, self.variables | other.variables, f"{self.text} {other.text}")

    def __bool__(self) -> bool:
        raise TypeError("a condition is true of a request: combine several with & | ~")


agent_failed: Condition = Condition(lambda transaction: transaction.failed, frozenset())
"""True if an exchange with an agent has failed in this transaction."""


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
        return self._when(lambda value: True)

    def is_in(self, values: Container[Any]) -> Condition:
        """Whether its value is one of several."""
        return self._when(lambda value: value in values)

    def __eq__(self, value: Any) -> Condition:  # type: ignore[override]
        return self._compared(operator.eq, value)

    def __ne__(self, value: Any) -> Condition:  # type: ignore[override]
        return ~self._compared(operator.eq, value)

    def __lt__(self, value: Any) -> Condition:
        return self._compared(operator.lt, value)

    def __le__(self, value: Any) -> Condition:
        return self._compared(operator.le, value)

    def __gt__(self, value: Any) -> Condition:
        return self._compared(operator.gt, value)

    def __ge__(self, value: Any) -> Condition:
        return self._compared(operator.ge, value)

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def _compared(self, compare: Callable[[Any, Any], bool], value: Any) -> Condition:
        return self._when(lambda found: compare(found, value))

    def _when(self, test: Callable[[DecodedValue], bool]) -> Condition:
        name = self.name

        def holds(transaction: Subject) -> bool:
            value = transaction.stream.variables.get(name)
            try:
                return value is not None and test(value)
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
    holds = compiled.holds
    return Condition(lambda transaction: holds(transaction.stream), compiled.variables, when)
