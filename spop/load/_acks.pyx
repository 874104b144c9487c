"""Matches ACKs with the NOTIFY frames that they answer, compiled. `_acks_py` is the twin."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memset

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
    cdef Py_buffer view, sent_view, histogram_view
    cdef int64_t *times
    cdef int64_t *buckets
    cdef uint64_t slots
    cdef Reader r
    cdef const unsigned char *data
    cdef Py_ssize_t offset = 0, strays = 0, wrong = 0, length
    cdef uint64_t stream_id, frame_id
    cdef const unsigned char *wanted = NULL
    cdef Py_ssize_t wanted_size = 0
    if expected is not None:
        wanted = expected
        wanted_size = len(expected)
    memset(&sent_view, 0, sizeof(Py_buffer))
    memset(&histogram_view, 0, sizeof(Py_buffer))
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(sent, &sent_view, PyBUF_WRITABLE)
        PyObject_GetBuffer(histogram, &histogram_view, PyBUF_WRITABLE)
        times, buckets = <int64_t *>sent_view.buf, <int64_t *>histogram_view.buf
        slots = sent_view.len // sizeof(int64_t)
        if not 0 <= end <= view.len:
            raise ValueError(f"end is {end}, outside a buffer of {view.len} bytes")
        data = <const unsigned char *>view.buf
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
            if (stream_id < <uint64_t>first or stream_id >= slots
                    or not times[stream_id]):
                strays += 1
                continue
            if wanted is not NULL and (
                    offset - r.offset != wanted_size
                    or memcmp(data + r.offset, wanted, wanted_size) != 0):
                wrong += 1
            buckets[bucket_of(now - times[stream_id])] += 1
            times[stream_id] = 0
            answered.append(stream_id)
        return offset, strays, wrong
    finally:
        PyBuffer_Release(&histogram_view)
        PyBuffer_Release(&sent_view)
        PyBuffer_Release(&view)
