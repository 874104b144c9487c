"""The agent's own sources: the imported files, without Python's and installed packages'.

A worker compiles them anew. Python's bytecode cache would keep the earlier version of a file that
was changed within the same second and has the same size.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType
from typing import Any

_INSTALLED = tuple(sysconfig.get_paths().values())


def source_files() -> list[str]:
    """The files of all modules that are neither Python's nor of installed packages."""
    paths = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return [os.path.abspath(path) for path in paths if path and _is_own(path)]


def import_as_they_are() -> None:
    """Import own sources without their bytecode in this process, from now on."""
    sys.meta_path.insert(0, _Finder())


class SourceLoader(SourceFileLoader):
    """Loads a module from its source, never from its bytecode."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class _Finder:
    """Asks the finders behind it, and replaces the loader of own sources."""

    def find_spec(self, *args: Any) -> ModuleSpec | None:
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(*args) if find_spec else None
            if spec is not None:
                loader = spec.loader
                if type(loader) is SourceFileLoader and _is_own(loader.path):
                    spec.loader = SourceLoader(loader.name, loader.path)
                return spec
        return None


def _is_own(path: str) -> bool:
    return not os.path.abspath(path).startswith(_INSTALLED)
