"""Each figure of README and docs is of a claim that the results bear out, and tables are the results' own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import claims
import page_tables
import plots

ROOT = Path(__file__).parent.parent
BY_TITLE = page_tables.sections(page_tables.results())
PAGES = list(page_tables.pages())
ELSEWHERE = {"docs/proof.md"}
"""Its figures are those of tests and coverage, which it dates itself."""
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    """A page without its code, and without the tables that come from the results."""
    return " ".join(CODE.sub(" ", page_tables.MARKS.sub(" ", text)).split())


def unfounded(page: str, text: str) -> list[str]:
    """The claims that the page does not have, and the figures that are of no claim."""
    complaints, spans = [], []
    for claim in claims.CLAIMS.get(page, []):
        try:
            spans.append(claim.span(text))
        except LookupError as error:
            complaints.append(str(error))
    settings = claims.SETTINGS.get(page, set())
    for at, _ in claims.figures(text):
        if at[0] not in settings and not any(a <= at.start() and at.end() <= b for a, b in spans):
            complaints.append(at[0])
    return complaints


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_figure_in_the_docs_is_of_a_claim(page: Path) -> None:
    if name(page) not in ELSEWHERE:
        assert unfounded(name(page), prose(page.read_text())) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_another_figure_in_the_docs_is_found(page: Path) -> None:
    text = prose(page.read_text())
    settings = claims.SETTINGS.get(name(page), set())
    for at, _ in [] if name(page) in ELSEWHERE else claims.figures(text):
        other = f"{text[: at.start()]}1{text[at.start() :]}"
        assert at[0] in settings or unfounded(name(page), other) != [], at[0]


@pytest.mark.parametrize("page", claims.CLAIMS)
def test_a_claim_is_true(page: str) -> None:
    false = []
    for claim in claims.CLAIMS[page]:
        cell = claims.cell(claim.where, BY_TITLE)
        if not claims.is_true(claim.words, cell):
            false.append(f"{claim.quotation!r}: {cell} ({claim.where})")
    assert false == [], f"to be changed in {page}, and in tests/claims.py"


def test_a_claim_on_the_report_holds_from_run_to_run() -> None:
    report = page_tables.sections((page_tables.RESULTS / "report.md").read_text())
    exact = [
        claim.quotation
        for page in claims.CLAIMS.values()
        for claim in page
        if claim.where.partition("; ")[0] in report and claims.is_exact(claim.words)
    ]
    assert exact == []


@pytest.mark.parametrize(
    ("words", "cell", "is_true"),
    [
        ("1.1 to 1.4 times as much", "7.8 µs, 1.19 ×", True),
        ("1.1 to 1.4 times as much", "7.8 µs, 1.41 ×", False),
        ("1.1 to 1.4 times as much", "1.20 to 1.48 ×", False),
        ("about 2 ×", "2.49 ×", True),
        ("about 2 ×", "2.51 ×", False),
        ("under 20 MB", "15 MB", True),
        ("under 20 MB", "21 MB", False),
        ("over 100,000 frames a second", "9 µs, 1.2 ×", True),
        ("over 100,000 frames a second", "11 µs, 1.2 ×", False),
        ("1.3 million frames", "1,300,000", True),
        ("1.3 million frames", "1.4 million", False),
    ],
)
def test_a_claim_is_held_against_the_figure_of_its_unit(
    words: str, cell: str, is_true: bool
) -> None:
    assert claims.is_true(words, cell) is is_true


def test_tables_in_the_docs_are_those_of_the_results() -> None:
    stale = [
        page.name
        for page in page_tables.pages()
        if page_tables.filled(page.read_text(), BY_TITLE) != page.read_text()
    ]
    assert stale == [], "python benchmarks/page_tables.py writes them"


def test_a_page_has_the_rows_that_it_names_as_they_are_measured_last() -> None:
    by_title = page_tables.sections(
        "## Loads\n\n2026-11-27, CPython 3.11.7, `load.py`.\n\n"
        "| load | time |\n|---|---|\n| a | 1 µs |\n| b | 2 µs |\n"
    )
    page = "Before\n<!-- report: Loads; b -->\nstale\n<!-- end of report -->\nafter\n"
    filled = page_tables.filled(page, by_title)
    assert "\n| load | time |\n|---|---|\n| b | 2 µs |\n" in filled
    assert "\nMeasured 2026-11-27, CPython 3.11.7, `load.py`.\n" in filled
    assert "stale" not in filled
    assert page_tables.filled(filled, by_title) == filled
    with pytest.raises(LookupError):
        page_tables.filled(page.replace("; b", "; c"), by_title)


def test_a_plot_of_the_same_figures_is_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in "ab":
        figure, axes = plots.subplots()
        axes.plot([1, 2], [3, 4], marker="o", label="load")
        axes.legend()
        plots.save(figure, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
