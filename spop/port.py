"""The fast path between sockets and the dispatcher, in the twin that `spop.twins` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop.twins import twin

if TYPE_CHECKING:
    from spop._port_py import FastPath, FastPaths, Sleeper
else:
    _port = twin("spop._port")
    FastPath, FastPaths, Sleeper = _port.FastPath, _port.FastPaths, _port.Sleeper

__all__ = ["FastPath", "FastPaths", "Sleeper"]
