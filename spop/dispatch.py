"""The dispatcher, in the twin that `spop.twins` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop._intake_py import flags_of_hello
from spop.parameters import (
    ACK,
    ARGUMENT,
    ASYNC,
    HEADERS,
    INLINE,
    LEFT,
    MESSAGE,
    MISSING,
    RUNNING,
    Parameter,
    Running,
)
from spop.twins import twin

if TYPE_CHECKING:
    from spop._async_call_py import AsyncCall
    from spop._dispatch_py import Call, Deferred, Dispatcher, Route
    from spop._intake_py import Intake
else:
    _dispatch = twin("spop._dispatch")
    AsyncCall, Intake = twin("spop._async_call").AsyncCall, twin("spop._intake").Intake
    Call, Deferred, Dispatcher = _dispatch.Call, _dispatch.Deferred, _dispatch.Dispatcher
    Route = _dispatch.Route

__all__ = [
    "ACK",
    "ARGUMENT",
    "ASYNC",
    "HEADERS",
    "INLINE",
    "LEFT",
    "MESSAGE",
    "MISSING",
    "RUNNING",
    "AsyncCall",
    "Call",
    "Deferred",
    "Dispatcher",
    "Intake",
    "Parameter",
    "Route",
    "Running",
    "flags_of_hello",
]
