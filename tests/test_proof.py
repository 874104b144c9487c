"""`make coverage` sorts the lines that are not run, by reasons that docs/proof.md gives."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "ci"))

uncovered = pytest.importorskip("uncovered", reason="coverage is not installed")
Reason = uncovered.Reason

PAGE = ROOT / "docs" / "proof.md"
PACKAGE = ROOT / "spop"
SOURCE = """
class Agent:
    def serve(self):
        try:
            serve()
        except OSError:
            give_up()

    def stop(self):
        def inner(
            x,
        ):
            return x
        return inner
"""


def modules(pattern: str) -> list[Path]:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx")]
    return [path for path in files if fnmatch.fnmatch(str(path.relative_to(PACKAGE)), pattern)]


@pytest.mark.parametrize("reason", uncovered.reasons(PAGE), ids=str)
def test_lines_that_the_page_has_a_reason_for_exist(reason: Any) -> None:
    paths = [path for pattern in reason.modules for path in modules(pattern)]
    assert all(map(modules, reason.modules))
    sources = [path.read_text() for path in paths]
    names = {name for source in sources for name in uncovered.names_of(source).values()}
    for name in reason.names:
        assert name in {*uncovered.KINDS, *names} or any(name in source for source in sources), name


def test_the_page_has_reasons() -> None:
    assert len(uncovered.reasons(PAGE)) > 5


def test_lines_are_sorted_by_what_they_are_in(tmp_path: Path) -> None:
    path = tmp_path / "agent.py"
    path.write_text(SOURCE)
    lines = list(uncovered.lines_of(path, "agent.py", {7, 10, 13, 14}, {2, 3, 4, 5, 6, 9}))
    assert [(line.number, line.name, line.kind) for line in lines] == [
        (7, "Agent.serve", "errors of the system"),
        (10, "Agent.stop.inner", "functions not called"),
        (13, "Agent.stop.inner", "functions not called"),
        (14, "Agent.stop", "functions not called"),
    ]


@pytest.mark.parametrize(
    ("module", "name", "explained"),
    [
        ("*", "errors of the system", True),
        ("agent.py", "Agent", True),
        ("agent.py", "Agent.serve", True),
        ("agent.py", "Agent.ser", False),
        ("agent.py", "give_up()", True),
        ("server/*", "Agent", False),
    ],
)
def test_a_reason_is_of_a_kind_of_a_function_or_of_a_text(
    module: str, name: str, explained: bool
) -> None:
    line = uncovered.Line(
        "agent.py", 7, "            give_up()", "Agent.serve", "errors of the system"
    )
    assert line.has(Reason([module], [name], "why")) is explained
