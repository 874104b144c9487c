"""Connecting to an address."""

from __future__ import annotations

import socket

from spop.address import Address


def dial(address: Address, timeout: float) -> socket.socket:
    """A connected socket; its operations have the timeout, in seconds, too.

    Raises:
        OSError: there is no connection to be had.
    """
    if address.path is None:
        sock = socket.create_connection((address.host or "127.0.0.1", address.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(address.path)
    except BaseException:
        sock.close()
        raise
    return sock
