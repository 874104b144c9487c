"""The tables of README and docs, out of the results.

    python benchmarks/page_tables.py

A page says which table it has between two marks, and of which rows where not of all:

    <!-- report: Title of the section; row; other row | its second cell -->
    <!-- end of report -->

Below a table stands when and how it was measured, which is the first line of its section.

What ``report.py`` measures is in results/report.md; what takes longer, or needs more than is installed
everywhere, is kept beside it with its date and conditions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MARKS = re.compile(r"(<!-- report: ([^\n]+) -->\n).*?(<!-- end of report -->)", re.DOTALL)
SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n?)*)", re.MULTILINE)
DATED = re.compile(r"\s*(\d{4}-\d\d-\d\d.*[^.\n])\.?\n")
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def pages() -> Iterator[Path]:
    """All that may have marks."""
    yield HERE.parent / "README.md"
    yield from sorted((HERE.parent / "docs").rglob("*.md"))


def results() -> str:
    """The text of all results."""
    return "\n".join(path.read_text() for path in sorted(RESULTS.glob("*.md")))


def sections(text: str) -> dict[str, str]:
    """Title to text."""
    return {found[1]: found[2] for found in SECTION.finditer(text)}


def table(what: str, by_title: dict[str, str]) -> str:
    """The first table of a section, all of it or the rows that begin with these cells, and when
    and how it was measured."""
    title, _, names = what.partition("; ")
    found, dated = TABLE.search(by_title[title]), DATED.match(by_title[title])
    if found is None or dated is None:
        raise LookupError(f"{title!r} has no table, or begins with no date")
    head, ruler, *rows = found[0].splitlines()
    if names:
        wanted = names.split("; ")
        rows = [row for name in wanted for row in rows if row.startswith(f"| {name} |")]
        if len(rows) < len(wanted):
            raise LookupError(f"{title!r} has not all of {wanted}")
    return "\n".join([head, ruler, *rows, "", f"Measured {dated[1]}."])


def filled(page: str, by_title: dict[str, str]) -> str:
    """The page with the tables of these sections."""
    return MARKS.sub(lambda at: f"{at[1]}\n{table(at[2], by_title)}\n\n{at[3]}", page)


def main() -> None:
    by_title = sections(results())
    for path in pages():
        before = path.read_text()
        after = filled(before, by_title)
        if after != before:
            path.write_text(after)
            print(f"written: {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
