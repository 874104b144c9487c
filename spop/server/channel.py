"""Messages between the supervisor and its processes: JSON, with file descriptors if need be.

A process may stop in the middle of a message, for example because a handler holds the GIL. So a
receiver takes the bytes that have come and never waits for the rest.

The supervisor never waits for a process that does not read. What it sends is so short that the
kernel takes it whole or not at all: a longer text travels as a file in memory.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

_HEADER = struct.Struct("!IB")
"""Length of the JSON text, number of file descriptors that come with it."""
_RECV_SIZE = 256 * 1024
_MAX_SIZE = 64 * 1024 * 1024
"""Size of a message above which it is not sent, and is no message to a receiver."""
_MAX_FDS = 16
_NO_FD = -1
_LONGEST = 4096
"""Size of a text above which it travels as a file, if the sender must not wait."""
SEND_TIMEOUT = 5
"""Seconds after which a process that does not read gets no further messages."""


class Received(NamedTuple):
    """A message and the file descriptors that came with it.

    They are missing if this process can have no more of them.
    """

    message: dict[str, Any]
    fds: list[int]


class Channel:
    """One end of a stream of messages. Any thread may send, one receives.

    Args:
        waits: whether `send` may wait for `SEND_TIMEOUT` seconds.
    """

    def __init__(self, sock: socket.socket, *, waits: bool = True) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT, 0))
        self._sock = sock
        self._waits = waits
        self._lock = threading.Lock()
        self._given_up = False
        self._data = bytearray()
        self._fds: deque[int] = deque()

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends of a new channel: the supervisor's, which does not wait, and its child's."""
        ours, theirs = socket.socketpair()
        return cls(ours, waits=False), cls(theirs)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send a message whole. False: the other end is closed, or does not read."""
        text = json.dumps(message).encode()
        if len(text) > _MAX_SIZE:
            return False
        if len(text) <= _LONGEST or self._waits:
            return self._send(text, fds)
        try:
            with _file_in_memory() as file:
                file.write(text)
                file.flush()
                return self._send(b"", [*fds, file.fileno()])
        except OSError:
            return False

    def _send(self, text: bytes, fds: Sequence[int]) -> bool:
        data = _HEADER.pack(len(text), len(fds)) + text
        with self._lock:
            if self._given_up:
                return False
            try:
                flags = 0 if self._waits else socket.MSG_DONTWAIT
                # `socket.send_fds` has an argument for flags, and ignores it.
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
                sent = self._sock.sendmsg([data], rights if fds else (), flags)
                if sent < len(data):
                    self._sock.sendall(memoryview(data)[sent:])
            except OSError as error:
                # Nothing was sent if too many descriptors are on their way, or it must not wait.
                # Else a part of the message may be sent, so that no other can follow.
                full = not self._waits and isinstance(error, BlockingIOError)
                self._given_up = not full and error.errno != errno.ETOOMANYREFS
                return False
        return True

    def receive(self) -> list[Received] | None:
        """The messages that have come whole; None if the other end is closed.

        Call this when `fileno` is readable.

        Raises:
            Exception: the bytes are no message. No other can follow.
        """
        try:
            data, fds, flags, _ = socket.recv_fds(
                self._sock, _RECV_SIZE, _MAX_FDS, socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        self._data += data
        self._fds += fds
        if flags & socket.MSG_CTRUNC:  # The message that begins in this data has lost some.
            self._fds.append(_NO_FD)
        return list(self._whole_messages())

    def _whole_messages(self) -> Iterator[Received]:
        while len(self._data) >= _HEADER.size:
            length, count = _HEADER.unpack_from(self._data)
            if length > _MAX_SIZE:
                raise ValueError(f"a message of {length} bytes")
            end = _HEADER.size + length
            if len(self._data) < end:
                return
            text = bytes(self._data[_HEADER.size : end])
            del self._data[:end]
            fds: list[int] = []
            while len(fds) < count and (fd := self._fds.popleft()) != _NO_FD:
                fds.append(fd)
            if text or fds:
                yield Received(json.loads(text or _text_in_file(fds.pop())), fds)

    def __iter__(self) -> Iterator[Received]:
        """Wait for messages until the other end is closed."""
        while True:
            select.select([self._sock], [], [])
            received = self.receive()
            if received is None:
                return
            yield from received

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()
        for fd in self._fds:
            if fd != _NO_FD:
                os.close(fd)
        self._fds.clear()


def _file_in_memory() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("spop"), "w+b")
    import tempfile

    return tempfile.TemporaryFile()


def _text_in_file(fd: int) -> bytes:
    """The text of a message of which only the descriptors came over the socket."""
    with open(fd, "rb") as file:
        file.seek(0)  # The sender's position is ours.
        return file.read()
