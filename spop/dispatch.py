"""The dispatcher, in the twin that `spop.twins` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop.twins import twin

if TYPE_CHECKING:
    from spop._dispatch_py import AsyncCall, Call, Deferred, Dispatcher, Route
    from spop._intake_py import Intake, Memory
else:
    _dispatch = twin("spop._dispatch")
    AsyncCall, Call, Deferred = _dispatch.AsyncCall, _dispatch.Call, _dispatch.Deferred
    Dispatcher = _dispatch.Dispatcher
    Route = _dispatch.Route
    _intake = twin("spop._intake")
    Intake, Memory = _intake.Intake, _intake.Memory

__all__ = ["AsyncCall", "Call", "Deferred", "Dispatcher", "Intake", "Memory", "Route"]
