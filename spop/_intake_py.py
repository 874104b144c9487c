"""What a connection has received and may receive, in pure Python.

`_intake.pyx` is the compiled twin, `spop.dispatch` chooses. The dispatcher puts bytes in and
answers them; the connection's state machine sets the limits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from spop.constants import (
    DEFAULT_MAX_PAYLOAD_SIZE,
    FLAGS_END,
    LENGTH_SIZE,
    MAX_CONTROL_SIZE,
    FrameFlag,
    FrameType,
)
from spop.errors import FragmentationError, FrameTooBigError, InterlacedFramesError
from spop.frames import Peer, RawFrame
from spop.handshake import flags_of_hello
from spop.values import Buffer

# Members of an enum take several times as long to look up.
_NOTIFY = int(FrameType.NOTIFY)
_FIN, _ABORT = int(FrameFlag.FIN), int(FrameFlag.ABORT)


class Memory:
    """How much more the connections of a loop may keep.

    It is counted down where bytes are kept, and nothing is counted up where they are released:
    that would cost more. So before it tells that `room` is used up, nobody has to look.

    Attributes:
        room: bytes that may be taken until `exceeded` is called.
        exceeded: called whenever something is taken beyond `room`. It sets `room` anew.
        fragmented: called when a payload in fragments begins, unless `watching` is true.
        watching: set to true when `fragmented` is called. The loop sets it to false.
    """

    __slots__ = ("exceeded", "fragmented", "room", "watching")

    def __init__(self) -> None:
        self.room: int = sys.maxsize
        self.exceeded: Callable[[], object] | None = None
        self.fragmented: Callable[[], object] | None = None
        self.watching: bool = False

    def take(self, size: int) -> None:
        """So many bytes more are kept."""
        self.room -= size
        if self.room < 0 and self.exceeded is not None:
            self.exceeded()

    def _begin_payload(self) -> None:
        if not self.watching and self.fragmented is not None:
            self.watching = True
            self.fragmented()


class Intake:
    """The bytes that one connection has received and not processed, and its limits.

    Nothing else owns them. A `Dispatcher` puts bytes in and answers NOTIFY frames. The
    connection's state machine sets the limits of HELLO, and subtracts from `in_flight` what it
    acknowledges.

    Args:
        max_frame_size: the largest frame in bytes; HELLO may lower it (section 3.2.4).
        max_payload_size: the largest payload in bytes that is put together from fragments.

    Attributes:
        is_open: NOTIFY frames may come: HELLO is done. While it is false the dispatcher leaves
            every frame to its caller.
        closed: `close` was called. Bytes that come later are dropped.
        little_endian: flags are in the order of SPOP 1.0 on x86.
        whole: the peer sets no flags, like HAProxy 1.7, and each of its frames is whole.
        takes_fragments: NOTIFY frames may come in fragments (section 3.2.1).
        max_in_flight: the most NOTIFY frames that may wait for an ACK.
        in_flight: number of NOTIFY frames that wait for an ACK.
        suspended: bytes are kept unprocessed, as earlier answers wait to be sent.
        peer: what HELLO agreed on; handlers find it as ``message.connection``.
        memory: what is kept is taken from it.
        calls: those whose ACKs the dispatcher writes when they end, in order.
        begun: the first fragment of a payload has come, and the last has not.
        began: when that was, in ns of `time.monotonic_ns`.
    """

    __slots__ = (
        "_acks", "_ids", "_payload", "_unread", "began", "begun", "calls", "closed", "in_flight",
        "is_open", "little_endian", "max_frame_size", "max_in_flight", "max_payload_size", "memory",
        "peer", "suspended", "takes_fragments", "whole",
    )  # fmt: skip

    def __init__(
        self, max_frame_size: int, max_payload_size: int = DEFAULT_MAX_PAYLOAD_SIZE
    ) -> None:
        self.max_frame_size: int = max_frame_size
        self.max_payload_size: int = max_payload_size
        self.is_open: bool = False
        self.closed: bool = False
        self.little_endian: bool = False
        self.whole: bool = False
        self.takes_fragments: bool = False
        self.max_in_flight: int = 1
        self.in_flight: int = 0
        self.suspended: bool = False
        self.peer: Peer | None = None
        self.memory: Memory = Memory()
        self._unread = bytearray()
        self._payload = bytearray()
        self._acks = bytearray()
        self.calls: dict[Any, None] = {}
        self._ids: tuple[int, int] | None = None
        self.begun: bool = False
        self.began: int = 0

    @property
    def unread(self) -> int:
        """Number of received bytes that were not processed."""
        return len(self._unread)

    @property
    def size(self) -> int:
        """Number of bytes that are kept: those unread, and the fragments of a payload."""
        return len(self._unread) + len(self._payload)

    @property
    def allocated(self) -> int:
        """Number of bytes of memory that those and the ACKs to be sent take."""
        return self.size + len(self._acks)

    @property
    def paused(self) -> bool:
        """Nothing more is answered until an ACK is made, or earlier ones are sent."""
        return self.suspended or self.in_flight >= self.max_in_flight

    @property
    def at_rest(self) -> bool:
        """Open, with no partial frame or payload, no NOTIFY that waits, no ACK to be sent."""
        return (
            self.is_open
            and not self.in_flight
            and not self.suspended
            and not self._unread
            and self._ids is None
            and not self._acks
        )

    @property
    def _frame_limit(self) -> int:
        """The largest next frame in bytes. Before HELLO is done it is a control frame."""
        return self.max_frame_size if self.is_open else min(self.max_frame_size, MAX_CONTROL_SIZE)

    def close(self) -> None:
        """Drop the received bytes."""
        self.is_open, self.closed = False, True
        self._unread.clear()
        self._end_payload()

    def take_acks(self) -> bytes:
        """The ACKs of calls that have ended since the last send."""
        acks = bytes(self._acks)
        self._acks.clear()
        return acks

    def _keep(self, kept: bytearray, data: Buffer) -> None:
        kept += data
        self.memory.take(len(data))

    def _see_flags(self, data: bytes, offset: int) -> None:
        """A HELLO shows how the connection writes flags.

        How an error is answered depends on them. If the length is wrong before they have come,
        there is no answer, as there is none if HAProxy 1.7 may have asked.
        """
        if len(data) - offset < FLAGS_END - LENGTH_SIZE:
            self.whole = True
            return
        self.little_endian, none = flags_of_hello(data, offset)
        self.whole = none and data[offset] == FrameType.HAPROXY_HELLO

    def _complete_frame(self, data: Buffer) -> int:
        """Complete the first unread frame. Returns how many bytes of `data` that took."""
        unread, taken = self._unread, 0
        front = LENGTH_SIZE if self.is_open else FLAGS_END
        if len(unread) < front:
            taken = min(front - len(unread), len(data))
            self._keep(unread, data[:taken])
        missing = LENGTH_SIZE + int.from_bytes(unread[:LENGTH_SIZE], "big") - len(unread)
        # A frame above the limit is not kept: its length is the error.
        if len(unread) < front or not 0 < missing <= self._frame_limit:
            return taken
        end = min(taken + missing, len(data))
        self._keep(unread, data[taken:end])
        return end

    def _take_fragment(self, frame: RawFrame) -> bytes | None:
        """Add a fragment to the payload (section 3.2). Returns the payload once it is whole.

        Raises:
            FragmentationError: HELLO allowed no fragments.
            InterlacedFramesError: it belongs to another payload than the one that was begun.
            FrameTooBigError: the payload is too large. Its further fragments are skipped.
        """
        if not self.takes_fragments:
            raise FragmentationError
        ids = frame.stream_id, frame.frame_id
        final = frame.flags & _FIN
        if frame.type == _NOTIFY:
            if self.begun:
                raise InterlacedFramesError
            self._ids, self.begun, self.began = ids, True, monotonic_ns()
            self.memory._begin_payload()
        elif self._ids != ids:
            raise InterlacedFramesError(f"fragment of {ids} where none or another was begun")
        elif not self.begun or frame.flags & _ABORT:
            if final:
                self._end_payload()
            return None
        if len(self._payload) + len(frame.payload) > self.max_payload_size:
            self._end_payload()
            self._ids = None if final else ids
            raise FrameTooBigError
        self._keep(self._payload, frame.payload)
        return bytes(self._payload) if final else None

    def _take_back(self, frame: RawFrame) -> None:
        """Remove the last fragment. `_take_fragment` gets it once more."""
        del self._payload[len(self._payload) - len(frame.payload) :]

    def _end_payload(self) -> None:
        """Be ready for another payload."""
        self._payload.clear()
        self._ids, self.begun = None, False
