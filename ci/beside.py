"""Runs shell commands at the same time, and fails if one fails.

    python ci/beside.py [--again] COMMAND...

The last one's output is shown as it comes, that of the others when they have ended, in turn. An
interrupt reaches all, as they are of one process group.

With ``--again`` the commands are pytest's. Tests that failed beside the others, a few at most, run
once more alone, and those that pass then are named as what they are: unsteady. They don't fail the
run, as a machine of continuous integration has moments in which nothing runs; each is a bug of the
test or of the product all the same.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

TESTS_FAILED = 1
"""pytest's exit status."""

FEW = 3
"""Tests of a command that run once more at most. More have a reason that is no accident."""


def main(arguments: list[str]) -> int:
    again = arguments[:1] == ["--again"]
    commands = arguments[again:]
    with contextlib.ExitStack() as stack:
        caches = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in commands]
        if again:
            commands = [
                f"{command} -o cache_dir={cache}"
                for command, cache in zip(commands, caches, strict=True)
            ]
        statuses = beside(commands)
        if again:
            statuses = list(map(alone, commands, caches, statuses))
    return max(map(abs, statuses), default=0)


def beside(commands: list[str]) -> list[int]:
    """Run all at the same time. Returns their exit statuses."""
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands[1:]]
        outputs: list[IO[bytes] | None] = [*kept, None]
        processes = [
            subprocess.Popen(
                command, shell=True, stdout=output, stderr=output and subprocess.STDOUT
            )
            for command, output in zip(commands, outputs, strict=True)
        ]
        with contextlib.suppress(KeyboardInterrupt):
            for process in processes:
                process.wait()
        statuses = [process.wait() for process in processes]
        for command, output in zip(commands, kept, strict=False):
            output.seek(0)
            print(f"\n{command}\n{output.read().decode(errors='replace')}", flush=True)
    return statuses


def alone(command: str, cache: Path, status: int) -> int:
    """Run a command's failed tests once more, if they are few. Returns its exit status."""
    kept = cache / "v/cache/lastfailed"
    failed = list(json.loads(kept.read_text())) if kept.exists() else []
    if status != TESTS_FAILED or not 0 < len(failed) <= FEW:
        return status
    print(f"\nOnce more, alone: {command}", flush=True)
    status = subprocess.run(f"{command} --last-failed --part 1/1", shell=True).returncode
    if not status:
        print("Unsteady: failed beside others, passed alone:", *failed, sep="\n  ", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
