"""Deletes data of `make coverage` that can't be combined: of a process that was killed, or without the plug-in.

python ci/coverage_sift.py    in the directory of the data

A signal's handler that raises in Cython's plug-in has coverage disable it, for that process.
"""

from __future__ import annotations

from pathlib import Path

from coverage import CoverageData
from coverage.exceptions import CoverageException


def is_whole(path: Path) -> bool:
    data = CoverageData(str(path))
    try:
        data.read()
    except CoverageException:
        return False
    return all(data.file_tracer(name) for name in data.measured_files() if name.endswith(".pyx"))


for path in Path().glob(".coverage.*"):
    if not is_whole(path):
        print(f"data left out: {path}")
        path.unlink()
