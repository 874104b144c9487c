"""Processor time and memory of a process, from Linux's /proc; 0 on other systems."""

from __future__ import annotations

import os
from typing import NamedTuple

_UTIME, _STIME, _RSS = 11, 12, 21
"""Fields of /proc/PID/stat behind the name of the command (proc_pid_stat(5))."""


class Usage(NamedTuple):
    """Processor time since the start, in seconds, and resident memory, in bytes."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0


def usage_of(pid: int) -> Usage:
    """The usage of a process; zeros if it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            stat = file.read()
    except OSError:
        return Usage()
    fields = stat.rpartition(")")[2].split()  # The name may have spaces and parentheses.
    ticks = int(fields[_UTIME]) + int(fields[_STIME])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), int(fields[_RSS]) * os.sysconf("SC_PAGE_SIZE"))
