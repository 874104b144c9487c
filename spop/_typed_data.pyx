"""Varints, strings and typed data (section 3.1), compiled: the same as `_typed_data_py`, its twin.

Reading goes in two steps: C structures that point into the buffer, then the final Python
objects. Writing goes into a `Writer`, which is appended to the caller's bytearray at the end.
"""

from cpython.bytearray cimport (
    PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from spop._objects cimport (
    HAS_GIL, decode_text, fill_slot, name_hash, new_instance, refill_slot, slot_offset,
    spare_instance,
)

from ipaddress import IPv4Address, IPv6Address

from spop._typed_data_py import binary_of
from spop.errors import InvalidFrameError
from spop.values import (
    Int32, Int64, ReceivedIPv4Address, ReceivedIPv6Address, String, UInt32, UInt64,
)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *length) except NULL
    unsigned long long PyLong_AsUnsignedLongLong(object) except? 0xFFFFFFFFFFFFFFFF

# Classes of the standard library. In a version where they have other slots, they are called.
cdef Py_ssize_t ipv4_number = slot_offset(IPv4Address, "_ip")
cdef Py_ssize_t ipv6_number = slot_offset(IPv6Address, "_ip")
cdef Py_ssize_t ipv6_scope_id = slot_offset(IPv6Address, "_scope_id")
cdef Py_ssize_t ipv4_packed = slot_offset(ReceivedIPv4Address, "packed")
cdef Py_ssize_t ipv6_packed = slot_offset(ReceivedIPv6Address, "packed")
cdef object _received_ipv4_class = ReceivedIPv4Address
cdef object _received_ipv6_class = ReceivedIPv6Address
cdef PyObject *_spare_ipv4 = NULL
cdef PyObject *_spare_ipv6 = NULL


# --- reading ---


# The first byte of a long varint holds 4 bits, each further byte 7. The highest bit of a further
# byte says that one more follows.
cdef enum:
    LAST_SHIFT = 4 + 7 * (LONGEST_VARINT - 2)


cdef int read_long_varint(Reader *r, uint64_t *value) except -1:
    cdef unsigned char byte
    cdef uint64_t result
    cdef int shift = 4
    if r.offset >= r.end:
        raise InvalidFrameError(f"varint cut short at byte {r.offset}")
    result = r.base[r.offset]
    r.offset += 1
    if result >= LONG_VARINT:
        while True:
            if r.offset >= r.end:
                raise InvalidFrameError(f"varint cut short at byte {r.offset}")
            byte = r.base[r.offset]
            r.offset += 1
            # Only 4 bits are left for the tenth byte, and the sum may carry out of them.
            if shift == LAST_SHIFT:
                if byte >= 0x80:
                    raise InvalidFrameError(
                        f"varint longer than {LONGEST_VARINT} bytes at byte {r.offset}")
                if byte > 15 or result + (<uint64_t>byte << 60) < result:
                    raise InvalidFrameError(f"varint above 64 bits at byte {r.offset}")
            result += <uint64_t>byte << shift
            shift += 7
            if byte < 0x80:
                break
    value[0] = result
    return 0


cdef int refuse_span(Reader *r, uint64_t size) except -1:
    raise InvalidFrameError(
        f"{size} bytes announced at byte {r.offset}, {r.end - r.offset} left")


cdef int refuse_data(Reader *r, Field *field, Py_ssize_t start) except -1:
    if start >= r.end:
        raise InvalidFrameError(f"typed data cut short at byte {start}")
    if field.type == T_IPV4 or field.type == T_IPV6:
        raise InvalidFrameError(f"address cut short at byte {r.offset}")
    if field.type <= T_UINT64:
        raise InvalidFrameError(f"integer out of the range of its type at byte {start}")
    raise InvalidFrameError(f"reserved data type {field.type} at byte {start}")


cdef int take_typed_data(Reader *r, Field *field) except -1:
    return read_data(r, field, True)


# --- Python objects ---


cdef object text(const unsigned char *data, Py_ssize_t length):
    return decode_text(data, length)


# The few names of a configuration repeat in every frame. A table keeps their str.
cdef enum:
    NAMES_KEPT = 512
    LONGEST_NAME_KEPT = 40

cdef list _names = [None] * NAMES_KEPT


cdef object name_text(const unsigned char *data, Py_ssize_t length):
    """The text of a name, from the table if it is there.

    Without a GIL the table would need a lock, which costs more than it saves.
    """
    cdef Py_ssize_t size, place
    cdef const char *kept
    cdef int turn
    if not HAS_GIL or not 0 < length <= LONGEST_NAME_KEPT:
        return text(data, length)
    place = name_hash(data, length)
    for turn in range(2):  # Each name has two places.
        name = _names[place]
        if name is None:
            break
        kept = PyUnicode_AsUTF8AndSize(name, &size)
        if size == length and memcmp(kept, data, length) == 0:
            return name
        place ^= 1
    name = text(data, length)
    if name.isascii():
        _names[place] = name
    return name


