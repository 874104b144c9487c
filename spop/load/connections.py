"""The connections of a load generator: which stream-ids their frames have, and their bytes.

A frame in flight has a place in the generator's table of send times. Mostly the place is the
stream-id. HAProxy 3.1 and later count stream-ids for each connection; `Counting` does so.
"""

from __future__ import annotations

import socket
from array import array
from collections import deque
from collections.abc import Sequence

from spop import codec
from spop.connection import EngineConnection
from spop.constants import FrameFlag, FrameType
from spop.frames import Message

RING = 256
"""Places of a connection that counts its stream-ids. It sends no frame while the place is taken."""

_LONG_ID = 2**31 - 1
"""The largest stream-id of HAProxy. A frame that fits with it always fits."""


class Connection:
    """A socket with its range of places: `first` up to `last`, without it."""

    ring = 0

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.sock: socket.socket | None = None
        self.free: deque[int] = deque()
        self.unsent: bytes = b""
        self.held: bytes = b""
        self.max_frame_size: int = 0
        self._frames: dict[int, bytes] = {}

    def begin(self, sock: socket.socket, protocol: EngineConnection, depth: int) -> None:
        """Be connected, with `depth` frames to send, or one without pipelining."""
        self.sock, self.unsent, self.held = sock, b"", b""
        self.max_frame_size = protocol.max_frame_size
        self.free = deque(range(self.first, self.first + (depth if protocol.pipelined else 1)))

    def make_frames(self, protocol: EngineConnection, messages: Sequence[Message]) -> None:
        """Make the bytes of each NOTIFY.

        Raises:
            FrameTooBigError: the messages fit no frame and the agent takes no fragments.
        """
        for stream_id in range(self.first, self.last):
            self._frames[stream_id] = _notify(protocol, stream_id, messages)

    def can_send(self, sent: array[int]) -> bool:
        """Whether there is a free place."""
        return bool(self.free)

    def take(self) -> tuple[int, bytes]:
        """The next place, and its frame."""
        place = self.free.popleft()
        return place, self._frames[place]

    def frame(self, place: int) -> bytes:
        """The frame of a place."""
        return self._frames[place]


class Counting(Connection):
    """Its stream-ids are 1, 3, 5 and so on, as in HAProxy 3.1 and later.

    They take the places in turn. `free` only counts how many frames may be sent.
    """

    def __init__(self, first: int, last: int) -> None:
        super().__init__(first, last)
        self.ring: int = last - first
        self._payload = b""
        self._next = 1

    def make_frames(self, protocol: EngineConnection, messages: Sequence[Message]) -> None:
        _notify(protocol, _LONG_ID, messages)
        self._payload = bytes(codec.encode_messages(messages))
        self._next = 1

    def can_send(self, sent: array[int]) -> bool:
        return bool(self.free) and not sent[self._place]

    def take(self) -> tuple[int, bytes]:
        self.free.popleft()
        place, stream_id = self._place, self._next
        self._next += 2
        frame = codec.encode_raw_frame(FrameType.NOTIFY, FrameFlag.FIN, stream_id, 1, self._payload)
        return place, bytes(frame)

    @property
    def _place(self) -> int:
        return self.first + (self._next >> 1) % self.ring


def _notify(protocol: EngineConnection, stream_id: int, messages: Sequence[Message]) -> bytes:
    protocol.waiting.clear()
    protocol.notify(stream_id, 1, messages)
    return bytes(protocol.data_to_send())
