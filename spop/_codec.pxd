"""What `_codec.pyx` shares with the other compiled modules: the numbers of sections 3.2 to 3.4, and
frames as C structures. They import the names of `_typed_data.pxd` from here, too."""

from libc.stdint cimport uint32_t, uint64_t

from spop._typed_data cimport (
    LONGEST_VARINT, T_BINARY, T_BOOL, T_INT32, T_IPV4, T_NULL, T_STRING, T_UINT64, Field, Reader,
    Writer, argument_value, field_value, name_text, read_field, read_span, read_varint, release,
    reserve, text, use_stack, write_bytes, write_named_value, write_string, write_type,
    write_varint,
)


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

    SET_VAR = 1
    UNSET_VAR = 2
    SET_VAR_ARGUMENTS = 3
    UNSET_VAR_ARGUMENTS = 2
    LAST_SCOPE = 4

    LENGTH_SIZE = 4
    FLAGS_END = 9
    SHORTEST_FRAME = 7
    MAX_MESSAGE_ARGUMENTS = 255
    DEFAULT_MAX_FRAME_SIZE = 1048576
    MAX_CONTROL_SIZE = 16384
    LONGEST_HEADER = FLAGS_END + 2 * LONGEST_VARINT


# Type, flags and identifiers of a frame. The reader is left at its payload.
cdef struct Header:
    int type
    unsigned int flags
    uint64_t stream_id
    uint64_t frame_id


cdef inline Py_ssize_t announced_length(const unsigned char *p) noexcept:
    """The first four bytes of a frame; they do not count themselves."""
    return <uint32_t>p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]


# A call into another compiled module goes through a pointer. What each frame needs is inline: that
# takes a seventh of the dispatcher's time away.

cdef int refuse_abort() except -1
cdef Py_ssize_t refuse_length(Py_ssize_t length, Py_ssize_t max_frame_size) except -2


cdef inline int read_header(Reader *r, Header *header, bint little_endian, bint whole) except -1:
    cdef const unsigned char *p = r.base + r.offset
    header.type = p[0]
    # Network order (section 3.2). SPOP 1.0, HAProxy 1.7 and early 1.8, had the host's order.
    if little_endian:
        header.flags = p[1] | p[2] << 8 | p[3] << 16 | <unsigned int>p[4] << 24
    else:
        header.flags = p[4] | p[3] << 8 | p[2] << 16 | <unsigned int>p[1] << 24
    if whole:  # HAProxy 1.7 sets no flags.
        header.flags |= FIN
    r.offset += FLAGS_END - LENGTH_SIZE
    read_varint(r, &header.stream_id)
    read_varint(r, &header.frame_id)
    # "When ABORT is set, the FIN bit must also be set" (section 3.2).
    if header.flags & ABORT and not header.flags & FIN:
        return refuse_abort()
    return 0


cdef inline Py_ssize_t frame_length(
    const unsigned char *base, Py_ssize_t offset, Py_ssize_t end, Py_ssize_t max_frame_size
) except -2:
    """The length of the frame at `offset`, or -1 if some of it has not arrived."""
    cdef Py_ssize_t length
    if end - offset < LENGTH_SIZE:
        return -1
    length = announced_length(base + offset)
    if not SHORTEST_FRAME <= length <= max_frame_size:
        return refuse_length(length, max_frame_size)
    return length if length <= end - offset - LENGTH_SIZE else -1


cdef object read_frame(Reader *r, Header *header, bint lenient)
cdef object new_message(
    object name, tuple names, tuple values, object stream_id, object frame_id, object connection
)

cdef int write_answer(Writer *w, object answer) except -1


cdef inline Py_ssize_t begin_frame(
    Writer *w, int type, unsigned int flags, uint64_t stream_id, uint64_t frame_id,
    bint little_endian,
) except -1:
    """Write a frame up to its payload. `finish_frame` fills in the length."""
    cdef Py_ssize_t start = w.length
    cdef unsigned char *p
    cdef int i
    reserve(w, LONGEST_HEADER)
    p = w.data + start
    p[LENGTH_SIZE] = type
    for i in range(4):
        p[LENGTH_SIZE + 1 + i] = <unsigned char>(flags >> (8 * i if little_endian else 24 - 8 * i))
    w.length += FLAGS_END
    write_varint(w, stream_id)
    write_varint(w, frame_id)
    return start


cdef inline void finish_frame(Writer *w, Py_ssize_t start) noexcept:
    cdef Py_ssize_t length = w.length - start - LENGTH_SIZE
    cdef unsigned char *p = w.data + start
    p[0] = <unsigned char>(length >> 24)
    p[1] = <unsigned char>(length >> 16)
    p[2] = <unsigned char>(length >> 8)
    p[3] = <unsigned char>length
