"""Sub-interpreters: the compiled modules are loaded by one interpreter of a process, and refuse others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("spop._codec", reason="there is one implementation only")

CREATE = """
import os, sys
try:
    import _interpreters as interpreters
    create = lambda own_gil: interpreters.create("isolated" if own_gil else "legacy")
except ImportError:
    import _xxsubinterpreters as interpreters
    create = lambda own_gil: interpreters.create(isolated=own_gil)
other = create({own_gil})
"""
IMPORT = """
try:
    from spop import Message, codec
    data = codec.encode_notify(1, 1, [Message("m", a=5)])
    print(codec.IMPLEMENTATION, codec.decode_frames(data)[0][0].messages[0]["a"], flush=True)
except ImportError as error:
    print("refused:", error, flush=True)
"""


def run(script: str, own_gil: bool, **environment: str) -> list[str]:
    """The lines that a process writes, which must end well."""
    ended = subprocess.run(
        [sys.executable, "-c", CREATE.format(own_gil=own_gil) + script],
        env=os.environ | environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout.splitlines()


@pytest.mark.parametrize("own_gil", [False, True])
def test_a_second_interpreter_is_refused(own_gil: bool) -> None:
    script = (
        f"source = {IMPORT!r}\nexec(source)\ninterpreters.run_string(other, source)\n"
        "exec(source)\ninterpreters.destroy(other)"
    )
    first, refused, again = run(script, own_gil)
    assert (first, again) == ("c 5", "c 5")
    assert refused.startswith("refused: ")
    assert "SPOP_PURE=1" in refused


@pytest.mark.parametrize("own_gil", [False, True])
def test_in_pure_python_each_interpreter_has_its_own(own_gil: bool) -> None:
    script = f"source = {IMPORT!r}\nexec(source)\ninterpreters.run_string(other, source)\ninterpreters.destroy(other)"
    assert run(script, own_gil, SPOP_PURE="1") == ["python 5"] * 2
