"""Fails where a file or a function of the package is longer than a reader can hold.

python ci/sizes.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = {".py": 700, ".pyx": 900}
MAX_FUNCTION = 50

LONGER: set[str] = set()
"""What is longer than that today. An entry that is no longer needed fails, too."""

_FUNCTION = re.compile(r" *(?:async def|def|cdef|cpdef)\b[^#=(]*?(\w+)\(")


def functions(lines: list[str]) -> Iterator[tuple[str, int]]:
    """Name and count of lines of each function, Cython's too: by indentation."""
    for start, line in enumerate(lines):
        if found := _FUNCTION.match(line):
            count, end = 1, len(line) - len(line.lstrip())
            for number, following in enumerate(lines[start + 1 :], 2):
                text = following.lstrip()
                if text and len(following) - len(text) <= end and text[0] != ")":
                    break
                count = number if text else count
            yield found[1], count


def too_long(path: Path) -> Iterator[tuple[str, str]]:
    """What breaks a limit, and in which sentence."""
    lines = path.read_text().splitlines()
    if len(lines) > MAX_LINES[path.suffix]:
        yield str(path), f"{len(lines)} lines, {MAX_LINES[path.suffix]} at most"
    for name, count in functions(lines):
        if count > MAX_FUNCTION:
            yield f"{path}:{name}", f"{count} lines, {MAX_FUNCTION} at most"


def main() -> int:
    paths = (path for path in Path("spop").rglob("*") if path.suffix in MAX_LINES)
    found = dict(pair for path in paths for pair in too_long(path))
    wrong = [f"{what}: {found[what]}" for what in sorted(found.keys() - LONGER)]
    wrong += [f"{what}: short enough, take it out of LONGER" for what in LONGER - found.keys()]
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
