"""Agents written for other packages, unchanged, on this package's connections and codec.

``python -m spop.compat SCRIPT [ARG]...`` runs an agent that was written for ``haproxyspoa`` or
``spoe-forge``; `install` does the same inside of a program. The package that the agent imports
has to be installed: its classes stay in use, and its server is replaced. `accelerate` leaves its
server alone, and replaces the functions of its codec.
"""

from __future__ import annotations

import importlib.util

from spop.compat import haproxyspoa, spoe_forge
from spop.compat.codecs import accelerate
from spop.compat.imports import patch, restore

__all__ = ["accelerate", "install", "restore"]

_SERVERS = {
    "haproxyspoa.spoa_server": haproxyspoa.drop_in,
    "spoe_forge.spoe_forge": spoe_forge.drop_in,
}


def installed() -> list[str]:
    """The packages that are installed, of those that there are drop-ins for."""
    names = dict.fromkeys(module.partition(".")[0] for module in _SERVERS)
    return [name for name in names if importlib.util.find_spec(name) is not None]


def install() -> None:
    """Replace the servers of both packages, now or when they are imported.

    Raises:
        ModuleNotFoundError: neither is installed.
    """
    if not installed():
        raise ModuleNotFoundError("neither haproxyspoa nor spoe-forge is installed")
    for module, make in _SERVERS.items():
        patch(module, make)
