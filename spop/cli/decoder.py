"""The frames in the bytes of a connection, damaged ones too. It knows neither files nor terminals."""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from spop import codec
from spop.constants import FLAGS_END, LENGTH_SIZE, SHORTEST_FRAME, FrameType
from spop.dispatch import Dispatcher, Intake
from spop.errors import ProtocolError
from spop.frames import Control, Frame, Notify, RawFrame
from spop.handshake import flags_of_hello
from spop.values import Buffer

MAX_FRAME_SIZE = 64 * 1024 * 1024
"""Bytes above which the length of a frame counts as damage."""
_BEGIN = re.compile(rb"(?=(?!\0\0\0[\0-\6])([\0-\4]...)[%s])" % bytes(sorted(FrameType)), re.DOTALL)
"""Bytes that may be a frame's length, 7 at least, and its type behind them."""
_BEGINNINGS = frozenset(FrameType) - {FrameType.UNSET}
_FLAGS = {n.to_bytes(4, order) for n in range(4) for order in ("big", "little")}


class Found(NamedTuple):
    """A frame, or damaged bytes in its place.

    Attributes:
        offset: its offset in the bytes of its direction.
        damage: what is wrong. `frame` is then what HAProxy takes of it, if anything.
        payload: the NOTIFY that a last fragment completed.
        direction: from where to where; empty if not known.
        time: when its last packet was captured, if known.
    """

    offset: int
    data: bytes
    frame: Frame | None
    damage: str = ""
    payload: Frame | None = None
    direction: str = ""
    time: float | None = None


@dataclass
class Flags:
    """How a connection writes flags, as its HELLO frames show.

    Attributes:
        little_endian: in the order of SPOP 1.0 on x86 (HAProxy 1.7 and early 1.8).
        whole: there are no flags, as with HAProxy 1.7, and each frame is whole.
    """

    little_endian: bool = False
    whole: bool = False


class Decoder:
    """Reads the frames in the bytes of one direction. It goes on behind damaged ones.

    Args:
        flags: shared with the decoder of the other direction.
    """

    def __init__(self, flags: Flags | None = None) -> None:
        self._flags = flags or Flags()
        self._data = bytearray()
        self._offset = 0
        self._looked = 1
        self._begun: list[tuple[int, int]] = []
        self._intake = Intake(MAX_FRAME_SIZE)
        self._dispatcher = Dispatcher(max_messages=MAX_FRAME_SIZE, max_arguments=MAX_FRAME_SIZE)

    def feed(self, data: bytes) -> Iterator[Found]:
        """The frames that these bytes complete."""
        self._data += data
        while len(self._data) >= LENGTH_SIZE:
            length = int.from_bytes(self._data[:LENGTH_SIZE], "big")
            if not SHORTEST_FRAME <= length <= MAX_FRAME_SIZE:
                if not (yield from self._search(f"{length} is no length of a frame")):
                    return
            elif len(self._data) < LENGTH_SIZE + length:
                return
            else:
                yield self._frame(LENGTH_SIZE + length)

    def skip(self, size: int) -> Iterator[Found]:
        """Skip bytes that are missing."""
        yield from self.finish(f"{size} bytes are missing here")
        self._offset += size

    def finish(self, why: str = "the bytes end inside of a frame") -> Iterator[Found]:
        """End the bytes. A partial frame is damage."""
        if self._data:
            yield Found(self._offset, self._take(len(self._data)), None, why)

    def _take(self, size: int) -> bytes:
        data = bytes(self._data[:size])
        del self._data[:size]
        self._offset += size
        self._looked = 1
        self._begun.clear()
        return data

    def _frame(self, size: int) -> Found:
        offset, data = self._offset, self._take(size)
        if data[LENGTH_SIZE] in (FrameType.HAPROXY_HELLO, FrameType.AGENT_HELLO):
            self._see_flags(data)
        try:
            ((frame,), _) = _decode(data, self._flags)
        except ProtocolError as error:
            return Found(offset, data, self._taken(data), str(error))
        return Found(offset, data, frame, "", self._payload(frame, data))

    def _see_flags(self, hello: bytes) -> None:
        self._flags.little_endian, none = flags_of_hello(hello, LENGTH_SIZE)
        # HAProxy 1.7 sets no flags. In a HELLO of SPOP 2.0 that is damage.
        if none and _speaks_1_0(hello):
            self._flags.whole = True

    def _taken(self, data: bytes) -> Frame | None:
        """What HAProxy takes of a damaged frame; None: nothing."""
        try:
            ((frame,), _) = _decode(data, self._flags, lenient=True)
        except ProtocolError:
            return None
        return frame

    def _payload(self, frame: Frame, data: bytes) -> Notify | None:
        """The NOTIFY that a fragment completes, put together as an agent does it."""
        if not isinstance(frame, RawFrame):
            return None
        if frame.type == FrameType.NOTIFY:
            self._intake = _open_intake(self._flags)
        try:
            frames, _ = self._dispatcher.receive(self._intake, data)
        except ProtocolError:
            self._intake.close()
            return None
        return next((each for each in frames if isinstance(each, Notify)), None)

    def _search(self, why: str) -> Generator[Found, None, bool]:
        """Look for the next frame behind damaged bytes. Returns whether there is one."""
        for start in self._starts():
            begin = start + LENGTH_SIZE
            end = begin + int.from_bytes(self._data[start:begin], "big")
            if self._is_frame(self._data[start:end]):
                yield Found(self._offset, self._take(start), None, why)
                return True
        return False

    def _starts(self) -> list[int]:
        """Where frames may begin whose ends have come since this was asked last.

        Each byte is looked at once. To begin anew with each piece of a long file would take hours.
        """
        size = len(self._data)
        for found in _BEGIN.finditer(self._data, self._looked):
            length = int.from_bytes(found[1], "big")
            if length <= MAX_FRAME_SIZE:
                heapq.heappush(self._begun, (found.start() + LENGTH_SIZE + length, found.start()))
        self._looked = max(self._looked, size - LENGTH_SIZE)
        ended = []
        while self._begun and self._begun[0][0] <= size:
            ended.append(heapq.heappop(self._begun)[1])
        return sorted(ended)

    def _is_frame(self, data: bytearray) -> bool:
        try:
            return bool(_decode(data, self._flags)[0])
        except ProtocolError:
            return False


def begins_frame(data: Buffer, types: Collection[int] = _BEGINNINGS) -> bool:
    """Whether bytes begin with a frame's type and flags, without its length."""
    head = bytes(data[: FLAGS_END - LENGTH_SIZE])
    return head[1:] in _FLAGS and head[0] in types


def _decode(data: Buffer, flags: Flags, lenient: bool = False) -> tuple[list[Frame], int]:
    return codec.decode_frames(
        data,
        max_frame_size=MAX_FRAME_SIZE,
        little_endian=flags.little_endian,
        whole=flags.whole,
        lenient=lenient,
    )


def _speaks_1_0(hello: bytes) -> bool:
    """Whether a HELLO announces version 1."""
    try:
        ((frame,), _) = _decode(hello, Flags(whole=True))
    except ProtocolError:
        return False
    assert isinstance(frame, Control)
    versions = frame.items.get("supported-versions", frame.items.get("version"))
    return any(each.strip().startswith("1.") for each in str(versions).split(","))


def _open_intake(flags: Flags) -> Intake:
    """An intake that takes a payload in fragments."""
    intake = Intake(MAX_FRAME_SIZE, MAX_FRAME_SIZE)
    intake.is_open = intake.takes_fragments = True
    intake.little_endian = flags.little_endian
    return intake
