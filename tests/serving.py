"""``spop serve`` in a process of its own, for the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from haproxy import wait_until

EXAMPLE = Path(__file__).parent.parent / "examples" / "ip_reputation.py"


def children(pid: int) -> list[int]:
    """The numbers of the processes that a process' main thread started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Served(subprocess.Popen[str]):
    """The process, and what it logs.

    Args:
        launcher: a script with arguments that is to start it.
    """

    def __init__(
        self,
        *options: str,
        target: str,
        launcher: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        **environment: str,
    ) -> None:
        super().__init__(
            [sys.executable, *launcher, "-m", "spop", "serve", target, *options],
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.stderr is not None
        self.lines.extend(self.stderr)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_for_log(self, text: str, count: int = 1) -> None:
        """Until a text was logged so many times."""

        def logged() -> bool:
            assert self.poll() is None or self.log.count(text) >= count, self.log
            return self.log.count(text) >= count

        wait_until(logged, f"{text!r} in the log")

    def workers(self) -> list[int]:
        return children(self.pid)

    def end(self) -> None:
        """Kill it, and its children, which may be unable to end by themselves."""
        workers = self.workers() if self.poll() is None else []
        self.kill()
        self.wait()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join(10)
        assert self.stderr is not None
        self.stderr.close()


@contextlib.contextmanager
def served(*options: str, target: str = f"{EXAMPLE}:agent", **environment: str) -> Iterator[Served]:
    process = Served(*options, target=target, **environment)
    try:
        yield process
    finally:
        process.end()


def wait_until_serving(process: Served) -> None:
    process.wait_for_log("serves on")
