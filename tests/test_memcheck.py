"""valgrind finds nothing in the compiled modules, on the corpus of the fuzzers and all error paths."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("spop._codec", reason="there is one implementation only")

REPLAY = Path(__file__).parent.parent / "fuzz" / "replay.py"
OURS = re.compile(
    r"_(codec|typed_data|headers|cache|intake|async_call|route|dispatch|port|acks|alarm)\.c"
)
INPUTS = os.environ.get("SPOP_TEST_MEMCHECK_INPUTS", "2")
"""Of the corpus of each target. `make memcheck` takes all."""


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_valgrind_finds_nothing_in_the_compiled_modules() -> None:
    command = ["valgrind", "-q", "--num-callers=10", sys.executable, str(REPLAY), INPUTS]
    environment = os.environ | {"PYTHONMALLOC": "malloc"}  # It sees each object then.
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    # CPython has findings of its own, in its integers for one.
    found = [each for each in re.split(r"==\d+== \n", ended.stderr) if OURS.search(each)]
    assert not found, "\n".join(found)
