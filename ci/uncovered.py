"""Sorts the lines in Python that `make coverage` did not see, by what they are in.

python ci/uncovered.py [--names]    in the directory of the data; --names: the functions not called

A line counts once, in the first column that it belongs to.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from coverage import Coverage

KINDS = (
    "functions not called", "other systems and Pythons", "packages not there",
    "errors of the system", "other errors", "refusals", "other branches",
)  # fmt: skip
PLATFORM = ("platform", "version_info", "hasattr", "_AVAILABLE", "find_spec")
SYSTEM = ("OSError", "ConnectionError", "BrokenPipe", "TimeoutError", "MemoryError",
          "ProcessLookup", "Blocking", "Interrupted", "FileNotFound", "Permission")  # fmt: skip


def functions(tree: ast.AST) -> Iterator[tuple[str, set[int]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))


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


def sorted_lines(path: Path, missing: set[int], run: set[int]) -> Iterator[tuple[str, int, str]]:
    """Kind, line and the function's name of each missing line."""
    tree = ast.parse(path.read_text())
    kinds: dict[int, str] = {}
    for node in ast.walk(tree):  # Outer nodes come first, and inner ones are more exact.
        if (kind := kind_of(node)) is not None:
            kinds |= dict.fromkeys(range(node.lineno, (node.end_lineno or 0) + 1), kind)  # type: ignore[attr-defined]
    names: dict[int, str] = {}
    for name, lines in functions(tree):
        if lines & missing and not lines & run:
            names |= dict.fromkeys(lines, name)
    for line in missing:
        kind = KINDS[0] if line in names else kinds.get(line, KINDS[-1])
        yield kind, line, names.get(line, "")


def main() -> None:
    measure = Coverage()
    measure.load()
    root = Path("spop").resolve()
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path in map(Path, sorted(measure.get_data().measured_files())):
        if root not in path.parents or path.suffix != ".py" or path.stem.endswith("_py"):
            continue
        _, statements, _, missing, _ = measure.analysis2(str(path))
        package = ".".join(("spop", *path.relative_to(root).parts[:-1])[:2])
        for kind, line, name in sorted_lines(path, set(missing), set(statements) - set(missing)):
            rows[package][kind] += 1
            if "--names" in sys.argv:
                print(f"{path.relative_to(root)}:{line}: {kind} {name}")
    print("| package |", " | ".join(KINDS), "|\n|---" + "|---" * len(KINDS) + "|")
    for name, counts in sorted(rows.items()):
        print(f"| `{name}` |", " | ".join(str(counts[kind]) for kind in KINDS), "|")
    total = sum(rows.values(), Counter())
    print("| all |", " | ".join(str(total[kind]) for kind in KINDS), "|")


if __name__ == "__main__":
    main()
