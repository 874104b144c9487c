"""Agents for HAProxy's Stream Processing Offload Engine, and a client to talk to them.

`Agent` is where to begin; `spop.codec` is the protocol's encoding, usable on its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spop.version import __version__

if TYPE_CHECKING:
    from spop.agent import Agent
    from spop.batch import Batch
    from spop.cache import Cache
    from spop.client import AsyncClient, Client
    from spop.errors import (
        DisconnectedError,
        HandlerError,
        LocalProtocolError,
        ProtocolError,
        RefusedError,
        SpopError,
        SpopTimeoutError,
        UnreachableError,
    )
    from spop.frames import Ack, Action, Message, Peer
    from spop.headers import Headers
    from spop.state import StreamState
    from spop.values import UNSET, Binary, Int32, Int64, String, UInt32, UInt64

__all__ = [
    "UNSET",
    "Ack",
    "Action",
    "Agent",
    "AsyncClient",
    "Batch",
    "Binary",
    "Cache",
    "Client",
    "DisconnectedError",
    "HandlerError",
    "Headers",
    "Int32",
    "Int64",
    "LocalProtocolError",
    "Message",
    "Peer",
    "ProtocolError",
    "RefusedError",
    "SpopError",
    "SpopTimeoutError",
    "StreamState",
    "String",
    "UInt32",
    "UInt64",
    "UnreachableError",
    "__version__",
]

_MODULES = {
    "agent": ("Agent",),
    "batch": ("Batch",),
    "cache": ("Cache",),
    "client": ("AsyncClient", "Client"),
    "codec": (),
    "errors": (
        "DisconnectedError", "HandlerError", "LocalProtocolError", "ProtocolError", "RefusedError",
        "SpopError", "SpopTimeoutError", "UnreachableError",
    ),
    "frames": ("Ack", "Action", "Message", "Peer"),
    "headers": ("Headers",),
    "state": ("StreamState",),
    "values": ("UNSET", "Binary", "Int32", "Int64", "String", "UInt32", "UInt64"),
}  # fmt: skip
_HOME = {name: f"spop.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported once it is asked for: few programs need them all."""
    if name in _MODULES:
        return importlib.import_module(f"spop.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
