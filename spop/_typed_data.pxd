"""What `_typed_data.pyx` shares with the other compiled modules: the numbers of section 3.1, and
reading and writing without Python objects."""

cimport cython
from cpython.mem cimport PyMem_Free
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int *overflow) except? -1


# The numbers of `spop.constants`; a test compares them.
cdef enum:
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

    TYPE_MASK = 0x0F
    BOOL_TRUE = 0x10
    LONG_VARINT = 240
    LONGEST_VARINT = 10


cdef struct Reader:
    const unsigned char *base
    Py_ssize_t offset
    Py_ssize_t end


# A name and typed data as they stand in the buffer. `number` is the integer, or the length of
# `data`. `flags` are the upper four bits of the first byte, in place.
cdef struct Field:
    const unsigned char *name
    Py_ssize_t name_length
    int type
    int flags
    uint64_t number
    const unsigned char *data


# Bytes being written. They start in the caller's memory and move to the heap as they grow.
cdef struct Writer:
    unsigned char *data
    Py_ssize_t length
    Py_ssize_t capacity
    bint heap


# --- reading ---


cdef inline int read_varint(Reader *r, uint64_t *value) except -1:
    if r.offset < r.end and r.base[r.offset] < LONG_VARINT:
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
cdef int refuse_data(Reader *r, Field *field, Py_ssize_t start) except -1
cdef int take_typed_data(Reader *r, Field *field) except -1


cdef inline bint is_out_of_range(Field *field) noexcept:
    cdef int64_t number = <int64_t>field.number
    return (field.type == T_INT32 and not -0x80000000LL <= number <= 0x7FFFFFFFLL) or (
        field.type == T_UINT32 and field.number > 0xFFFFFFFFULL)


# Inline, so that `lenient` is a constant in each of the functions that call it.
cdef inline int read_data(Reader *r, Field *field, bint lenient) except -1:
    cdef Py_ssize_t start = r.offset
    cdef Py_ssize_t length
    if start >= r.end:
        return refuse_data(r, field, start)
    field.type = r.base[start] & TYPE_MASK
    field.flags = r.base[start] & ~TYPE_MASK
    r.offset += 1
    if field.type == T_STRING or field.type == T_BINARY:
        read_span(r, &field.data, &length)
        field.number = length
    elif field.type <= T_BOOL:
        pass
    elif field.type <= T_UINT64:
        read_varint(r, &field.number)
        if not lenient and is_out_of_range(field):
            return refuse_data(r, field, start)
    elif field.type == T_IPV4 or field.type == T_IPV6:
        length = 4 if field.type == T_IPV4 else 16
        if length > r.end - r.offset:
            return refuse_data(r, field, start)
        field.data = r.base + r.offset
        field.number = length
        r.offset += length
    elif not lenient:
        return refuse_data(r, field, start)
    return 0


cdef inline int read_typed_data(Reader *r, Field *field) except -1:
    return read_data(r, field, False)


cdef inline int read_field(Reader *r, Field *field) except -1:
    read_span(r, &field.name, &field.name_length)
    read_typed_data(r, field)
    return 0


# --- Python objects ---


cdef object text(const unsigned char *data, Py_ssize_t length)
cdef object name_text(const unsigned char *data, Py_ssize_t length)
cdef object field_value(Field *field)
cdef object argument_value(Field *field)


# --- writing ---


cdef inline void use_stack(Writer *w, unsigned char *data, Py_ssize_t capacity) noexcept:
    w.data = data
    w.length = 0
    w.capacity = capacity
    w.heap = False


cdef inline int reserve(Writer *w, Py_ssize_t more) except -1:
    return 0 if w.length + more <= w.capacity else grow(w, more)


cdef inline int write_bytes(Writer *w, const void *data, Py_ssize_t length) except -1:
    """`data` may not be NULL, not even with a length of 0: memcpy leaves that undefined."""
    reserve(w, length)
    memcpy(w.data + w.length, data, length)
    w.length += length
    return 0


cdef inline int write_varint(Writer *w, uint64_t value) except -1:
    reserve(w, LONGEST_VARINT)
    if value >= LONG_VARINT:
        return write_long_varint(w, value)
    w.data[w.length] = <unsigned char>value
    w.length += 1
    return 0


cdef inline void release(Writer *w) noexcept:
    if w.heap:
        PyMem_Free(w.data)
        w.heap = False


cdef int grow(Writer *w, Py_ssize_t more) except -1
cdef int write_long_varint(Writer *w, uint64_t value) except -1
cdef int write_string(Writer *w, object value) except -1
cdef int write_type(Writer *w, int type) except -1
cdef int write_other_value(Writer *w, object name, object value) except -1


cdef inline int write_signed(Writer *w, long long number) except -1:
    reserve(w, 1 + LONGEST_VARINT)
    w.data[w.length] = T_INT32 if -0x80000000LL <= number <= 0x7FFFFFFFLL else T_INT64
    w.length += 1
    return write_varint(w, <uint64_t>number)


cdef inline int write_named_value(Writer *w, object name, object value) except -1:
    cdef int overflow = 0
    cdef long long number
    if type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow:
            return write_signed(w, number)
    return write_other_value(w, name, value)


cdef bytearray append(bytearray out, Writer *w)


# --- public functions ---

ctypedef int (*Write)(Writer *, object) except -1

cdef uint64_t as_uint64(object value) except? 0xFFFFFFFFFFFFFFFF
cdef bytearray written(Write write, object value, bytearray out)


@cython.final
cdef class _View:
    cdef Py_buffer buffer
    cdef Reader reader
