"""Agents for HAProxy's Stream Processing Offload Engine, and a client to talk to them.

`Agent` is where to begin; `spop.codec` is the protocol's encoding, usable on its own.
"""

from spop.agent import Agent
from spop.client import Client
from spop.connection import Peer
from spop.errors import (
    DisconnectedError,
    HandlerError,
    LocalProtocolError,
    ProtocolError,
    SpopError,
    SpopTimeoutError,
)
from spop.frames import Ack, Action, Message
from spop.values import UNSET, Binary, Int32, Int64, String, UInt32, UInt64
from spop.version import __version__

__all__ = [
    "UNSET",
    "Ack",
    "Action",
    "Agent",
    "Binary",
    "Client",
    "DisconnectedError",
    "HandlerError",
    "Int32",
    "Int64",
    "LocalProtocolError",
    "Message",
    "Peer",
    "ProtocolError",
    "SpopError",
    "SpopTimeoutError",
    "String",
    "UInt32",
    "UInt64",
    "__version__",
]
