"""Fuzzes each target for SECONDS, with sanitizers, and says how many executions that were.

    python fuzz/run.py [--seconds SECONDS | --executions EXECUTIONS] [--every EVERY] [TARGET...]

The first run makes `build/fuzz`: the extension, built by clang with the address and the
undefined-behaviour sanitizer and with coverage, and a virtual environment with Atheris. It needs
CPython 3.11 to 3.13 and clang, which it installs if it may. The corpus that grows there is used by
the next run. A finding ends the run; its input is in a file that is named.

A target is fuzzed with CPython's allocator, which is three times as fast as one block for each object. Then
each input of the corpus runs once more, with a block for each object and with both twins.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from targets import TARGETS, WITHOUT_TWINS

HERE = Path(__file__).parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "fuzz"
PYTHON = BUILD / "venv" / "bin" / "python"
PACKAGES = ("atheris>=3", "Cython>=3.3", "setuptools>=77", "click>=8.1", "dpkt>=1.9.8")
# Cython adds 0 to NULL where a call has no keywords, so pointers alone are not checked for overflow.
FLAGS = "-g1 -fno-omit-frame-pointer -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize=pointer-overflow"
OPTIONS = [
    "-max_len=4096", "-timeout=300", "-print_final_stats=1", f"-dict={HERE / 'spop.dict'}",
    "-entropic=0",  # To weigh inputs by how rare their branches are took four fifths of the time.
]  # fmt: skip


class Figures(NamedTuple):
    """What the fuzzing of a target was."""

    target: str
    executions: int
    compared: int
    per_second: int
    inputs: int


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz spop with sanitizers.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target; 60 by default")
    parser.add_argument("--executions", type=int, help="for each target, in place of SECONDS")
    parser.add_argument(
        "--every",
        type=int,
        default=10,
        help="one of how many inputs runs with the twins in Python, too; 10 by default",
    )
    parser.add_argument("targets", nargs="*", default=TARGETS, help=f"of {', '.join(TARGETS)}")
    options = parser.parse_args()
    prepare()
    print(
        "| target | executions | with the twin in Python | a second | inputs kept |\n|---|---|---|---|---|"
    )
    total = compared = 0
    limit = f"-max_total_time={options.seconds}"
    if options.executions:
        limit = f"-runs={options.executions}"
    for target in options.targets:
        figures = fuzz(target, limit, options.every)
        if figures is None:
            return 1
        print("|", " | ".join(map(str, figures)), "|", flush=True)
        total, compared = total + figures.executions, compared + figures.compared
    print(f"| all | {total} | {compared} | | |")
    return 0


def prepare() -> None:
    """Make what fuzzing needs, unless it is there."""
    if sys.version_info >= (3, 14):
        sys.exit("Atheris, which fuzzes, is there for CPython 3.11 to 3.13")
    if shutil.which("clang") is None:
        for command in (
            "apt-get update -qq",
            "apt-get install -y -qq --no-install-recommends clang libclang-rt-dev",
        ):
            subprocess.run(
                ["env", "DEBIAN_FRONTEND=noninteractive", *command.split()],
                check=True,
                stdout=subprocess.DEVNULL,
            )
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", BUILD / "venv"], check=True)
        subprocess.run([PYTHON, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    command = [
        PYTHON,
        "setup.py",
        "-q",
        "build",
        "--build-lib",
        BUILD / "lib",
        "--build-temp",
        BUILD / "temp",
    ]
    flags = {"CC": "clang", "LDSHARED": "clang -shared", "CFLAGS": FLAGS, "SPOP_PURE": ""}
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | flags, capture_output=True)


def sanitized(exact: bool) -> dict[str, str]:
    """The environment in which the sanitizers see our memory, or `exact`, that of each Python object too."""
    (preloaded,) = (BUILD / "venv" / "lib").glob("python*/site-packages/asan_with_fuzzer.so")
    freed = "quarantine_size_mb=16" if exact else "quarantine_size_mb=1:malloc_context_size=2"
    return os.environ | {
        "LD_PRELOAD": str(preloaded),
        # CPython keeps memory until it ends. Its own allocator would hide what is read behind an object.
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:{freed}",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc" if exact else "pymalloc",
        "PYTHONPATH": str(BUILD / "lib"),
        "SPOP_PURE": "",
    }


def fuzz(target: str, limit: str, every: int) -> Figures | None:
    """Fuzz a target, then check what was kept. None: there was a finding, which is shown."""
    kept = BUILD / "corpus" / target
    kept.mkdir(parents=True, exist_ok=True)
    fuzzed = _run(target, every, limit, sanitized(exact=False))
    if fuzzed is None:
        return None
    checked = _run(target, 1, "-runs=0", sanitized(exact=True))
    if checked is None:
        return None
    executions, per_second = fuzzed
    compared = 0 if target in WITHOUT_TWINS else executions // every + checked[0]
    return Figures(target, executions + checked[0], compared, per_second, len(list(kept.iterdir())))


def _run(
    target: str, every: int, limit: str, environment: dict[str, str]
) -> tuple[int, int] | None:
    """The executions of a process, and how many a second."""
    command = [
        PYTHON, HERE / "one.py", target, str(every), *OPTIONS, limit,
        f"-artifact_prefix={BUILD / 'found'}-{target}-",
        BUILD / "corpus" / target, HERE / "corpus" / target,
    ]  # fmt: skip
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if ended.returncode:
        print(*ended.stdout.splitlines()[-100:], sep="\n")
        return None
    return (
        int(_statistic("number_of_executed_units", ended.stdout)),
        int(_statistic("average_exec_per_sec", ended.stdout)),
    )


def _statistic(name: str, text: str) -> str:
    found = re.search(rf"stat::{name}:\s+(\d+)", text)
    assert found, text
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
