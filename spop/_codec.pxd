"""What `_codec.pyx` shares with the other compiled modules: the numbers of sections 3.2 to 3.4, and
frames as C structures. The names of `_typed_data.pxd` can be imported from here too."""

from libc.stdint cimport uint32_t, uint64_t

from spop._typed_data cimport (
    BOOL_TRUE, LONGEST_VARINT, LONG_VARINT, T_BINARY, T_BOOL, T_INT32, T_INT64, T_IPV4, T_IPV6,
    T_NULL, T_STRING, T_UINT32, T_UINT64, TYPE_MASK, Field, Reader, Writer, argument_value,
    field_value, name_text, read_field, read_span, read_varint, release, reserve, text, use_stack,
    write_bytes, write_named_value, write_string, write_type, write_varint,
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


# Type, flags and identifiers of a frame. The reader is left at its payload.
cdef struct Header:
    int type
    unsigned int flags
    uint64_t stream_id
    uint64_t frame_id


cdef inline Py_ssize_t announced_length(const unsigned char *p) noexcept:
    """The first four bytes of a frame; they do not count themselves."""
    return <uint32_t>p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]


cdef int read_header(Reader *r, Header *header, bint little_endian, bint whole) except -1
cdef Py_ssize_t frame_length(
    const unsigned char *base, Py_ssize_t offset, Py_ssize_t end, Py_ssize_t max_frame_size
) except -2
cdef object read_frame(Reader *r, Header *header, bint lenient)
cdef object new_message(
    object name, tuple names, tuple values, object stream_id, object frame_id, object connection
)

cdef int write_answer(Writer *w, object answer) except -1
cdef Py_ssize_t begin_frame(
    Writer *w, int type, unsigned int flags, uint64_t stream_id, uint64_t frame_id,
    bint little_endian,
) except -1
cdef void finish_frame(Writer *w, Py_ssize_t start) noexcept
