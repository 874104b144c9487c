"""Matching ACKs with the NOTIFY frames that they answer, in pure Python.

`_acks.pyx` is the compiled twin, `spop.load.acks` chooses.
"""

from __future__ import annotations

from array import array

from spop import _codec_py as codec
from spop.constants import FrameFlag, FrameType
from spop.errors import FragmentationError
from spop.values import Buffer

SUB_BITS = 5
"""Each power of two of nanoseconds has so many bits of buckets."""


def bucket(nanoseconds: int) -> int:
    """The histogram's bucket of a latency: exact below 64 ns, within 3 % above."""
    if nanoseconds < 1 << SUB_BITS + 1:
        return max(0, nanoseconds)
    shift = nanoseconds.bit_length() - SUB_BITS - 1
    return (shift << SUB_BITS) + (nanoseconds >> shift)


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
) -> tuple[int, int, int]:
    """Take the ACK frames at the front of a buffer; their actions are not decoded.

    An ACK answers the NOTIFY whose stream-id is an index of `sent`, from `first` on, where the
    time stands at which it was sent; 0 where none waits. That time becomes 0, its distance from
    `now` goes into the histogram, the index into `answered`.

    Args:
        expected: what the actions must be, encoded; None: anything.

    Returns:
        How many bytes were taken, ACKs that nobody waits for, and ACKs that are not as expected.

    Raises:
        ProtocolError: the bytes are no frame, or an ACK that is not final. Those before it were
            taken.
    """
    offset = strays = wrong = 0
    data = bytes(memoryview(buffer)[:end])
    while (length := codec._whole_frame(data, offset, max_frame_size)) >= 0:
        if data[offset + 4] != FrameType.ACK:
            break
        if not data[offset + 8] & FrameFlag.FIN:
            raise FragmentationError("an ACK may not be fragmented")
        size = 4 + length
        stream_id, payload = _ids(data, offset + 9, offset + size)
        offset += size
        if not first <= stream_id < len(sent) or not sent[stream_id]:
            strays += 1
            continue
        if expected is not None and data[payload:offset] != expected:
            wrong += 1
        histogram[bucket(now - sent[stream_id])] += 1
        sent[stream_id] = 0
        answered.append(stream_id)
    return offset, strays, wrong


def _ids(data: bytes, offset: int, end: int) -> tuple[int, int]:
    """A frame's stream-id, and where its payload begins."""
    stream_id, offset = codec.decode_varint(data[:end], offset)
    _, offset = codec.decode_varint(data[:end], offset)
    return stream_id, offset
