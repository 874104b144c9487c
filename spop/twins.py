"""Which twins are used: the compiled modules where they were built, else those in Python.

``SPOP_PURE=1`` in the environment forces the latter. `IMPLEMENTATION` says which they are.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, Final


def _implementation() -> str:
    if os.environ.get("SPOP_PURE", "") not in ("", "0"):
        return "python"
    return "python" if importlib.util.find_spec("spop._codec") is None else "c"


IMPLEMENTATION: Final = _implementation()
""""c" or "python"."""


def twin(name: str) -> Any:
    """The module `name`, ``"spop._codec"`` for one, in the implementation that is used.

    Raises:
        ImportError: the compiled module can't be loaded. It refuses a second interpreter of the
            process.
    """
    if IMPLEMENTATION == "python":
        return importlib.import_module(f"{name}_py")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}; with SPOP_PURE=1 {name} is not used", name=name) from error
