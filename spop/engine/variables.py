"""The variables of a stream, and how long each lives (section 2.8 of HAProxy 3's manual).

Variables of scope ``proc`` live as long as the process. Those of ``sess`` live as long as the
client's connection, those of ``txn`` as long as the stream. Those of ``req`` end where the response
begins; those of ``res`` begin there. Names are whole, such as ``"txn.user"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from spop.values import SCOPES, UNSET, DecodedValue

Values = dict[str, DecodedValue]
"""Variables by whole name."""

PROCESS: Values = {}
"""The variables of scope ``proc``."""


class Session:
    """A client's connection. Its streams share the variables of scope ``sess``."""

    __slots__ = ("variables",)

    def __init__(self) -> None:
        self.variables: Values = {}


class Variables(MutableMapping[str, DecodedValue]):
    """The variables that one stream sees.

    Args:
        initial: variables that are set from the beginning.
        session: the client's connection; None is one that no other stream has.

    Attributes:
        in_response: whether the response has begun.
        ignored: variables that an agent set or removed without permission; None if there are none.

    Raises:
        KeyError: a variable is read that is not set, or set in a scope that is unknown or over.
    """

    __slots__ = ("_session", "_stream", "ignored", "in_response")

    def __init__(
        self, initial: Mapping[str, DecodedValue] | None = None, session: Session | None = None
    ) -> None:
        self._stream: Values = {}
        # Variables of a session that no other stream has are among those of the stream.
        self._session: Values = self._stream if session is None else session.variables
        self.in_response: bool = False
        self.ignored: Values | None = None
        if initial:
            self.update(initial)

    def begin_response(self) -> None:
        """End scope ``req``, and begin scope ``res``."""
        if not self.in_response:
            self.in_response = True
            for name in [name for name in self._stream if name.startswith("req.")]:
                del self._stream[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where the variable is not set."""
        if name in self._stream:
            return self._stream[name]
        value = self._session.get(name, UNSET)  # Another stream may remove it meanwhile.
        return PROCESS.get(name, default) if value is UNSET else value

    def set(self, name: str, value: DecodedValue) -> bool:
        """Set a variable whose name is valid. False if its scope has not begun or is over."""
        scope = self._scope(name)
        if scope is None:
            return False
        scope[name] = value
        return True

    def unset(self, name: str) -> None:
        """Remove a variable, if it is set."""
        scope = self._scope(name)
        if scope is not None:
            scope.pop(name, None)

    def _scope(self, name: str) -> Values | None:
        """The variables of this one's scope; None if the scope has not begun or is over."""
        if name[0] == "s":
            return self._session
        if name[0] == "p":
            return PROCESS
        over = "req." if self.in_response else "res."
        return None if name.startswith(over) else self._stream

    def __getitem__(self, name: str) -> DecodedValue:
        value = self.get(name, UNSET)
        if value is UNSET:
            raise KeyError(self._why_not(name))
        found: DecodedValue = value
        return found

    def _why_not(self, name: str) -> str:
        if self.ignored and name in self.ignored:
            return (
                f"{name}: the agent set it and may not; let it with register-var-names or "
                "force-set-var in the SPOE file, or with the engine's variables="
            )
        return name

    def ignore(self, name: str, value: DecodedValue) -> None:
        """Note that an agent set or removed a variable without permission."""
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
        if self._session is not self._stream:
            yield from self._session
        yield from self._stream

    def __len__(self) -> int:
        shared = 0 if self._session is self._stream else len(self._session)
        return len(PROCESS) + shared + len(self._stream)

    def __repr__(self) -> str:
        return f"Variables({dict(self)!r})"


def _checked(name: str) -> str:
    scope, dot, _ = name.partition(".")
    if not dot or scope not in SCOPES:
        raise KeyError(name)
    return name
