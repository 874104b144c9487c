"""The dispatcher, in the twin that `spop.twins` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop.twins import twin

if TYPE_CHECKING:
    from spop._async_call_py import AsyncCall
    from spop._dispatch_py import Call, Deferred, Dispatcher
    from spop._intake_py import Intake, Memory
    from spop._route_py import Route
else:
    _dispatch = twin("spop._dispatch")
    AsyncCall = twin("spop._async_call").AsyncCall
    Call, Deferred, Dispatcher = _dispatch.Call, _dispatch.Deferred, _dispatch.Dispatcher
    Route = twin("spop._route").Route
    _intake = twin("spop._intake")
    Intake, Memory = _intake.Intake, _intake.Memory

__all__ = ["AsyncCall", "Call", "Deferred", "Dispatcher", "Intake", "Memory", "Route"]
