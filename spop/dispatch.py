"""The dispatcher: the compiled twin where the compiled codec is used, else the one in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop import codec
from spop._dispatch_py import (
    ACK,
    ARGUMENT,
    HEADERS,
    MESSAGE,
    MISSING,
    Call,
    Deferred,
    Parameter,
    Running,
)

if TYPE_CHECKING or codec.IMPLEMENTATION == "python":
    from spop._dispatch_py import Dispatcher, Fragments, Port, Route
else:
    try:
        from spop._dispatch import Dispatcher, Fragments, Port, Route
    except ModuleNotFoundError:
        from spop._dispatch_py import Dispatcher, Fragments, Port, Route

__all__ = [
    "ACK",
    "ARGUMENT",
    "HEADERS",
    "MESSAGE",
    "MISSING",
    "Call",
    "Deferred",
    "Dispatcher",
    "Fragments",
    "Parameter",
    "Port",
    "Route",
    "Running",
]