cdef object field_value(Field *field):
    cdef int type = field.type
    if type == T_STRING:
        return text(field.data, <Py_ssize_t>field.number)
    if type == T_IPV4:
        return ipv4(field.data)
    if type == T_UINT32 or type == T_UINT64:
        return field.number
    if type == T_INT32 or type == T_INT64:
        return <int64_t>field.number
    if type == T_BOOL:
        return field.flags & BOOL_TRUE != 0
    if type == T_BINARY:
        return PyBytes_FromStringAndSize(<const char *>field.data, <Py_ssize_t>field.number)
    if type == T_IPV6:
        return ipv6(field.data)
    return None


cdef uint64_t big_endian(const unsigned char *p, int length) noexcept:
    cdef uint64_t number = 0
    cdef int i
    for i in range(length):
        number = number << 8 | p[i]
    return number


# The constructors of ipaddress parse and check in Python, which takes ten times as long. Here
# the number is always in range.
cdef object ipv4(const unsigned char *p):
    cdef object number = <uint32_t>big_endian(p, 4)
    if ipv4_number < 0:
        return IPv4Address(number)
    cdef object address = new_instance(IPv4Address)
    fill_slot(address, ipv4_number, number)
    return address


cdef object ipv6(const unsigned char *p):
    cdef object number = int(big_endian(p, 8)) << 64 | big_endian(p + 8, 8)
    if ipv6_number < 0 or ipv6_scope_id < 0:
        return IPv6Address(number)
    cdef object address = new_instance(IPv6Address)
    fill_slot(address, ipv6_number, number)
    fill_slot(address, ipv6_scope_id, None)
    return address


cdef object argument_value(Field *field):
    """The value for a handler, whose addresses keep the bytes that were received."""
    if field.type == T_IPV4 and ipv4_number >= 0:
        return received_ipv4(field.data)
    if field.type == T_IPV6 and ipv6_number >= 0 and ipv6_scope_id >= 0:
        return received_ipv6(field.data)
    return field_value(field)


# To make and free an address takes longer than all other work on an argument, and few handlers
# keep one. If nobody kept the last one, it is filled with the next address.
cdef object received_ipv4(const unsigned char *p):
    cdef object address = spare_instance(&_spare_ipv4, _received_ipv4_class)
    refill_slot(address, ipv4_number, <uint32_t>big_endian(p, 4))
    refill_slot(address, ipv4_packed, PyBytes_FromStringAndSize(<const char *>p, 4))
    return address


cdef object received_ipv6(const unsigned char *p):
    cdef object address = spare_instance(&_spare_ipv6, _received_ipv6_class)
    cdef object number = int(big_endian(p, 8)) << 64 | big_endian(p + 8, 8)
    refill_slot(address, ipv6_number, number)
    refill_slot(address, ipv6_scope_id, None)
    refill_slot(address, ipv6_packed, PyBytes_FromStringAndSize(<const char *>p, 16))
    return address


# --- writing ---


cdef int grow(Writer *w, Py_ssize_t more) except -1:
    cdef unsigned char *data
    cdef Py_ssize_t capacity = 2 * w.capacity + more
    data = <unsigned char *>PyMem_Realloc(w.data if w.heap else NULL, capacity)
    if data is NULL:
        raise MemoryError
    if not w.heap:
        memcpy(data, w.data, w.length)
    w.data = data
    w.capacity = capacity
    w.heap = True
    return 0


cdef int write_long_varint(Writer *w, uint64_t value) except -1:
    """Write a varint of two bytes or more, for which the caller has reserved room."""
    cdef unsigned char *p = w.data + w.length
    p[0] = <unsigned char>value | LONG_VARINT
    p += 1
    value = (value - LONG_VARINT) >> 4
    while value >= 0x80:
        p[0] = <unsigned char>value | 0x80
        p += 1
        value = (value - 0x80) >> 7
    p[0] = <unsigned char>value
    w.length = p + 1 - w.data
    return 0


cdef int write_text(Writer *w, str value) except -1:
    cdef Py_ssize_t length
    cdef const char *data
    try:
        data = PyUnicode_AsUTF8AndSize(value, &length)
    except UnicodeEncodeError:  # Surrogates: bytes that were no UTF-8.
        return write_blob(w, value.encode("utf-8", "surrogateescape"))
    write_varint(w, length)
    write_bytes(w, data, length)
    return 0


