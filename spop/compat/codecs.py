"""The codec of another package, replaced by ours under its own server.

Each function is replaced where it is used, as both packages import it by name. Ours reads and
writes what is well-formed. Everything else is left to the original, which has its own errors. A
function whose results are not equal to the original's in a self-test is left alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from spop.compat.imports import Patches, apply, patch
from spop.logs import SafeLogger

logger: SafeLogger = SafeLogger("spop.compat")

PACKAGES = {
    "haproxyspoa": "haproxyspoa.spoa_server",
    "spoe_forge": "spoe_forge.spoe_forge",
}
"""The packages by the name of their import, each with the module that imports all others."""


class Replacement(NamedTuple):
    """A function of our own in place of another package's.

    Attributes:
        place: the object that has the function, such as ``package.module`` or
            ``package.module.Class``.
        name: the function's name there.
        make: called with the original, makes ours.
        check: called with a function, gives results that have to be equal for both.
    """

    place: str
    name: str
    make: Callable[[Any], Any]
    check: Callable[[Any], object]


class Accelerated(NamedTuple):
    """What `accelerate` has done.

    Attributes:
        replaced: the functions that were replaced.
        left: those that were not, with the reason.
    """

    replaced: list[str]
    left: dict[str, str]


def accelerate(name: str) -> Accelerated:
    """Replace the functions of a package's codec, and keep its server. `restore` takes it back.

    What can't be replaced is logged, too.

    Args:
        name: ``"haproxyspoa"`` or ``"spoe-forge"``.

    Raises:
        ValueError: it is neither.
        ModuleNotFoundError: the package is not installed.
    """
    package = name.replace("-", "_")
    if package not in PACKAGES:
        raise ValueError(f"no codec to replace in {name!r}: it is haproxyspoa or spoe-forge")
    importlib.import_module(PACKAGES[package])
    patches, result = _patches(package)
    apply(patches)
    return result


def install() -> None:
    """Have the codecs of both packages replaced, now or when they are imported."""
    for package, module in PACKAGES.items():
        patch(module, lambda _, package=package: _patches(package)[0])  # type: ignore[misc]


def _patches(package: str) -> tuple[Patches, Accelerated]:
    module = importlib.import_module(f"spop.compat.{package}_codec")
    patches: Patches = {}
    result = Accelerated([], {})
    for each in module.replacements():
        name = f"{each.place}.{each.name}"
        try:
            owner = _find(each.place)
            original = vars(owner)[each.name]
            ours = each.make(original)
            equal = each.check(ours) == each.check(original)
        except Exception as error:
            result.left[name] = f"{type(error).__name__}: {error}"
        else:
            if equal:
                patches[owner, each.name] = ours
                result.replaced.append(name)
            else:
                result.left[name] = "its results are not equal to ours"
    for name, reason in result.left.items():
        logger.warning("%s is not replaced: %s", name, reason)
    return patches, result


def _find(place: str) -> Any:
    """A module, or a class in one."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, name = place.rpartition(".")
        return getattr(importlib.import_module(module), name)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the class of what it raises."""
    try:
        return call()
    except Exception as error:
        return type(error)


def outcomes(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
    """The outcomes of calls with these arguments."""
    return [outcome(partial(function, *arguments)) for arguments in calls]
