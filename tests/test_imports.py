"""What is imported where nothing needs more: memory of each worker, and the time to start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import spop

COSTLY = {
    "argparse", "asyncio", "click", "difflib", "email", "http", "multiprocessing", "spop.cli",
    "spop.client", "spop.engine", "spop.settings", "spop.web", "ssl", "subprocess", "tempfile",
    "tomllib", "urllib.request",
}  # fmt: skip
"""Modules that an agent with an inline handler has no use for."""

AGENT = """
from spop import Agent, Ack, Message
agent = Agent()

@agent.message("check")
def check(ip):
    return {"sess.score": 1}
"""
SERVING = f"{AGENT}with agent.serve_in_background(log_connections='info'): pass\n"


def modules_after(code: str) -> set[str]:
    """What a new interpreter without site-packages' startup files has imported."""
    path = [str(Path(spop.__file__).parents[1]), *sys.path]  # An editable one needs these files.
    shown = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys\nsys.path[:] = {path!r}\n{code}\n"
         "print(*sys.modules)"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(shown.stdout.split())


def test_import_spop_imports_nothing_that_is_not_asked_for() -> None:
    loaded = {name for name in modules_after("import spop") if name.startswith("spop")}
    assert loaded == {"spop", "spop.version"}


@pytest.mark.parametrize("code", [AGENT, SERVING])
def test_an_agent_imports_only_what_it_uses(code: str) -> None:
    assert not modules_after(code) & COSTLY


def test_spop_serve_imports_no_other_command() -> None:
    loaded = modules_after("from spop.cli import main; main.get_command(None, 'serve')")
    assert not {f"spop.cli.{name}" for name in ("bench", "engine", "top")} & loaded
    # What a worker may need is imported before it becomes a user who may not read Python's files.
    assert COSTLY & loaded == {"click", "difflib", "spop.cli", "spop.settings", "tomllib"}


def test_all_public_names_can_be_imported() -> None:
    for name in spop.__all__:
        assert getattr(spop, name) is not None
        assert name in dir(spop)
    assert spop.codec.IMPLEMENTATION in ("c", "python")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = spop.nothing  # type: ignore[attr-defined]
