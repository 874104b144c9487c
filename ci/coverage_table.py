"""Prints what `make coverage` measured: lines and branches of each package, in Python and in Cython.

python ci/coverage_table.py [--missing]    in the directory of the data; --missing: which lines

Coverage knows no branches of Cython. Here an `if`, `elif`, `while` or `for` of a `.pyx` is a branch
with two ways on. A way was taken if a line was seen that follows.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from coverage import Coverage

CONDITION = re.compile(r"\s*(?:if|elif|while|for)\b(?!.*:\s*[^#\s])")
"""A line of Cython that goes on in two ways. One that ends with its statement has one line for both."""
WAYS = 2


def cython_branches(path: Path, measure: Coverage, lines: set[int]) -> tuple[int, int]:
    """How many ways a file's conditions have, and how many were taken."""
    source = path.read_text().splitlines()
    following: defaultdict[int, set[int]] = defaultdict(set)
    for line, after in measure.get_data().arcs(str(path)) or []:
        following[line].add(after)
    conditions = [line for line in lines if CONDITION.match(source[line - 1])]
    return WAYS * len(conditions), sum(min(WAYS, len(following[line])) for line in conditions)


def counts(path: Path, measure: Coverage) -> Counter[str]:
    _, statements, _, missing, _ = measure.analysis2(str(path))
    if path.suffix == ".py":
        stats = measure.branch_stats(str(path)).values()
        branches, taken = sum(total for total, _ in stats), sum(done for _, done in stats)
    else:
        branches, taken = cython_branches(path, measure, set(statements))
    return Counter(
        lines=len(statements),
        run=len(statements) - len(missing),
        branches=branches,
        taken=taken,
    )


def kind(path: Path) -> str:
    if path.suffix != ".py":
        return "Cython"
    return "Python, the twins" if path.stem.endswith("_py") else "Python"


def row(name: str, what: str, found: Counter[str]) -> str:
    def part(done: str, of: str) -> str:
        share = f"{100 * found[done] / found[of]:.1f} %" if found[of] else "–"
        return f"{found[done]} of {found[of]} | {share}"

    return f"| {name} | {what} | {part('run', 'lines')} | {part('taken', 'branches')} |"


def main() -> None:
    measure = Coverage()
    measure.load()
    root = Path("spop").resolve()
    rows: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for path in map(Path, sorted(measure.get_data().measured_files())):
        if root in path.parents:
            parts = ("spop", *path.relative_to(root).parts[:-1])
            rows[".".join(parts[:2]), kind(path)] += counts(path, measure)
            if "--missing" in sys.argv and (missing := measure.analysis2(str(path))[4]):
                print(f"{path.relative_to(root)}: {missing}")
    print("| package | written in | lines run | | branches taken | |\n|---|---|---|---|---|---|")
    for (name, what), found in sorted(rows.items()):
        print(row(f"`{name}`", what, found))
    for what in sorted({what for _, what in rows}):
        print(row("all", what, sum((rows[key] for key in rows if key[1] == what), Counter())))


if __name__ == "__main__":
    main()
