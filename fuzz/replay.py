"""Runs inputs of the corpus and all error paths with the compiled modules, for a memory checker.

PYTHONMALLOC=malloc valgrind --error-exitcode=9 python fuzz/replay.py [INPUTS OF EACH TARGET]
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from error_paths import GROUPS  # noqa: E402
from pair import compiled  # noqa: E402
from targets import TARGETS, WITHOUT_TWINS  # noqa: E402


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else None
    twins = compiled()
    for name in TARGETS:
        if name not in WITHOUT_TWINS:
            target = importlib.import_module(f"targets.{name}")
            for path in sorted((HERE / "corpus" / name).iterdir())[:most]:
                target.outcome(twins, path.read_bytes())
    for calls in GROUPS.values():
        for call in calls().values():
            try:
                call()
            except Exception:
                continue


if __name__ == "__main__":
    main()
