"""The pages of the documentation: their blocks of code, and what is said of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
RUN = ("python", "console", "bash", "toml", "ini", "yaml", "haproxy", "dockerfile")
"""Languages of the blocks that are run or checked."""
_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n+)?"
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"\n]*)\")?(?: [^\n]*)?\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INCLUDED = re.compile(r'^( *)--8<-- "(.+)"\n', re.MULTILINE)


class Block(NamedTuple):
    """A block of code: where it stands, in which language, as which file, and what it says."""

    line: int
    language: str
    title: str
    text: str
    note: str
    """Text of the comment above it, as in ``<!-- figures vary -->``."""

    @property
    def program(self) -> str:
        """The program without which it is not run, as in ``<!-- needs tshark -->``."""
        found = re.search(r"\bneeds (\S+)", self.note)
        return found[1] if found else ""

    @property
    def example(self) -> bool:
        """Whether it is a whole file that a test of its page runs: see pages.py."""
        return ": /etc/" in self.note


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, with the files that they include."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text"))
        whole = _INCLUDED.sub(_included, found["text"])
        yield Block(line, found["language"], found["title"] or "", whole, found["note"] or "")


def _included(found: re.Match[str]) -> str:
    return (ROOT / found[2]).read_text().rstrip("\n") + "\n"
