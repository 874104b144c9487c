"""Sorts the lines that `make coverage` did not see by what they are in, and lists those that no reason is given for.

python ci/uncovered.py    in the directory of the data

A line counts once, in the first column that it belongs to. Reasons are the table "Why lines are not run"
of docs/proof.md. Each row has modules, what its lines are, and why. Lines are named by one of

    `Class.function`     all lines of a function, or of a class, that are not run
    `raise MemoryError`  lines with this text
    refusals             lines of a column
"""

from __future__ import annotations

import ast
import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from coverage import Coverage

KINDS = (
    "functions not called", "other systems and Pythons", "packages not there",
    "errors of the system", "other errors", "refusals", "other branches", "Cython",
)  # fmt: skip
PLATFORM = ("platform", "version_info", "hasattr", "_AVAILABLE", "find_spec")
SYSTEM = ("OSError", "ConnectionError", "BrokenPipe", "TimeoutError", "MemoryError",
          "ProcessLookup", "Blocking", "Interrupted", "FileNotFound", "Permission")  # fmt: skip
BLOCK = re.compile(r"( *)(?:cdef class|class|async def|def|cdef|cpdef) (?:[^(=]*?)(\w+)(?:\(.*|:)")
"""The first line of a class or function, in Python or Cython."""


class Reason(NamedTuple):
    """A row of the table. `names` are without their backticks."""

    modules: list[str]
    names: list[str]
    why: str


class Line(NamedTuple):
    """A line that is not run: `module` is its file in the package, `name` the function around it."""

    module: str
    number: int
    text: str
    name: str
    kind: str

    def has(self, reason: Reason) -> bool:
        return any(fnmatch.fnmatch(self.module, each) for each in reason.modules) and any(
            each == self.kind or f"{self.name}.".startswith(f"{each}.") or each in self.text
            for each in reason.names
        )


def reasons(page: Path) -> list[Reason]:
    """The table of a page in Markdown."""
    _, _, table = page.read_text().partition("### Why lines are not run")
    rows = (line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| `"))
    return [Reason(_items(modules), _items(lines), why.strip()) for modules, lines, why in rows]


def _items(cell: str) -> list[str]:
    """What is in backticks, and what is between commas."""
    plain = (each.strip() for each in re.sub("`[^`]+`", "", cell).split(","))
    return [*re.findall("`([^`]+)`", cell), *filter(None, plain)]


def names_of(source: str) -> dict[int, str]:
    """The class and function of each line, as `Class.function`."""
    names: dict[int, str] = {}
    around: list[tuple[int, str]] = []
    for number, line in enumerate(source.splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if line.strip() and not line.lstrip().startswith((")", "#")):
            around = [(at, name) for at, name in around if at < indent]
        if found := BLOCK.match(line):
            around.append((len(found[1]), found[2]))
        names[number] = ".".join(name for _, name in around)
    return names


def kind_of(node: ast.AST) -> str | None:
    """What a line in this node is, if the node says it."""
    if isinstance(node, ast.If) and any(word in ast.unparse(node.test) for word in PLATFORM):
        return "other systems and Pythons"
    if isinstance(node, ast.ExceptHandler):
        caught = ast.unparse(node.type) if node.type else ""
        if "ImportError" in caught or "ModuleNotFound" in caught:
            return "packages not there"
        return "errors of the system" if any(word in caught for word in SYSTEM) else "other errors"
    return "refusals" if isinstance(node, ast.Raise) else None


def kinds_of(source: str, missing: set[int], run: set[int]) -> dict[int, str]:
    """The kinds of lines in Python."""
    kinds: dict[int, str] = {}
    whole: set[int] = set()
    for node in ast.walk(
        ast.parse(source)
    ):  # Outer nodes come first, and inner ones are more exact.
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
            whole |= lines if lines & missing and not lines & run else set()
        elif (kind := kind_of(node)) is not None:
            kinds |= dict.fromkeys(range(node.lineno, (node.end_lineno or 0) + 1), kind)  # type: ignore[attr-defined]
    return kinds | dict.fromkeys(whole, KINDS[0])


def lines_of(path: Path, module: str, missing: set[int], run: set[int]) -> Iterator[Line]:
    source = path.read_text()
    texts, names = source.splitlines(), names_of(source)
    cython = path.suffix != ".py"
    kinds = {} if cython else kinds_of(source, missing, run)
    for number in sorted(missing):
        kind = "Cython" if cython else kinds.get(number, "other branches")
        yield Line(module, number, texts[number - 1], names[number], kind)


def not_run(measure: Coverage) -> Iterator[Line]:
    root = Path("spop").resolve()
    for path in map(Path, sorted(measure.get_data().measured_files())):
        if root in path.parents:
            _, statements, _, missing, _ = measure.analysis2(str(path))
            module = str(path.relative_to(root))
            yield from lines_of(path, module, set(missing), set(statements) - set(missing))


def main() -> None:
    measure = Coverage()
    measure.load()
    known = reasons(Path("docs/proof.md"))
    columns = (*KINDS, "without a reason")
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    unknown: defaultdict[str, list[int]] = defaultdict(list)
    for line in not_run(measure):
        package = ".".join(("spop", *Path(line.module).parts[:-1])[:2])
        rows[package][line.kind] += 1
        if not any(map(line.has, known)):
            rows[package]["without a reason"] += 1
            unknown[f"{line.module}: {line.name}"].append(line.number)
    print("| package |", " | ".join(columns), "|\n|---" + "|---" * len(columns) + "|")
    for name, counts in [*sorted(rows.items()), ("all", sum(rows.values(), Counter()))]:
        print(f"| {name} |", " | ".join(str(counts[column]) for column in columns), "|")
    print(*(f"no reason: {name}: {numbers}" for name, numbers in unknown.items()), sep="\n")


if __name__ == "__main__":
    main()
