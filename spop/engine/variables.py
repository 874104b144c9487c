"""Variables by scope, and how long each lives (section 2.8 of HAProxy's manual).

``proc`` ones live as long as the process, ``sess`` ones as long as the client's connection,
``txn`` ones as long as the stream; ``req`` ones end where the response begins, and ``res`` ones
begin there. Names are whole: ``"txn.user"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from spop.values import SCOPES, DecodedValue

Scope = dict[str, DecodedValue]

PROCESS: Scope = {}
"""The variables of scope ``proc``."""


class Session:
    """What the streams of one client connection share: the variables of scope ``sess``."""

    __slots__ = ("variables",)

    def __init__(self) -> None:
        self.variables: Scope = {}


class Variables(MutableMapping[str, DecodedValue]):
    """The variables that one stream sees.

    Args:
        initial: set from the beginning.
        session: the client connection's; by default one of its own.

    Raises:
        KeyError: where one is read that isn't set, or set whose scope does not exist or is over.
    """

    __slots__ = ("_scopes", "in_response")

    def __init__(
        self, initial: Mapping[str, DecodedValue] | None = None, session: Session | None = None
    ) -> None:
        # By the first letters of names, which tell the scopes apart.
        self._scopes: dict[str, Scope] = {
            "pro": PROCESS,
            "ses": {} if session is None else session.variables,
            "txn": {},
            "req": {},
        }
        self.in_response = False
        if initial:
            self.update(initial)

    def begin_response(self) -> None:
        """The request is over: its variables go, and those of the response may come."""
        if not self.in_response:
            self.in_response = True
            del self._scopes["req"]
            self._scopes["res"] = {}

    def __getitem__(self, name: str) -> DecodedValue:
        return self._scope(name)[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where the variable isn't set."""
        scope = self._scopes.get(name[:3])
        return default if scope is None else scope.get(name, default)

    def __setitem__(self, name: str, value: DecodedValue) -> None:
        self._scope(name)[name] = value

    def __delitem__(self, name: str) -> None:
        del self._scope(name)[name]

    def _scope(self, name: str) -> Scope:
        scope, dot, _ = name.partition(".")
        if not dot or scope not in SCOPES or scope[:3] not in self._scopes:
            raise KeyError(name)
        return self._scopes[scope[:3]]

    def set(self, name: str, value: DecodedValue) -> bool:
        """Set one whose name is known to be good. False: its scope has not begun, or is over."""
        scope = self._scopes.get(name[:3])
        if scope is None:
            return False
        scope[name] = value
        return True

    def unset(self, name: str) -> None:
        """Remove one where it is set."""
        scope = self._scopes.get(name[:3])
        if scope is not None:
            scope.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        for scope in self._scopes.values():
            yield from scope

    def __len__(self) -> int:
        return sum(map(len, self._scopes.values()))

    def __repr__(self) -> str:
        return f"Variables({dict(self)!r})"
