"""Agents for HAProxy's Stream Processing Offload Engine, and a client to talk to them.

`Agent` is where to begin; `spop.codec` is the protocol's encoding, usable on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spop.agent import Agent
from spop.batch import Batch
from spop.client import Client
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
from spop.version import __version__

if TYPE_CHECKING:
    from spop.client import AsyncClient

__all__ = [
    "UNSET",
    "Ack",
    "Action",
    "Agent",
    "AsyncClient",
    "Batch",
    "Binary",
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


def __getattr__(name: str) -> Any:
    """`AsyncClient`, imported with asyncio once it is asked for."""
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spop.client import AsyncClient

    return AsyncClient
