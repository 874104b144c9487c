"""Listening sockets, and the names of what connects to them."""

from __future__ import annotations

import os
import socket
import stat

from spop.address import Address

BACKLOG = 1024


def listen(address: Address) -> socket.socket:
    """A non-blocking listening socket.

    Raises:
        OSError: the address is in use or may not be used. Its message names the address.
    """
    try:
        listener = _listen_unix(address.path) if address.path is not None else _listen_tcp(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot listen on {address}: {reason}") from None
    listener.setblocking(False)
    return listener


def _listen_tcp(address: Address) -> socket.socket:
    family, _, _, _, sockaddr = socket.getaddrinfo(
        address.host or None,
        address.port,
        type=socket.SOCK_STREAM,
        flags=socket.AI_PASSIVE,
    )[0]
    return socket.create_server(sockaddr, family=family, backlog=BACKLOG)


def _listen_unix(path: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that a dead server left; one that answers is in use."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def bound_address(listener: socket.socket) -> Address:
    """Where a listening socket can be reached; of interest after binding to port 0."""
    if listener.family == socket.AF_UNIX:
        return Address("", 0, listener.getsockname())
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def peer_name(sock: socket.socket, sockaddr: tuple[str, int] | str | bytes) -> str:
    """The other end of an accepted connection, for people."""
    if sock.family == socket.AF_UNIX or not isinstance(sockaddr, tuple):
        return "unix"
    return str(Address(sockaddr[0], sockaddr[1]))
