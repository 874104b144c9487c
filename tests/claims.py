"""What the prose of README and docs claims, and the results that bear it out.

A claim names its page, quotes the page, and says where its figure stands in the results:

    "docs/page.md": (("it needs about 1.2 times the CPU", "Title of the section; row; column"),)

The page has the quotation once. The claim has one figure, and is all of the quotation, or what is in its
braces. What stands before the figure says how it is meant:

- ``under``, ``over``, ``at most``, ``at least`` and the like: a bound;
- ``about``: within a quarter of what was measured;
- ``1.1 to 1.4``: within them;
- nothing: just this. Only for results that are kept, as those of the report are measured anew.

A column or a row may be named by its beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNIT = r"×|µs|ms|ns|KB|KiB|MB|MiB|GB|GiB|%|million|times|frames a second"
FIGURE = re.compile(
    rf"(?<![\w.,:/-])({NUMBER})(?: to ({NUMBER}))?(?: ?({UNIT})(?![\w=/])|(?<=\d,\d\d\d)(?![\d,.]))"
)
BARE = re.compile(rf"(?<![\w.,:/-])({NUMBER})(?: to ({NUMBER}))?()")
BOUND = re.compile(
    r"(?:(under|below|less than|at most|up to)|(over|above|more than|at least)|(about|near(?:ly)?)) $"
)
ABOUT = 1.25


class Figure(NamedTuple):
    """From the least to the most, which are the same for a single number."""

    least: float
    most: float
    unit: str


def figures(text: str, pattern: re.Pattern[str] = FIGURE) -> Iterator[tuple[re.Match[str], Figure]]:
    for found in pattern.finditer(text):
        least, most = (float((end or found[1]).replace(",", "")) for end in found.groups()[:2])
        unit, scale = (found[3] or "", 1.0) if found[3] != "million" else ("", 1e6)
        yield found, Figure(least * scale, most * scale, "×" if unit == "times" else unit)


class Claim(NamedTuple):
    quotation: str
    where: str

    @property
    def words(self) -> str:
        """What claims something."""
        braced = re.search(r"\{(.+)\}", self.quotation)
        return braced[1] if braced else self.quotation

    def span(self, page: str) -> tuple[int, int]:
        """Where it stands. Raises LookupError where the page does not have it, or has it twice."""
        text = re.sub("[{}]", "", self.quotation)
        found = [at.start() for at in re.finditer(rf"(?<![\w.,]){re.escape(text)}", page)]
        if len(found) != 1:
            raise LookupError(f"the page has {text!r} {len(found)} times")
        begin = found[0] + max(0, self.quotation.find("{"))
        return begin, begin + len(self.words)


def claimed(words: str) -> Figure:
    """The span in which the result has to be. Raises ValueError where there is not one figure."""
    found = list(figures(words)) or list(figures(words, BARE))
    if len(found) != 1:
        raise ValueError(f"{words!r} has {len(found)} figures")
    at, figure = found[0]
    bound = BOUND.search(words[: at.start()])
    if bound is None:
        return figure
    if bound[3]:
        return figure._replace(least=figure.least / ABOUT, most=figure.most * ABOUT)
    return figure._replace(least=0.0) if bound[1] else figure._replace(most=float("inf"))


def is_exact(words: str) -> bool:
    claim = claimed(words)
    return claim.least == claim.most


def result(cell: str, unit: str) -> Figure:
    """The first figure of a cell that has this unit, or none."""
    if unit == "frames a second":
        cost = result(cell, "µs")
        return Figure(1e6 / cost.most, 1e6 / cost.least, unit)
    for pattern in (FIGURE, BARE):
        for _, figure in figures(cell, pattern):
            if figure.unit in (unit, ""):
                return figure
    raise LookupError(f"{cell!r} has no {unit}")


def is_true(words: str, cell: str) -> bool:
    claim = claimed(words)
    measured = result(cell, claim.unit)
    return claim.least <= measured.least and measured.most <= claim.most


def cell(where: str, by_title: dict[str, str]) -> str:
    """The cell of the section's tables that has this row and column.

    Raises:
        LookupError: there is none.
    """
    title, *row, column = where.split("; ")
    if title not in by_title:
        raise LookupError(f"no section {title!r}")
    head: list[str] = []
    for line in by_title[title].splitlines():
        cells = [each.strip() for each in line.strip("|").split("|")] if line[:1] == "|" else []
        if not cells:
            head = []
        elif not head:
            head = cells
        elif not cells[0].startswith("---") and all(
            each.startswith(name) for each, name in zip(cells, row, strict=False)
        ):
            for name, each in zip(head, cells, strict=True):
                if name.startswith(column):
                    return each
    raise LookupError(f"no {where!r}")


def by_page(pages: dict[str, dict[str, str]]) -> dict[str, list[Claim]]:
    return {page: [Claim(*each) for each in claims.items()] for page, claims in pages.items()}


FRAMES = "Agents, their CPU per frame against the one in C"
KINDS = "Handler kinds, to an inline one"
CORES = "Processes and threads"
LOST = "Requests lost as agents are restarted in turn"
EVERYTHING = "Ten minutes of everything"
GENERATOR = "The load generator of spop bench"

CLAIMS = by_page(
    {
        "README.md": {
            "1.0 to 1.4 times": f"{FRAMES}; ping-pong; spop",
            "1.7 to 3.2 times": f"{FRAMES}; 20 in flight; spop",
            "idle connections take under 20 MB": "Memory of connections; 10,000 idle; memory",
        },
        "docs/benchmarks.md": {
            "a frame of 15,000 bytes": "Finding the parts of a frame; frame",
            "takes under 0.3 µs": "Finding the parts of a frame; 15,000 bytes; time",
            "61,000 different addresses": "Cached answers, to the agent in C; 61,000; addresses",
            "56,500 messages": "Batches; 64; messages",
            "1,900 one by one": "Batches; 1; messages",
            "30 times as many": "Batches; 64; to one",
            "takes 1.5 KB of": "Memory of connections; an idle connection; memory",
            "takes 1.5 to 2.2 KB": "Memory of connections; a connection in ping-pong; memory",
            "18,816 connections": f"{EVERYTHING}; 10; connections",
            "195 million frames": f"{EVERYTHING}; 10; frames",
            "54.2 MiB after the first minute": f"{EVERYTHING}; 10; after the first",
            "55.4 MiB after the last": f"{EVERYTHING}; 10; after the last",
            "52.7 to 56.7 MiB in between": f"{EVERYTHING}; 10; at any time",
            "for 94 ms": "The longest pass, without a limit; failing messages; longest",
        },
        "docs/comparison.md": {
            "1.0 to 1.4 times": f"{FRAMES}; ping-pong; spop",
            "1.7 to 3.2 times": f"{FRAMES}; 20 in flight; spop",
            "about 40,000": "Lines of Python; spop",
            "{2,800} |": "Lines of Python; spoe-forge",
        },
        "docs/draining.md": {
            "lost 3 of {109,000} requests": f"{LOST}; 2.6.12, pipelining; requests",
            "3.0.11 lost 19 of {93,000}": f"{LOST}; 3.0.11, pipelining; requests",
            "lost none of {82,000}": f"{LOST}; 3.0.11, in lock step; requests",
            "let 2 of {52,000} wait": f"{LOST}; 2.6.12, in lock step; requests",
        },
        "docs/handlers.md": {
            "{1.5 to 3 ×}, 3 to 6 ×": f"{KINDS}; 3.12; `blocking=True`; ping-pong",
            "1.5 to 3 ×, {3 to 6 ×}": f"{KINDS}; 3.12; `blocking=True`; 20",
            "{1.4 to 2.5 ×}, 4 to 8 ×": f"{KINDS}; 3.12; `async def`, suspends; ping-pong",
            "1.4 to 2.5 ×, {4 to 8 ×}": f"{KINDS}; 3.12; `async def`, suspends; 20",
            "{1.0 to 1.8 ×}, 1.6 to 3.5 ×": f"{KINDS}; 3.12; `async def`, does not; ping-pong",
            "1.0 to 1.8 ×, {1.6 to 3.5 ×}": f"{KINDS}; 3.12; `async def`, does not; 20",
            "{1.4 to 2.4 ×}, 3.6 to 7 ×": f"{KINDS}; 3.11; `async def`, does not; ping-pong",
            "1.4 to 2.4 ×, {3.6 to 7 ×}": f"{KINDS}; 3.11; `async def`, does not; 20",
            "answer {about 2 ×} as many": f"{CORES}; 2 processes; CPython 3.12",
            "answer {about 1 ×} as many": f"{CORES}; 2 threads; CPython 3.12",
        },
        "docs/sizing.md": {
            "over 80,000 frames a second": f"{FRAMES}; ping-pong; spop",
            "over 600,000 frames a second": f"{FRAMES}; 20 in flight; spop",
            "processes answer {about 2 times}": f"{CORES}; 2 processes; CPython 3.12",
            "Two threads answer {about 1 times}": f"{CORES}; 2 threads; CPython 3.12",
            "two threads answer {about 2 times}": f"{CORES}; 2 threads; CPython 3.13.15, free",
            "takes {under 2 KB}, and": "Memory of connections; an idle connection; memory",
        },
        "docs/tools.md": {
            "drives 1.3 million": f"{GENERATOR}; 20 in flight",
            "and 3 million at 100": f"{GENERATOR}; 100 in flight",
            "drives 0.1 million": f"{GENERATOR}; ping-pong",
        },
    }
)
SETTINGS = {
    "docs/agents/ratelimit.md": {"1 %"},
    "docs/agents/reputation.md": {"256 MiB", "1 %"},
    "docs/agents/score.md": {"2 ms"},
    "docs/architecture.md": {"2 ms", "0.5 ms", "0.1 ms", "5 ms"},
    "docs/benchmarks.md": {"0.2 ms", "50 ms", "0.5 ms", "15 MiB"},
    "docs/handlers.md": {"1 ×", "10 %", "1 KiB"},
    "docs/metrics.md": {"50 %", "99 %"},
    "docs/options.md": {"1.0 to 1.25 times", "10 %", "50 KiB"},
    "docs/reload.md": {"10 %"},
    "docs/sizing.md": {"50 ms"},
    "docs/tools.md": {"50 %", "99 %", "64 KiB", "5ms", "3 %"},
    "docs/troubleshooting.md": {"100 %"},
    "docs/watching.md": {"99 %", "2.1 ms"},
    "docs/web.md": {"64 KiB"},
}
"""Limits, defaults, examples: figures that nobody measures."""
