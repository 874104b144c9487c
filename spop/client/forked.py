"""Clients and engines in a process that was forked from the one that uses them.

Parent and child would share each connection: both would send on it, and each would take answers
that belong to the other. So the child begins anew. It closes its file descriptors and says
nothing on them, because the connections go on in the parent.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class BeginsAnew(Protocol):
    def begin_anew(self) -> None:
        """In a process that was just forked: leave all that is open to the parent."""


_users: weakref.WeakSet[BeginsAnew] = weakref.WeakSet()


def begin_anew_when_forked(user: BeginsAnew) -> None:
    """Have each process that is forked from now on call `begin_anew`."""
    _users.add(user)


def close_in_child(fd: int) -> None:
    """Close this process's share of a socket whose object is not ours to close.

    The file descriptor stays taken, so that its owner closes no other file by its number.
    """
    if fd >= 0:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, fd, inheritable=False)
        os.close(null)


def _forked() -> None:
    for user in list(_users):
        user.begin_anew()


if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=_forked)
