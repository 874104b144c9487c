"""Matches ACKs with the NOTIFY frames that they answer, compiled. `_acks_py` is the twin."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp

from spop._objects cimport release_view, writable_view
from spop._codec cimport ACK, FIN, FLAGS_END, LENGTH_SIZE, Reader, frame_length, read_varint

from spop.errors import FragmentationError

cdef enum:
    SUB_BITS = 5


cdef Py_ssize_t bucket_of(int64_t nanoseconds) noexcept:
    cdef int shift = 0
    cdef uint64_t value
    if nanoseconds < 0:
        return 0
    value = <uint64_t>nanoseconds
    while value >> (SUB_BITS + 1):
        value >>= 1
        shift += 1
    if not shift:
        return value
    return (shift << SUB_BITS) + value


def bucket(int64_t nanoseconds):
    """The bucket of a latency in the histogram, as the twin describes it."""
    return bucket_of(nanoseconds)


def take_acks(
    buffer, Py_ssize_t end, Py_ssize_t max_frame_size, int64_t first, sent, int64_t now,
    histogram, bytes expected, list answered, uint64_t ring=0,
):
    """Take the ACK frames at the front of a buffer, as the twin describes it."""
    cdef Py_buffer view
    cdef Py_buffer *sent_view = NULL
    cdef Py_buffer *histogram_view = NULL
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        sent_view = writable_view(sent)
        histogram_view = writable_view(histogram)
        if not 0 <= end <= view.len:
            raise ValueError(f"end is {end}, outside a buffer of {view.len} bytes")
        return matched(
            <const unsigned char *>view.buf, end, max_frame_size, first, sent_view, now,
            <int64_t *>histogram_view.buf, expected, answered, ring,
        )
    finally:
        release_view(histogram_view)
        release_view(sent_view)
        PyBuffer_Release(&view)


cdef tuple matched(
    const unsigned char *data, Py_ssize_t end, Py_ssize_t max_frame_size, int64_t first,
    Py_buffer *sent, int64_t now, int64_t *histogram, bytes expected, list answered, uint64_t ring,
):
    cdef Reader r
    cdef Py_ssize_t offset = 0, strays = 0, wrong = 0, length, wanted_size = 0
    cdef uint64_t stream_id, frame_id, slots = sent.len // sizeof(int64_t)
    cdef int64_t *times = <int64_t *>sent.buf
    cdef const unsigned char *wanted = NULL
    if expected is not None:
        wanted = expected
        wanted_size = len(expected)
    r.base = data
    while True:
        length = frame_length(data, offset, end, max_frame_size)
        if length < 0 or data[offset + LENGTH_SIZE] != ACK:
            break
        if not data[offset + FLAGS_END - 1] & FIN:
            raise FragmentationError("an ACK may not be fragmented")
        r.offset = offset + FLAGS_END
        offset += LENGTH_SIZE + length
        r.end = offset
        read_varint(&r, &stream_id)
        read_varint(&r, &frame_id)
        if ring:
            stream_id = first + (stream_id >> 1) % ring if stream_id & 1 else 0
        if stream_id < <uint64_t>first or stream_id >= slots or not times[stream_id]:
            strays += 1
            continue
        if wanted is not NULL and (
                offset - r.offset != wanted_size
                or memcmp(data + r.offset, wanted, wanted_size) != 0):
            wrong += 1
        histogram[bucket_of(now - times[stream_id])] += 1
        times[stream_id] = 0
        answered.append(stream_id)
    return offset, strays, wrong
