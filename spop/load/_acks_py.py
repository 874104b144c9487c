"""Matches ACKs with the NOTIFY frames that they answer, in pure Python.

`_acks.pyx` is the compiled twin; `spop.load.acks` chooses one.
"""

from __future__ import annotations

from array import array

from spop._codec_py import frame_length
from spop._typed_data_py import read_varint
from spop.constants import FLAGS_END, LENGTH_SIZE, FrameFlag, FrameType
from spop.errors import FragmentationError
from spop.values import Buffer

# Plain integers: to look up a member of an enum takes ten times as long.
_ACK, _FIN = int(FrameType.ACK), int(FrameFlag.FIN)

SUB_BITS = 5
"""Each power of two of nanoseconds is divided into 2**SUB_BITS buckets."""


def bucket(nanoseconds: int) -> int:
    """The bucket of a latency in the histogram: exact below 64 ns, within 3 % above."""
    if nanoseconds < 1 << SUB_BITS + 1:
        return max(0, nanoseconds)
    shift = nanoseconds.bit_length() - SUB_BITS - 1
    return (shift << SUB_BITS) + (nanoseconds >> shift)


def _place(data: bytes, offset: int, end: int, first: int, ring: int) -> tuple[int, int]:
    """The place of an ACK's stream-id, and the offset of its payload."""
    stream_id, offset = read_varint(data, offset, end)
    if ring:
        stream_id = first + (stream_id >> 1) % ring if stream_id & 1 else 0
    return stream_id, read_varint(data, offset, end)[1]


def take_acks(
    buffer: Buffer,
    end: int,
    max_frame_size: int,
    first: int,
    sent: array[int],
    now: int,
    histogram: array[int],
    expected: bytes | None,
    answered: list[int],
    ring: int = 0,
) -> tuple[int, int, int]:
    """Take the ACK frames at the front of the first `end` bytes. Actions are not decoded.

    An ACK answers the NOTIFY with the same stream-id. Its time in `sent` becomes 0, its latency
    is counted in `histogram`, and its stream-id is added to `answered`.

    Args:
        sent: nanoseconds at which each NOTIFY was sent, by stream-id from `first` on, or 0.
        ring: number of places from `first` on for the stream-ids 1, 3, 5 and so on, in turn.
        expected: the encoded actions that each ACK must have; None accepts any.

    Returns:
        The number of bytes taken, of ACKs nothing waits for, and of ACKs not as `expected`.

    Raises:
        ProtocolError: the bytes are no frame, or an ACK that is not final. The ACKs in front of
            it are counted.
        ValueError: `end` is not in the buffer.
    """
    if not 0 <= end <= len(buffer):
        raise ValueError(f"end is {end}, outside a buffer of {len(buffer)} bytes")
    offset = strays = wrong = 0
    data = bytes(memoryview(buffer)[:end])
    while (length := frame_length(data, offset, max_frame_size)) >= 0:
        if data[offset + LENGTH_SIZE] != _ACK:
            break
        if not data[offset + FLAGS_END - 1] & _FIN:
            raise FragmentationError("an ACK may not be fragmented")
        start, offset = offset + FLAGS_END, offset + LENGTH_SIZE + length
        stream_id, payload = _place(data, start, offset, first, ring)
        if not first <= stream_id < len(sent) or not sent[stream_id]:
            strays += 1
            continue
        if expected is not None and data[payload:offset] != expected:
            wrong += 1
        histogram[bucket(now - sent[stream_id])] += 1
        sent[stream_id] = 0
        answered.append(stream_id)
    return offset, strays, wrong
