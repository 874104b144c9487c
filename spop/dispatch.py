"""The dispatcher, in the twin that `spop.twins` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop.twins import twin

if TYPE_CHECKING:
    from spop._dispatch_py import AsyncCall, Call, Deferred, Dispatcher, Route
    from spop._intake_py import Intake
else:
    _dispatch = twin("spop._dispatch")
    AsyncCall, Call, Deferred = _dispatch.AsyncCall, _dispatch.Call, _dispatch.Deferred
    Dispatcher = _dispatch.Dispatcher
    Intake, Route = twin("spop._intake").Intake, _dispatch.Route

__all__ = ["AsyncCall", "Call", "Deferred", "Dispatcher", "Intake", "Route"]
