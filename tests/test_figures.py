"""Each figure of README and docs is one of the results, and tables are the results' own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import page_tables
import plots

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not page_tables.RESULTS.exists(), reason="a source distribution has no results"
)
FIGURE = re.compile(r"(?<![\w.,])(\d[\d,]*(?:\.\d+)?) ?(×|µs|MB)(?!\w)")
WITH_FIGURES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("benchmarks", "engine", "client", "codec", "comparison", "compat", "handlers")
    ),
    *sorted((ROOT / "docs" / "agents").glob("*.md")),
]


def figures(text: str) -> set[str]:
    return {f"{number.replace(',', '')} {unit}" for number, unit in FIGURE.findall(text)}


@pytest.mark.parametrize("page", WITH_FIGURES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_figure_in_the_docs_is_one_of_the_results(page: Path) -> None:
    assert figures(page.read_text()) - figures(page_tables.results()) == set()


def test_tables_in_the_docs_are_those_of_the_results() -> None:
    by_title = page_tables.sections(page_tables.results())
    stale = [
        page.name
        for page in page_tables.pages()
        if page_tables.filled(page.read_text(), by_title) != page.read_text()
    ]
    assert stale == [], "python benchmarks/page_tables.py writes them"


def test_a_page_has_the_rows_that_it_names_as_they_are_measured_last() -> None:
    by_title = page_tables.sections(
        "## Loads\n\n| load | time |\n|---|---|\n| a | 1 µs |\n| b | 2 µs |\n"
    )
    page = "Before\n<!-- report: Loads; b -->\nstale\n<!-- end of report -->\nafter\n"
    filled = page_tables.filled(page, by_title)
    assert "\n| load | time |\n|---|---|\n| b | 2 µs |\n" in filled
    assert "stale" not in filled
    assert page_tables.filled(filled, by_title) == filled
    with pytest.raises(LookupError):
        page_tables.filled(page.replace("; b", "; c"), by_title)


def test_figures_with_and_without_thousands_are_the_same() -> None:
    assert figures("1,049 × and 7.8µs, 5 MiB, x12 MB") == {"1049 ×", "7.8 µs"}


def test_a_plot_of_the_same_figures_is_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in "ab":
        figure, axes = plots.subplots()
        axes.plot([1, 2], [3, 4], marker="o", label="load")
        axes.legend()
        plots.save(figure, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
