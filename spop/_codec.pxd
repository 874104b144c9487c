"""What `_codec.pyx` shares with the other compiled modules: the protocol's numbers, and reading
and writing with no Python objects."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy


# The numbers of `spop.constants`; a test compares them.
cdef enum:
    UNSET_FRAME = 0
    HAPROXY_HELLO = 1
    HAPROXY_DISCONNECT = 2
    NOTIFY = 3
    AGENT_HELLO = 101
    AGENT_DISCONNECT = 102
    ACK = 103

    FIN = 1
    ABORT = 2

    T_NULL = 0
    T_BOOL = 1
    T_INT32 = 2
    T_UINT32 = 3
    T_INT64 = 4
    T_UINT64 = 5
    T_IPV4 = 6
    T_IPV6 = 7
    T_STRING = 8
    T_BINARY = 9

    SET_VAR = 1
    UNSET_VAR = 2

    DEFAULT_MAX_FRAME_SIZE = 1048576
    MAX_CONTROL_SIZE = 16384


cdef struct Reader:
    const unsigned char *base
    Py_ssize_t offset
    Py_ssize_t end


# One argument as it stands in the buffer. `number` is the integer, or the length of `data`.
cdef struct Field:
    const unsigned char *name
    Py_ssize_t name_length
    int type
    int flags
    uint64_t number
    const unsigned char *data


# Type, flags and identifiers of a frame; the reader is left at its payload.
cdef struct Header:
    int type
    unsigned int flags
    uint64_t stream_id
    uint64_t frame_id


# Bytes being written. They start in memory of the caller's and move to the heap as they grow.
cdef struct Writer:
    unsigned char *data
    Py_ssize_t length
    Py_ssize_t capacity
    bint heap


cdef inline void use_stack(Writer *w, unsigned char *data, Py_ssize_t capacity) noexcept:
    w.data = data
    w.length = 0
    w.capacity = capacity
    w.heap = False


cdef inline Py_ssize_t announced_length(const unsigned char *p) noexcept:
    """The first four bytes of a frame; they do not count themselves."""
    return <uint32_t>p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]


cdef inline int read_varint(Reader *r, uint64_t *value) except -1:
    if r.offset < r.end and r.base[r.offset] < 240:
        value[0] = r.base[r.offset]
        r.offset += 1
        return 0
    return read_long_varint(r, value)


cdef inline int read_span(Reader *r, const unsigned char **data, Py_ssize_t *length) except -1:
    cdef uint64_t size
    read_varint(r, &size)
    if size > <uint64_t>(r.end - r.offset):
        return refuse_span(r, size)
    data[0] = r.base + r.offset
    length[0] = <Py_ssize_t>size
    r.offset += length[0]
    return 0


cdef int read_long_varint(Reader *r, uint64_t *value) except -1
cdef int refuse_span(Reader *r, uint64_t size) except -1
cdef int read_field(Reader *r, Field *field) except -1
cdef int read_header(Reader *r, Header *header, bint little_endian, bint whole) except -1
cdef Py_ssize_t frame_length(
    const unsigned char *base, Py_ssize_t offset, Py_ssize_t end, Py_ssize_t max_frame_size
) except -2
cdef object decode_frame(Reader *r, Header *header)
cdef object field_value(Field *field)
cdef object argument_value(Field *field)
cdef object new_message(
    object name, tuple names, tuple values, object stream_id, object frame_id, object connection
)
cdef object name_text(const unsigned char *data, Py_ssize_t length)
cdef object text(const unsigned char *data, Py_ssize_t length)

cdef inline int reserve(Writer *w, Py_ssize_t more) except -1:
    return 0 if w.length + more <= w.capacity else grow(w, more)


cdef inline int write_bytes(Writer *w, const void *data, Py_ssize_t length) except -1:
    reserve(w, length)
    memcpy(w.data + w.length, data, length)
    w.length += length
    return 0


cdef int grow(Writer *w, Py_ssize_t more) except -1
cdef void release(Writer *w) noexcept
cdef int write_answer(Writer *w, object answer) except -1
cdef int write_varint(Writer *w, uint64_t value) except -1
cdef Py_ssize_t begin_frame(
    Writer *w, int type, unsigned int flags, uint64_t stream_id, uint64_t frame_id,
    bint little_endian,
) except -1
cdef void finish_frame(Writer *w, Py_ssize_t start) noexcept
