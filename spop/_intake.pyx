"""What a connection has received and may receive, compiled: the same as `_intake_py`, its twin."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memcpy, memmove, memset

from spop._codec cimport (
    ABORT, FIN, FLAGS_END, HAPROXY_HELLO, LENGTH_SIZE, NOTIFY, Header, Reader, announced_length,
)

from sys import maxsize
from time import monotonic_ns

from spop.constants import DEFAULT_MAX_PAYLOAD_SIZE
from spop.errors import FragmentationError, InterlacedFramesError


cdef int add_bytes(
    Bytes *kept, const unsigned char *data, Py_ssize_t size, Py_ssize_t expected=0
) except -1:
    """Add bytes to the end. The memory of bytes that were read is used first.

    `expected` is the number of bytes that may come in all. Memory never grows beyond it.
    """
    cdef Py_ssize_t used = kept.end - kept.start
    cdef Py_ssize_t capacity
    cdef unsigned char *grown
    if size == 0:
        return 0
    if kept.end + size > kept.capacity:
        if kept.start:
            memmove(kept.data, kept.data + kept.start, used)
            kept.start, kept.end = 0, used
        if used + size > kept.capacity:
            # The first size is exact, as most connections keep one partial frame only. Later ones
            # double it.
            capacity = used + size
            if kept.data is not NULL:
                capacity = max(capacity, min(2 * capacity, expected))
            grown = <unsigned char *>PyMem_Realloc(kept.data, capacity)
            if grown is NULL:
                raise MemoryError
            kept.data = grown
            kept.capacity = capacity
    memcpy(kept.data + kept.end, data, size)
    kept.end += size
    return 0


cdef void drop_bytes(Bytes *kept, Py_ssize_t size) noexcept:
    """Remove bytes from the front. The last one frees the memory."""
    kept.start += size
    if kept.start == kept.end:
        free_bytes(kept)


cdef void free_bytes(Bytes *kept) noexcept:
    PyMem_Free(kept.data)
    memset(kept, 0, sizeof(Bytes))


cdef class Memory:
    """How much more the connections of a loop may keep, as the twin describes it."""

    def __cinit__(self):
        self.room = maxsize

    cpdef int take(self, Py_ssize_t size) except -1:
        """So many bytes more are kept."""
        self.room -= size
        if self.room < 0 and self.exceeded is not None:
            self.exceeded()
        return 0

    cdef int begin_payload(self) except -1:
        if not self.watching and self.fragmented is not None:
            self.watching = True
            self.fragmented()
        return 0


cdef class Intake:
    """What one connection has received, as the twin describes it."""

    def __cinit__(
        self, Py_ssize_t max_frame_size, Py_ssize_t max_payload_size=DEFAULT_MAX_PAYLOAD_SIZE,
    ):
        self.max_frame_size = max_frame_size
        self.max_payload_size = max_payload_size
        self.max_in_flight = 1
        self.calls = {}
        self.memory = Memory()

    def __dealloc__(self):
        free_bytes(&self.received)
        free_bytes(&self.payload)
        free_bytes(&self.acks)

    @property
    def unread(self):
        return self.received.end - self.received.start

    @property
    def size(self):
        return self.received.end - self.received.start + self.payload.end

    @property
    def allocated(self):
        return self.received.capacity + self.payload.capacity + self.acks.capacity

    @property
    def paused(self):
        return self.is_paused()

    @property
    def at_rest(self):
        return (
            self.is_open and not self.in_flight and not self.suspended
            and self.received.end == 0 and not self.begun and not self.ignored
            and self.acks.end == 0)

    def close(self):
        """Drop the received bytes."""
        self.is_open, self.closed = False, True
        free_bytes(&self.received)
        self.end_payload()

    def take_acks(self):
        """The ACKs of calls that have ended since the last send."""
        cdef bytes acks
        if self.acks.end == 0:
            return b""
        acks = PyBytes_FromStringAndSize(
            <const char *>self.acks.data + self.acks.start, self.acks.end - self.acks.start)
        free_bytes(&self.acks)
        return acks

    cdef int keep(
        self, Bytes *kept, const unsigned char *data, Py_ssize_t size, Py_ssize_t expected=0
    ) except -1:
        cdef Py_ssize_t before = kept.capacity
        add_bytes(kept, data, size, expected)
        if kept.capacity != before:
            self.memory.take(kept.capacity - before)
        return 0

    cdef void see_flags(self, const unsigned char *frame, Py_ssize_t size) noexcept:
        """A HELLO shows how the connection writes flags, as the twin describes it."""
        if size < FLAGS_END - LENGTH_SIZE:
            self.whole = True
            return
        self.little_endian = frame[1] != 0 and frame[4] == 0
        self.whole = frame[0] == HAPROXY_HELLO and not (
            frame[1] or frame[2] or frame[3] or frame[4])

    cdef Py_ssize_t complete_frame(self, const unsigned char *data, Py_ssize_t size) except -1:
        """Complete the first unread frame. Returns how many bytes of `data` that took."""
        cdef Bytes *received = &self.received
        cdef Py_ssize_t front = LENGTH_SIZE if self.is_open else FLAGS_END
        cdef Py_ssize_t taken = 0, whole, missing, end
        if received.end - received.start < front:
            taken = min(front - (received.end - received.start), size)
            self.keep(received, data, taken)
        if received.end - received.start < front:
            return taken
        whole = LENGTH_SIZE + announced_length(received.data + received.start)
        missing = whole - (received.end - received.start)
        # The length alone makes a frame above the limit an error, so no more of it is kept.
        if not 0 < missing <= self.frame_limit():
            return taken
        end = min(taken + missing, size)
        self.keep(received, data + taken, end - taken, whole)
        return end

    cdef Step take_fragment(self, Reader *r, Header *header) except? WAITING:
        """Add a fragment to the payload (section 3.2). Returns the next step."""
        cdef bint known = (self.begun or self.ignored) and (
            header.stream_id == self.stream_id and header.frame_id == self.frame_id)
        if not self.takes_fragments:
            raise FragmentationError
        if header.type == NOTIFY:
            if self.begun:
                raise InterlacedFramesError
            self.begun, self.ignored, self.began = True, False, monotonic_ns()
            self.memory.begin_payload()
            self.stream_id, self.frame_id = header.stream_id, header.frame_id
        elif not known:
            raise InterlacedFramesError(
                f"fragment of {(header.stream_id, header.frame_id)} "
                "where none or another was begun")
        elif self.ignored or header.flags & ABORT:
            if header.flags & FIN:
                self.end_payload()
            return WAITING
        if self.payload.end + r.end - r.offset > self.max_payload_size:
            self.end_payload()
            self.ignored = not header.flags & FIN
            return TOO_BIG
        self.keep(&self.payload, r.base + r.offset, r.end - r.offset, self.max_payload_size)
        return WHOLE if header.flags & FIN else WAITING

    cdef void end_payload(self) noexcept:
        """Free the payload, and be ready for another one."""
        self.begun = self.ignored = False
        free_bytes(&self.payload)
