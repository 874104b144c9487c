"""Messages between the supervisor and its processes: JSON, with file descriptors if need be."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

_LENGTH_SIZE = 4
SEND_TIMEOUT = 5
"""Seconds after which a process that does not read is given up."""


class Received(NamedTuple):
    """A message and the file descriptors that came with it."""

    message: dict[str, Any]
    fds: list[int]


class Channel:
    """One end of a stream of messages. Any thread may send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT, 0))
        self._sock = sock
        self._lock = threading.Lock()

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends of a new one."""
        ours, theirs = socket.socketpair()
        return cls(ours), cls(theirs)

    def send(self, message: dict[str, Any], fds: Iterable[int] = ()) -> bool:
        """Send a message whole. False: the other end is gone, or does not read."""
        data = json.dumps(message).encode()
        try:
            with self._lock:
                socket.send_fds(self._sock, [len(data).to_bytes(_LENGTH_SIZE, "big")], list(fds))
                self._sock.sendall(data)
        except OSError:
            return False
        return True

    def receive(self) -> Received | None:
        """The next message; None when the other end is gone."""
        try:
            length, fds, _, _ = socket.recv_fds(self._sock, _LENGTH_SIZE, 1)
            data = self._receive_exactly(int.from_bytes(length, "big")) if length else b""
        except OSError:
            return None
        return Received(json.loads(data), fds) if data else None

    def _receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._sock.recv(size - len(data))
            if not chunk:
                return b""
            data += chunk
        return bytes(data)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()
