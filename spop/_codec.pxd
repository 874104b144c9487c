"""What `_codec.pyx` shares with `_dispatch.pyx`: reading and writing with no Python objects."""

from libc.stdint cimport uint64_t


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


cdef int grow(Writer *w, Py_ssize_t more) except -1
cdef void release(Writer *w) noexcept
cdef int write_actions(Writer *w, object actions) except -1
cdef int write_varint(Writer *w, uint64_t value) except -1
cdef Py_ssize_t begin_frame(
    Writer *w, int type, unsigned int flags, uint64_t stream_id, uint64_t frame_id,
    bint little_endian,
) except -1
cdef void finish_frame(Writer *w, Py_ssize_t start) noexcept
