"""What `_intake.pyx` shares with the dispatcher and the fast path."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from spop._codec cimport MAX_CONTROL_SIZE, Header, Reader


# Bytes that are kept: what is at `start` was not read yet.
cdef struct Bytes:
    unsigned char *data
    Py_ssize_t start
    Py_ssize_t end
    Py_ssize_t capacity


cdef int add_bytes(
    Bytes *kept, const unsigned char *data, Py_ssize_t size, Py_ssize_t expected=*
) except -1
cdef void drop_bytes(Bytes *kept, Py_ssize_t size) noexcept
cdef void free_bytes(Bytes *kept) noexcept


# What a fragment does to the payload it belongs to.
cdef enum Step:
    WAITING = 0
    WHOLE = 1
    TOO_BIG = 2


@cython.final
cdef class Memory:
    cdef public Py_ssize_t room
    cdef public object exceeded
    cdef public object fragmented
    cdef public bint watching

    cpdef int take(self, Py_ssize_t size) except -1
    cdef int begin_payload(self) except -1


@cython.final
cdef class Intake:
    cdef public Py_ssize_t max_frame_size
    cdef public Py_ssize_t max_payload_size
    cdef public Py_ssize_t max_in_flight
    cdef public Py_ssize_t in_flight
    cdef public bint is_open
    cdef readonly bint closed
    cdef public bint suspended
    cdef public bint little_endian
    cdef public bint whole
    cdef public bint takes_fragments
    cdef public object peer
    cdef readonly dict calls
    cdef public Memory memory
    cdef readonly bint begun
    cdef readonly int64_t began
    cdef bint ignored
    cdef uint64_t stream_id
    cdef uint64_t frame_id
    cdef Bytes received
    cdef Bytes payload
    cdef Bytes acks

    cdef inline bint is_paused(self) noexcept:
        return self.suspended or self.in_flight >= self.max_in_flight

    cdef inline Py_ssize_t frame_limit(self) noexcept:
        if self.is_open or self.max_frame_size < MAX_CONTROL_SIZE:
            return self.max_frame_size
        return MAX_CONTROL_SIZE

    cdef int keep(
        self, Bytes *kept, const unsigned char *data, Py_ssize_t size, Py_ssize_t expected=*
    ) except -1
    cdef void see_flags(self, const unsigned char *frame, Py_ssize_t size) noexcept
    cdef Py_ssize_t complete_frame(self, const unsigned char *data, Py_ssize_t size) except -1
    cdef Step take_fragment(self, Reader *r, Header *header) except? WAITING
    cdef void end_payload(self) noexcept
