"""Variables by scope, and how long each lives (section 2.8 of HAProxy's manual).

``proc`` ones live as long as the process, ``sess`` ones as long as the client's connection,
``txn`` ones as long as the stream; ``req`` ones end where the response begins, and ``res`` ones
begin there. Names are whole: ``"txn.user"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from spop.values import SCOPES, DecodedValue

Values = dict[str, DecodedValue]

PROCESS: Values = {}
"""The variables of scope ``proc``."""

_NOTHING: Values = {}


class Session:
    """What the streams of one client connection share: the variables of scope ``sess``."""

    __slots__ = ("variables",)

    def __init__(self) -> None:
        self.variables: Values = {}


class Variables(MutableMapping[str, DecodedValue]):
    """The variables that one stream sees.

    Args:
        initial: set from the beginning.
        session: the client connection's; by default one of its own.

    Attributes:
        ignored: what agents set or removed and may not, with its value; None: nothing yet.

    Raises:
        KeyError: where one is read that isn't set, or set whose scope does not exist or is over.
    """

    __slots__ = ("_session", "_stream", "ignored", "in_response")

    def __init__(
        self, initial: Mapping[str, DecodedValue] | None = None, session: Session | None = None
    ) -> None:
        self._stream: Values = {}
        self._session: Values | None = None if session is None else session.variables
        self.in_response = False
        self.ignored: Values | None = None
        if initial:
            self.update(initial)

    def begin_response(self) -> None:
        """The request is over: its variables go, and those of the response may come."""
        if not self.in_response:
            self.in_response = True
            for name in [name for name in self._stream if name.startswith("req.")]:
                del self._stream[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where the variable isn't set."""
        scope = self._stream
        if name[0] == "s":
            scope = self._session or _NOTHING
        elif name[0] == "p":
            scope = PROCESS
        return scope.get(name, default)

    def set(self, name: str, value: DecodedValue) -> bool:
        """Set one whose name is known to be good. False: its scope has not begun, or is over."""
        scope = self._scope(name)
        if scope is None:
            return False
        scope[name] = value
        return True

    def unset(self, name: str) -> None:
        """Remove one where it is set."""
        scope = self._scope(name)
        if scope is not None:
            scope.pop(name, None)

    def _scope(self, name: str) -> Values | None:
        """Where the variable is, or would be."""
        if name[0] == "s":
            if self._session is None:
                self._session = {}
            return self._session
        if name[0] == "p":
            return PROCESS
        over = "req." if self.in_response else "res."
        return None if name.startswith(over) else self._stream

    def __getitem__(self, name: str) -> DecodedValue:
        scope = self._scope(_checked(name))
        if scope is None or name not in scope:
            raise KeyError(self._why_not(name))
        return scope[name]

    def _why_not(self, name: str) -> str:
        if self.ignored and name in self.ignored:
            return (
                f"{name}: the agent set it and may not; let it with register-var-names or "
                "force-set-var in the SPOE file, or with the engine's variables="
            )
        return name

    def ignore(self, name: str, value: DecodedValue) -> None:
        """An agent set or removed one that it may not."""
        if self.ignored is None:
            self.ignored = {}
        self.ignored[name] = value

    def __setitem__(self, name: str, value: DecodedValue) -> None:
        if not self.set(_checked(name), value):
            raise KeyError(name)

    def __delitem__(self, name: str) -> None:
        scope = self._scope(_checked(name))
        if scope is None:
            raise KeyError(name)
        del scope[name]

    def __iter__(self) -> Iterator[str]:
        yield from PROCESS
        yield from self._session or ()
        yield from self._stream

    def __len__(self) -> int:
        return len(PROCESS) + len(self._session or ()) + len(self._stream)

    def __repr__(self) -> str:
        return f"Variables({dict(self)!r})"


def _checked(name: str) -> str:
    scope, dot, _ = name.partition(".")
    if not dot or scope not in SCOPES:
        raise KeyError(name)
    return name
