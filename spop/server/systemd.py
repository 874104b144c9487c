"""systemd's protocols for services: inherited sockets, readiness, watchdog.

sd_listen_fds(3) and sd_notify(3) describe them. They need no library.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

_FIRST_FD = 3


def inherited_listeners() -> list[socket.socket]:
    """The sockets of the unit's ``.socket`` file, if systemd passed any."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    listeners = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + count)]
    for listener in listeners:
        listener.set_inheritable(False)
        listener.setblocking(False)
    return listeners


def notify(*states: str, timeout: float = 1.0) -> None:
    """Tell the service manager, if there is one: ``READY=1``, ``STOPPING=1`` …

    If it takes nothing for `timeout` seconds, the message is dropped.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(timeout)
        sock.sendto("\n".join(states).encode(), address)


def reloading() -> str:
    """The states that announce a reload."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def watchdog_interval() -> float | None:
    """Seconds within which ``WATCHDOG=1`` has to be sent; None if there is no watchdog."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    return microseconds / 1e6 if microseconds else None
