"""Both twins, side by side in one process, and what a comparison of them looks at."""

from __future__ import annotations

import importlib
import os
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import ModuleType
from typing import Any

from spop.errors import ProtocolError

CHOOSERS = ("spop.twins", "spop.codec", "spop.dispatch", "spop.headers", "spop.connection")
"""The modules that use the twin that `spop.twins` chooses."""


@dataclass(frozen=True)
class Twins:
    """The modules of one implementation."""

    codec: ModuleType
    dispatch: ModuleType
    connection: ModuleType
    headers: ModuleType
    cache: ModuleType
    acks: ModuleType


def _twins(suffix: str) -> Twins:
    return Twins(
        *[importlib.import_module(f"spop.{name}") for name in ("codec", "dispatch", "connection")],
        *[
            importlib.import_module(f"spop.{name}{suffix}")
            for name in ("_headers", "_cache", "load._acks")
        ],
    )


def in_python() -> Twins:
    """The twins in Python, beside the compiled ones that are imported already."""
    spop = sys.modules["spop"]
    kept = {name: sys.modules.pop(name) for name in CHOOSERS if name in sys.modules}
    before = os.environ.get("SPOP_PURE", "")
    os.environ["SPOP_PURE"] = "1"
    try:
        return _twins("_py")
    finally:
        os.environ["SPOP_PURE"] = before
        sys.modules.update(kept)
        for name, module in kept.items():
            setattr(spop, name.partition(".")[2], module)


def compiled() -> Twins:
    twins = _twins("")
    assert twins.codec.IMPLEMENTATION == "c", "the compiled modules are not built"
    return twins


def exact(data: bytes) -> array[int]:
    """A buffer that ends where its memory ends, so that a sanitizer sees each byte too many."""
    return array("B", data)


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function returns, or the error that bytes from the network may raise."""
    try:
        return function(*args, **kwargs)
    except ProtocolError as error:
        return error


@cache
def _names(kind: type[Any]) -> list[str]:
    return [each.name for each in fields(kind)]


EXACT = (bytes, str, int, bool, float, type(None))


def same(ours: Any, theirs: Any) -> bool:
    """Whether two outcomes are equal, as `plain` shows them, in a third of its time."""
    kind = type(ours)
    if kind is not type(theirs):
        return bool(plain(ours) == plain(theirs))
    if kind in EXACT:
        return bool(ours == theirs)
    if kind is list or kind is tuple:
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if is_dataclass(kind):
        return all(same(getattr(ours, name), getattr(theirs, name)) for name in _names(kind))
    return bool(plain(ours) == plain(theirs))


def plain(value: Any) -> Any:
    """Something to compare: what an outcome is made of, with the type of each value."""
    if isinstance(value, ProtocolError):
        return type(value).__name__, str(value), value.status
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [plain(getattr(value, each.name)) for each in fields(value)]
    return repr(value)