cdef int write_blob(Writer *w, bytes value) except -1:
    write_varint(w, PyBytes_GET_SIZE(value))
    write_bytes(w, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    return 0


cdef int write_string(Writer *w, object value) except -1:
    if isinstance(value, str):
        return write_text(w, str(value) if type(value) is not str else value)
    if isinstance(value, bytes):
        return write_blob(w, bytes(value) if type(value) is not bytes else value)
    raise TypeError(f"a name is str or bytes, not {type(value).__name__}")


cdef int write_type(Writer *w, int type) except -1:
    reserve(w, 1)
    w.data[w.length] = type
    w.length += 1
    return 0


cdef int write_integer(Writer *w, object value) except -1:
    cdef int type
    if isinstance(value, (Int32, UInt32, Int64, UInt64)):
        type = value.data_type
        write_type(w, type)
        # All four types carry the 64 bits of the two's complement, INT32 and UINT32 too.
        return write_varint(w, value & 0xFFFFFFFFFFFFFFFF)
    return write_plain_integer(w, value)


cdef int write_plain_integer(Writer *w, object value) except -1:
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        if not 0 <= value < 1 << 64:
            raise OverflowError(f"{value} is not in -2**63 to 2**64 - 1")
        write_type(w, T_UINT64)
        return write_varint(w, PyLong_AsUnsignedLongLong(value))
    return write_signed(w, number)


cdef int write_address(Writer *w, int type_, object address, Py_ssize_t size) except -1:
    cdef object packed = address.packed
    # A subclass may define `packed` with any type and length.
    if type(packed) is not bytes or PyBytes_GET_SIZE(packed) != size:
        raise TypeError(f"{type(address).__name__}.packed is not {size} bytes")
    write_type(w, type_)
    return write_bytes(w, PyBytes_AS_STRING(packed), size)


cdef int write_ipv4(Writer *w, object address) except -1:
    cdef uint32_t number
    cdef unsigned char data[4]
    cdef int i
    if type(address) is not IPv4Address or ipv4_number < 0:
        return write_address(w, T_IPV4, address, 4)
    number = address._ip  # To make `packed` of it in Python takes as long as the rest of a NOTIFY.
    for i in range(4):
        data[i] = number >> (24 - 8 * i) & 0xFF
    write_type(w, T_IPV4)
    return write_bytes(w, data, 4)


cdef int write_value(Writer *w, object value) except -1:
    if type(value) is int:
        write_plain_integer(w, value)
    elif value is None:
        write_type(w, T_NULL)
    elif value is True or value is False:
        write_type(w, T_BOOL | BOOL_TRUE if value is True else T_BOOL)
    elif isinstance(value, int):
        write_integer(w, value)
    elif isinstance(value, str):
        write_type(w, T_STRING)
        write_string(w, value)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        write_type(w, T_STRING if isinstance(value, String) else T_BINARY)
        write_blob(w, bytes(value))
    elif isinstance(value, IPv4Address):
        write_ipv4(w, value)
    elif isinstance(value, IPv6Address):
        write_address(w, T_IPV6, value, 16)
    else:
        write_type(w, T_BINARY)
        write_blob(w, binary_of(value))
    return 0


cdef int write_other_value(Writer *w, object name, object value) except -1:
    try:
        return write_value(w, value)
    except UnicodeError:  # Its constructor takes more than a text.
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{name}: {error}") from None


cdef bytearray append(bytearray out, Writer *w):
    cdef Py_ssize_t start
    if out is None:
        return PyByteArray_FromStringAndSize(<char *>w.data, w.length)
    start = len(out)
    PyByteArray_Resize(out, start + w.length)
    memcpy(PyByteArray_AS_STRING(out) + start, w.data, w.length)
    return out


cdef uint64_t as_uint64(object value) except? 0xFFFFFFFFFFFFFFFF:
    try:
        return PyLong_AsUnsignedLongLong(value)
    except OverflowError:
        raise OverflowError(
            f"{value} is not in 0 to 2**64 - 1, the range of a varint") from None


# --- public functions, documented in `_typed_data_py` ---


cdef bytearray written(Write write, object value, bytearray out):
    """Append what `write` writes of `value`. When it raises, `out` is as it was."""
    cdef unsigned char stack[512]
    cdef Writer w
    use_stack(&w, stack, sizeof(stack))
    try:
        write(&w, value)
        return append(out, &w)
    finally:
        release(&w)


cdef int write_varint_of(Writer *w, object value) except -1:
    return write_varint(w, as_uint64(value))


cdef class _View:
    """A reader over an object with the buffer protocol, which it holds while it lives."""

    def __cinit__(self, object source, Py_ssize_t offset=0):
        PyObject_GetBuffer(source, &self.buffer, PyBUF_SIMPLE)
        self.reader.base = <const unsigned char *>self.buffer.buf
        self.reader.offset = offset
        self.reader.end = self.buffer.len
        if not 0 <= offset <= self.buffer.len:
            raise ValueError(f"offset {offset} is outside a buffer of {self.buffer.len} bytes")

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)


def encode_varint(value, bytearray out=None):
    return written(write_varint_of, value, out)


def decode_varint(buffer, Py_ssize_t offset=0):
    cdef _View view = _View(buffer, offset)
    cdef uint64_t value
    read_varint(&view.reader, &value)
    return value, view.reader.offset


def encode_string(value, bytearray out=None):
    return written(write_string, value, out)


def decode_string(buffer, Py_ssize_t offset=0):
    cdef _View view = _View(buffer, offset)
    cdef const unsigned char *data
    cdef Py_ssize_t length
    read_span(&view.reader, &data, &length)
    return text(data, length), view.reader.offset


def encode_value(value, bytearray out=None):
    return written(write_value, value, out)


def decode_value(buffer, Py_ssize_t offset=0):
    cdef _View view = _View(buffer, offset)
    cdef Field field
    read_typed_data(&view.reader, &field)
    return field_value(&field), view.reader.offset
