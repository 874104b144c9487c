"""State that travels with a stream: HAProxy keeps it in a variable between two messages.

A handler's answer sets the variable. A later message of the same stream has the variable among
its arguments. So the state reaches the right handler on every connection, process and machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from spop import codec
from spop.errors import ProtocolError
from spop.frames import Action
from spop.logs import RateLimitedLog, SafeLogger, fields
from spop.values import Value

logger: SafeLogger = SafeLogger("spop.agent")


class StreamState(dict[str, Value]):
    """The values of a stream, by name: a parameter of a handler.

    It is read from the argument of the parameter's name. It is empty where that is absent, NULL,
    empty or can't be read. Where the handler changes it, the answer sets the variable
    ``txn.NAME``, NAME being the parameter's name. The values are those of SPOP, None included.
    """

    def pack(self) -> bytes:
        """A KV-LIST of typed data (section 3.1), as the variable has it.

        Raises:
            TypeError: a key is no str, or a value is none of SPOP, such as a nested dict.
            OverflowError: an integer has more than 64 bits.
        """
        return bytes(codec.encode_kv_list(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The state that was packed.

        Raises:
            ProtocolError: the bytes are no KV-LIST.
        """
        return cls(codec.decode_kv_list(data))


class States:
    """Reads and answers the `StreamState` parameters of handlers.

    Attributes:
        unreadable: number of arguments that were no state.
    """

    def __init__(self) -> None:
        self.unreadable: int = 0
        self._log = RateLimitedLog(logger, per_second=1)

    def around(
        self, message: str, function: Callable[..., Any], names: Sequence[str], asynchronous: bool
    ) -> Callable[..., Any]:
        """A handler that is given states, as one that is given their bytes by keyword."""

        @functools.wraps(function)
        def call(**kwargs: Any) -> Any:
            before = self._read(message, names, kwargs)
            return _answer(before, kwargs, function(**kwargs))

        @functools.wraps(function)
        async def call_async(**kwargs: Any) -> Any:
            before = self._read(message, names, kwargs)
            return _answer(before, kwargs, await function(**kwargs))

        return call_async if asynchronous else call

    def _read(self, message: str, names: Sequence[str], kwargs: dict[str, Any]) -> dict[str, bytes]:
        """Put states in place of bytes. Returns the states as they were packed."""
        before = {}
        for name in names:
            state = kwargs[name] = self._state(message, name, kwargs[name])
            before[name] = state.pack()
        return before

    def _state(self, message: str, name: str, value: Any) -> StreamState:
        if value is None or value == b"":
            return StreamState()
        if isinstance(value, bytes):
            try:
                return StreamState.unpack(value)
            except ProtocolError as error:
                why = str(error)
        else:
            why = f"it is {type(value).__name__}, not BINARY"
        self.unreadable += 1
        what = fields("state unreadable", message=message, argument=name, reason=why)
        line = "message %r: argument %s is no state: %s"
        self._log.warning(line, message, name, why, extra=what)
        return StreamState()


STATES = States()
"""Those of this process."""


def _answer(before: Mapping[str, bytes], kwargs: Mapping[str, Any], returned: Any) -> Any:
    """What the handler returned, and the states that it changed."""
    packed = {name: kwargs[name].pack() for name in before}
    changed = {name: state for name, state in packed.items() if state != before[name]}
    if not changed or not isinstance(returned, (Mapping, list, tuple, type(None))):
        return returned
    if isinstance(returned, (list, tuple)):
        return [*returned, *(Action("txn", name, state) for name, state in changed.items())]
    return {**(returned or {}), **{f"txn.{name}": state for name, state in changed.items()}}
