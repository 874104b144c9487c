"""Listening sockets, and the names of the peers that connect to them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from spop.address import Address
from spop.errors import reason
from spop.options import Options
from spop.server.privileges import group_id, user_id

BACKLOG = 1024


def listen_all(options: Options) -> list[socket.socket]:
    """The listening sockets that the options ask for.

    Raises:
        OSError: an address can't be listened on. The message names it.
        ValueError: there is no such user or group to own unix sockets.
    """
    listeners: list[socket.socket] = []
    try:
        for address in options.addresses:
            listeners.append(listen(address))
            if address.path is not None and _is_file(address.path):
                _set_owner_and_mode(address.path, options)
    except BaseException:
        close_all(listeners)
        raise
    return listeners


def close_all(listeners: list[socket.socket]) -> None:
    """Close them, and remove the files of unix sockets."""
    for listener in listeners:
        remove_file(listener)
        listener.close()


def remove_file(listener: socket.socket) -> None:
    """Remove the file of a unix socket that listens. Call this before it is closed."""
    if isinstance(listener, _UnixListener):
        listener.remove_file()


def listen(address: Address) -> socket.socket:
    """A non-blocking listening socket.

    Raises:
        OSError: the address is in use or may not be used. Its message names the address.
    """
    try:
        listener = _listen(address)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address}: {reason(error)}") from None
    listener.setblocking(False)
    if listener.family != socket.AF_UNIX:
        # Accepted connections inherit these, which takes two system calls less for each.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return listener


def _listen(address: Address) -> socket.socket:
    if address.fd is not None:
        return _listen_inherited(address.fd)
    if address.path is None:
        return _listen_tcp(address)
    if _is_file(address.path):
        _remove_stale(address.path)
    return _UnixListener(address.path)


def _is_file(path: str) -> bool:
    """Whether a unix socket's path is that of a file. An abstract one begins with NUL."""
    return not path.startswith("\0")


def _listen_inherited(fd: int) -> socket.socket:
    """Listen on a bound socket of the process that started this one. The descriptor is copied."""
    listener = socket.socket(fileno=os.dup(fd))
    try:
        if listener.type != socket.SOCK_STREAM:
            raise OSError(errno.EINVAL, "it is no stream socket")
        if listener.family != socket.AF_UNIX and not listener.getsockname()[1]:
            raise OSError(errno.EINVAL, "it is not bound")
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _listen_tcp(address: Address) -> socket.socket:
    family, _, _, _, sockaddr = socket.getaddrinfo(
        address.host or None,
        address.port,
        family=address.family,
        type=socket.SOCK_STREAM,
        flags=socket.AI_PASSIVE,
    )[0]
    return socket.create_server(sockaddr, family=family, backlog=BACKLOG)


class _UnixListener(socket.socket):
    """A unix socket. It removes its own file, if it has one, and not one that has replaced it."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.bind(path)
            self._file = os.lstat(path) if _is_file(path) else None
            self.listen(BACKLOG)
        except BaseException:
            self.close()
            raise

    def remove_file(self) -> None:
        """Call this before `close`: until then no other file has the same inode."""
        path = self.getsockname()
        with contextlib.suppress(FileNotFoundError):
            if self._file is not None and os.path.samestat(os.lstat(path), self._file):
                os.unlink(path)


def _remove_stale(path: str) -> None:
    """Remove a socket file that a dead server left. A socket that answers is in use."""
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


def _set_owner_and_mode(path: str, options: Options) -> None:
    if options.unix_owner:
        user, _, group = options.unix_owner.partition(":")
        os.chown(path, user_id(user) if user else -1, group_id(group) if group else -1)
    if options.unix_mode:
        os.chmod(path, int(options.unix_mode, 8))


def bound_address(listener: socket.socket) -> Address:
    """The address of a listening socket, with the port that port 0 became."""
    if listener.family == socket.AF_UNIX:
        return Address("", 0, os.fsdecode(listener.getsockname()))
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def peer_host(sockaddr: tuple[str, int] | str | bytes) -> str | None:
    """The IP address of an accepted connection's peer; None on a unix socket."""
    return sockaddr[0] if isinstance(sockaddr, tuple) else None


def peer_name(sockaddr: tuple[str, int] | str | bytes) -> str:
    """The peer of an accepted connection, for people."""
    if not isinstance(sockaddr, tuple):
        return "unix"
    host, port = sockaddr[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
