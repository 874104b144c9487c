"""Patches of other packages: applied when a package is imported, taken back by `restore`.

Nothing is imported for them, as importing a package may configure logging. A module that is
imported already is patched at once.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Patches = dict[tuple[Any, str], Any]
"""What replaces attributes: by object and name."""

Make = Callable[[ModuleType], Patches]
"""Makes the patches of a module that was imported."""

_waiting: dict[str, Make] = {}
_replaced: list[tuple[Any, str, Any]] = []


def patch(module: str, make: Make) -> None:
    """Patch a module, now or when it is imported."""
    if module in sys.modules:
        apply(make(sys.modules[module]))
        return
    _waiting[module] = make
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def apply(patches: Patches) -> None:
    """Replace attributes, unless they are replaced already."""
    done = [(id(owner), name) for owner, name, _ in _replaced]
    for (owner, name), new in patches.items():
        if (id(owner), name) in done:
            continue
        _replaced.append((owner, name, vars(owner)[name]))
        setattr(owner, name, new)


Functions = list[dict[str, Any]]
"""What is called, by name, of some objects."""


def functions(*owners: Any) -> Functions:
    """What can be called of modules and classes. Another result later says that it was changed."""
    return [
        {name: each for name, each in vars(owner).items() if callable(each)} for owner in owners
    ]


def overrides(instance: Any, **originals: Any) -> bool:
    """Whether an object, or its class, has methods of its own in place of these functions."""
    return any(
        getattr(getattr(instance, name), "__func__", None) is not original
        for name, original in originals.items()
    )


def restore() -> None:
    """Put everything back that was replaced, and patch nothing more."""
    _waiting.clear()
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    while _replaced:
        owner, name, original = _replaced.pop()
        setattr(owner, name, original)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that wait for their import, by means of the other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        make = _waiting.get(fullname)
        if make is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, make)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads a module as its own loader does, and patches it."""

    def __init__(self, loader: Any, make: Make) -> None:
        self._loader = loader
        self._make = make

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if _waiting.pop(module.__name__, None) is not None:
            apply(self._make(module))


_finder = _Finder()
