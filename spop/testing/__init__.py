"""What those who write agents test them with; `Agent.test` calls a handler without any of this.

`spop.testing.plugin` has the fixtures for pytest, `spop.testing.haproxy` runs a real HAProxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spop.testing.haproxy import HAProxy, find_haproxy

if TYPE_CHECKING:
    from spop import Ack

__all__ = ["HAProxy", "assert_actions", "find_haproxy"]


def assert_actions(answer: Ack | Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check the variables of an ACK, or of what `Agent.test` returned.

    True is not 1, and False is not 0, as HAProxy tells booleans from integers.

    Raises:
        AssertionError: with a line for each variable that differs.
    """
    actual = answer if isinstance(answer, Mapping) else answer.variables
    lines = [
        f"  {name}: {difference}"
        for name in sorted({*actual, *expected})
        if (difference := _difference(name, actual, expected))
    ]
    if lines:
        raise AssertionError("\n".join(["the actions are not what they should be:", *lines]))


def _difference(name: str, actual: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    if name not in actual:
        return f"expected {expected[name]!r}, not set"
    value = actual[name]
    if name not in expected:
        return f"set to {value!r}, not expected"
    wanted = expected[name]
    if value == wanted and isinstance(value, bool) == isinstance(wanted, bool):
        return ""
    return f"expected {wanted!r}, got {value!r}"
