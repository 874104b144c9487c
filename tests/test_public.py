"""What is public: the modules of the page on stability, and the names in their ``__all__``."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "stability.md").read_text()
MODULES = re.findall(r"`(spop(?:\.\w+)*)`(?=[^\n]*\|)", PAGE.partition("Public, too")[0])
IMPORT = re.compile(r"^\s*from (spop(?:\.\w+)*) import (?:\(([^)]*)\)|(.*))$", re.MULTILINE)
NOT_FOR_OTHERS = {"spop.testing.haproxy"}
"""Where this project's own examples reach further."""


@pytest.mark.parametrize("name", MODULES)
def test_each_public_name_exists_and_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(set(module.__all__), key=_order)
    for each in module.__all__:
        found = getattr(module, each)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert inspect.getdoc(found), f"{name}.{each}"


def _order(name: str) -> tuple[int, str]:
    """Constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_the_page_names_modules() -> None:
    assert len(MODULES) >= 18
    assert {"spop", "spop.codec", "spop.compat"} <= set(MODULES)


def test_the_reference_has_each_public_name() -> None:
    pytest.importorskip("click", reason="the site shows the commands' help")
    pages = runpy.run_path(str(ROOT / "ci" / "site.py"))["on_page_markdown"]
    text = "\n".join(pages(page.read_text()) for page in (ROOT / "docs").glob("api*.md"))
    shown = {_found(name) for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    missing = [
        f"{module}.{name}"
        for module in MODULES
        for name in importlib.import_module(module).__all__
        if name != "__version__" and _found(f"{module}.{name}") not in shown
    ]
    assert missing == []


def _found(name: str) -> int:
    """What a name means, as a number: one class may have several names."""
    module, _, last = name.rpartition(".")
    found = importlib.import_module(name) if name in sys.modules else None
    return id(found or getattr(importlib.import_module(module), last))


def test_docs_and_examples_use_what_is_public() -> None:
    private = {
        f"{path.name}: {module}.{name}"
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *_examples())
        for module, name in _imports(path.read_text())
        if module not in NOT_FOR_OTHERS and not _is_public(module, name)
    }
    assert private == set()


def _examples() -> Iterator[Path]:
    yield from (ROOT / "examples").rglob("*.py")
    yield from (ROOT / "spop" / "cli" / "project").glob("*.in")


def _imports(text: str) -> Iterator[tuple[str, str]]:
    for module, several, one in IMPORT.findall(text):
        for name in (several or one.partition("#")[0]).split(","):
            if name.strip():
                yield module, name.split()[0]


def _is_public(module: str, name: str) -> bool:
    if f"{module}.{name}" in MODULES:
        return True
    return module in MODULES and name in importlib.import_module(module).__all__
