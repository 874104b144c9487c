"""Runs shell commands at the same time, and fails if one fails.

    python ci/beside.py COMMAND...

The last one's output is shown as it comes, that of the others when they have ended, in turn. An
interrupt reaches all, as they are of one process group.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from typing import IO


def main(commands: list[str]) -> int:
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
            sys.stdout.write(f"\n{command}\n{output.read().decode(errors='replace')}")
    return max(map(abs, statuses), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
