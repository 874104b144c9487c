"""The other modules of an implementation, by the dispatcher's."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


def intake_class(dispatch: ModuleType) -> Any:
    """The intake's class of the same implementation as the dispatcher's module."""
    return importlib.import_module(dispatch.__name__.replace("_dispatch", "_intake")).Intake


def route_class(dispatch: ModuleType) -> Any:
    """The routes' class of the same implementation as the dispatcher's module."""
    return importlib.import_module(dispatch.__name__.replace("_dispatch", "_route")).Route
