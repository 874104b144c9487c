"""The codec, compiled: the same functions, bytes and errors as `_codec_py`, its twin.

Reading goes in two steps: C structures that point into the buffer, then the final Python
objects. Writing goes into a `Writer`, appended to the caller's bytearray when it is whole.
"""

from cpython.bytearray cimport (
    PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_New
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ipaddress import IPv4Address, IPv6Address

from collections.abc import Mapping

from spop import _codec_py
from spop.constants import FrameType
from spop.errors import FragmentationError, FrameTooBigError, InvalidFrameError
from spop.frames import Ack, Action, Control, Message, Notify, RawFrame
from spop.values import (
    SCOPE_NAMES, UNSET, Int32, Int64, ReceivedIPv4Address, ReceivedIPv6Address, String, UInt32,
    UInt64,
)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *length) except NULL
    long long PyLong_AsLongLongAndOverflow(object, int *overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLong(object) except? 0xFFFFFFFFFFFFFFFF
    void Py_INCREF(PyObject *)
    void Py_XDECREF(PyObject *)

# Instances of Python classes with __slots__ are made without a call, and their slots filled
# in place: a third of the time of decoding went into setting attributes.
cdef extern from *:
    """
    #include <structmember.h>

    static inline PyObject *new_instance(PyObject *type) {
        return PyType_GenericAlloc((PyTypeObject *)type, 0);
    }

    static Py_ssize_t slot_offset(PyObject *type, const char *name) {
        PyObject *slot = PyObject_GetAttrString(type, name);
        Py_ssize_t offset = -1;
        if (slot == NULL)
            PyErr_Clear();
        else if (Py_IS_TYPE(slot, &PyMemberDescr_Type))
            offset = ((PyMemberDescrObject *)slot)->d_member->offset;
        Py_XDECREF(slot);
        return offset;
    }

    static inline void fill_slot(PyObject *instance, Py_ssize_t offset, PyObject *value) {
        *(PyObject **)((char *)instance + offset) = Py_NewRef(value);
    }

    /* `*spare`, where nobody else has it, else a new instance, which is the next spare one.
       Without a GIL there is no spare one. */
    static inline PyObject *spare_instance(PyObject **spare, PyObject *type) {
    #ifdef Py_GIL_DISABLED
        return PyType_GenericAlloc((PyTypeObject *)type, 0);
    #else
        Py_ssize_t weak = ((PyTypeObject *)type)->tp_weaklistoffset;
        if (*spare != NULL && Py_REFCNT(*spare) == 1 && !*(PyObject **)((char *)*spare + weak))
            return Py_NewRef(*spare);
        PyObject *instance = PyType_GenericAlloc((PyTypeObject *)type, 0);
        Py_XSETREF(*spare, Py_XNewRef(instance));
        return instance;
    #endif
    }

    static inline void refill_slot(PyObject *instance, Py_ssize_t offset, PyObject *value) {
        PyObject **slot = (PyObject **)((char *)instance + offset);
        Py_XSETREF(*slot, Py_NewRef(value));
    }

    static inline void put_item(PyObject *tuple, Py_ssize_t index, PyObject *value) {
        PyTuple_SET_ITEM(tuple, index, Py_NewRef(value));
    }

    /* Nearly all text is ASCII, which one vectorised pass finds out. */
    static inline PyObject *decode_text(const unsigned char *data, Py_ssize_t length) {
        unsigned char bits = 0;
        for (Py_ssize_t i = 0; i < length; i++)
            bits |= data[i];
        if (bits >= 0x80 || length < 2)
            return PyUnicode_DecodeUTF8((const char *)data, length, "surrogateescape");
        PyObject *text = PyUnicode_New(length, 127);
        if (text != NULL)
            memcpy(PyUnicode_1BYTE_DATA(text), data, length);
        return text;
    }

    /* Nine bits of both ends of a name, where what tells names apart mostly is. */
    static inline Py_ssize_t name_hash(const unsigned char *data, Py_ssize_t length) {
        uint64_t front = 0, back = 0;
        memcpy(&front, data, length < 8 ? length : 8);
        if (length > 8)
            memcpy(&back, data + length - 8, 8);
        return (front + 31 * back + length) * UINT64_C(0x9E3779B97F4A7C15) >> 55;
    }

    #ifdef Py_GIL_DISABLED
    #define HAS_GIL 0
    #else
    #define HAS_GIL 1
    #endif
    """
    object new_instance(object type)
    Py_ssize_t slot_offset(object type, const char *name)
    void fill_slot(object instance, Py_ssize_t offset, object value)
    object spare_instance(PyObject **spare, object type)
    void refill_slot(object instance, Py_ssize_t offset, object value)
    object decode_text(const unsigned char *data, Py_ssize_t length)
    void put_item(tuple items, Py_ssize_t index, object value)
    Py_ssize_t name_hash(const unsigned char *data, Py_ssize_t length)
    bint HAS_GIL

# The protocol's numbers stand in the .pxd; a test compares these with `spop.constants`.
C_CONSTANTS = {
    "FrameType": (UNSET_FRAME, HAPROXY_HELLO, HAPROXY_DISCONNECT, NOTIFY, AGENT_HELLO,
                  AGENT_DISCONNECT, ACK),
    "FrameFlag": (FIN, ABORT),
    "DataType": (T_NULL, T_BOOL, T_INT32, T_UINT32, T_INT64, T_UINT64, T_IPV4, T_IPV6,
                 T_STRING, T_BINARY),
    "ActionType": (SET_VAR, UNSET_VAR),
    "DEFAULT_MAX_FRAME_SIZE": DEFAULT_MAX_FRAME_SIZE,
    "MAX_CONTROL_SIZE": MAX_CONTROL_SIZE,
}

cdef Py_ssize_t message_name = slot_offset(Message, "name")
cdef Py_ssize_t message_names = slot_offset(Message, "names")
cdef Py_ssize_t message_values = slot_offset(Message, "values")
cdef Py_ssize_t message_stream_id = slot_offset(Message, "stream_id")
cdef Py_ssize_t message_frame_id = slot_offset(Message, "frame_id")
cdef Py_ssize_t message_connection = slot_offset(Message, "connection")
cdef Py_ssize_t notify_stream_id = slot_offset(Notify, "stream_id")
cdef Py_ssize_t notify_frame_id = slot_offset(Notify, "frame_id")
cdef Py_ssize_t notify_messages = slot_offset(Notify, "messages")
cdef Py_ssize_t ack_stream_id = slot_offset(Ack, "stream_id")
cdef Py_ssize_t ack_frame_id = slot_offset(Ack, "frame_id")
cdef Py_ssize_t ack_actions = slot_offset(Ack, "actions")
cdef Py_ssize_t ack_aborted = slot_offset(Ack, "aborted")
# Not our classes: where their slots are no longer these, their constructors are called.
cdef Py_ssize_t ipv4_number = slot_offset(IPv4Address, "_ip")
cdef Py_ssize_t ipv6_number = slot_offset(IPv6Address, "_ip")
cdef Py_ssize_t ipv6_scope_id = slot_offset(IPv6Address, "_scope_id")
cdef Py_ssize_t ipv4_packed = slot_offset(ReceivedIPv4Address, "packed")
cdef Py_ssize_t ipv6_packed = slot_offset(ReceivedIPv6Address, "packed")
cdef object _received_ipv4_class = ReceivedIPv4Address
cdef object _received_ipv6_class = ReceivedIPv6Address
cdef PyObject *_spare_ipv4 = NULL
cdef PyObject *_spare_ipv6 = NULL
cdef object _unset = UNSET
cdef dict _frame_types = {int(member): member for member in FrameType}
cdef tuple _scope_names = SCOPE_NAMES
cdef dict _targets = _codec_py._targets


# --- reading -----------------------------------------------------------------------------


cdef int read_long_varint(Reader *r, uint64_t *value) except -1:
    cdef unsigned char byte
    cdef uint64_t result
    cdef int shift = 4
    if r.offset >= r.end:
        raise InvalidFrameError(f"varint cut short at byte {r.offset}")
    result = r.base[r.offset]
    r.offset += 1
    if result >= 240:
        while True:
            if r.offset >= r.end:
                raise InvalidFrameError(f"varint cut short at byte {r.offset}")
            byte = r.base[r.offset]
            r.offset += 1
            # At shift 60 only 4 bits are left, and the sum may carry out of them.
            if shift == 60:
                if byte >= 128:
                    raise InvalidFrameError(f"varint longer than 10 bytes at byte {r.offset}")
                if byte > 15 or result + (<uint64_t>byte << 60) < result:
                    raise InvalidFrameError(f"varint above 64 bits at byte {r.offset}")
            result += <uint64_t>byte << shift
            shift += 7
            if byte < 128:
                break
    value[0] = result
    return 0


cdef int refuse_span(Reader *r, uint64_t size) except -1:
    raise InvalidFrameError(
        f"{size} bytes announced at byte {r.offset}, {r.end - r.offset} left")


cdef int read_typed_data(Reader *r, Field *field) except -1:
    cdef Py_ssize_t start = r.offset
    cdef Py_ssize_t length
    if start >= r.end:
        raise InvalidFrameError(f"typed data cut short at byte {start}")
    field.type = r.base[start] & 0x0F
    field.flags = r.base[start] >> 4
    r.offset += 1
    if field.type == T_STRING or field.type == T_BINARY:
        read_span(r, &field.data, &length)
        field.number = length
    elif field.type <= T_BOOL:
        pass
    elif field.type <= T_UINT64:
        read_varint(r, &field.number)
        check_range(field, start)
    elif field.type == T_IPV4 or field.type == T_IPV6:
        length = 4 if field.type == T_IPV4 else 16
        if length > r.end - r.offset:
            raise InvalidFrameError(f"address cut short at byte {r.offset}")
        field.data = r.base + r.offset
        r.offset += length
    else:
        raise InvalidFrameError(f"reserved data type {field.type} at byte {start}")
    return 0


cdef inline int check_range(Field *field, Py_ssize_t start) except -1:
    cdef int64_t number = <int64_t>field.number
    if (field.type == T_INT32 and not -0x80000000LL <= number <= 0x7FFFFFFFLL) or (
            field.type == T_UINT32 and field.number > 0xFFFFFFFFULL):
        raise InvalidFrameError(f"integer out of the range of its type at byte {start}")
    return 0


cdef int read_field(Reader *r, Field *field) except -1:
    read_span(r, &field.name, &field.name_length)
    read_typed_data(r, field)
    return 0


cdef int read_header(Reader *r, Header *header, bint little_endian, bint whole) except -1:
    cdef const unsigned char *p = r.base + r.offset
    header.type = p[0]
    if little_endian:
        header.flags = p[1] | p[2] << 8 | p[3] << 16 | <unsigned int>p[4] << 24
    else:
        header.flags = p[4] | p[3] << 8 | p[2] << 16 | <unsigned int>p[1] << 24
    if whole:
        header.flags |= FIN
    r.offset += 5
    read_varint(r, &header.stream_id)
    read_varint(r, &header.frame_id)
    if header.flags & ABORT and not header.flags & FIN:
        raise InvalidFrameError("ABORT without FIN")
    return 0


cdef Py_ssize_t frame_length(
    const unsigned char *base, Py_ssize_t offset, Py_ssize_t end, Py_ssize_t max_frame_size
) except -2:
    """The length of the frame at `offset`, or -1 when it has not all arrived."""
    cdef const unsigned char *p = base + offset
    cdef Py_ssize_t length
    if end - offset < 4:
        return -1
    length = announced_length(p)
    if length > max_frame_size:
        raise FrameTooBigError(f"frame of {length} bytes, {max_frame_size} at most")
    if length < 7:
        raise InvalidFrameError(f"frame of {length} bytes, 7 at least")
    return length if length <= end - offset - 4 else -1


# --- Python objects from what was read -----------------------------------------------------


cdef object text(const unsigned char *data, Py_ssize_t length):
    return decode_text(data, length)


# Few names come again and again: the str of each is kept in a table.
cdef enum:
    NAMES_KEPT = 512
    LONGEST_NAME_KEPT = 40

cdef list _names = [None] * NAMES_KEPT


cdef object name_text(const unsigned char *data, Py_ssize_t length):
    """The text of a name, from the table where it has it. Without a GIL there is no table."""
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
        return field.flags & 1 != 0
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


# ipaddress parses and checks in Python what is known to be right here, at ten times the cost.
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
    """The value as a handler is given it: an address has what it came as at hand."""
    if field.type == T_IPV4 and ipv4_number >= 0:
        return received_ipv4(field.data)
    if field.type == T_IPV6 and ipv6_number >= 0 and ipv6_scope_id >= 0:
        return received_ipv6(field.data)
    return field_value(field)


# Making and freeing an address takes longer than all else about an argument, and few handlers
# keep one: then the next is the same object, filled anew.
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


cdef list read_messages(Reader *r, object stream_id, object frame_id):
    cdef list messages = []
    cdef const unsigned char *name
    cdef Py_ssize_t length
    while r.offset < r.end:
        read_span(r, &name, &length)
        messages.append(read_message(r, name_text(name, length), stream_id, frame_id))
    return messages


cdef object read_message(Reader *r, object name, object stream_id, object frame_id):
    cdef tuple names, values
    cdef Field field
    cdef int count, i
    if r.offset >= r.end:
        raise InvalidFrameError(f"message without its argument count at byte {r.offset}")
    count = r.base[r.offset]
    r.offset += 1
    names = PyTuple_New(count)
    values = PyTuple_New(count)
    for i in range(count):
        read_field(r, &field)
        put_item(names, i, name_text(field.name, field.name_length))
        put_item(values, i, field_value(&field))
    return new_message(name, names, values, stream_id, frame_id, None)


cdef object new_message(
    object name, tuple names, tuple values, object stream_id, object frame_id, object connection
):
    cdef object message = new_instance(Message)
    fill_slot(message, message_name, name)
    fill_slot(message, message_names, names)
    fill_slot(message, message_values, values)
    fill_slot(message, message_stream_id, stream_id)
    fill_slot(message, message_frame_id, frame_id)
    fill_slot(message, message_connection, connection)
    return message


cdef dict read_kv_list(Reader *r):
    cdef dict items = {}
    cdef Field field
    while r.offset < r.end:
        read_field(r, &field)
        items[text(field.name, field.name_length)] = field_value(&field)
    return items


cdef list read_actions(Reader *r):
    cdef list actions = []
    cdef const unsigned char *p
    cdef const unsigned char *name
    cdef Py_ssize_t length, start
    cdef Field field
    cdef object value
    while r.offset < r.end:
        start = r.offset
        if r.end - start < 3:
            raise InvalidFrameError(f"action cut short at byte {start}")
        p = r.base + start
        if not ((p[0] == SET_VAR and p[1] == 3) or (p[0] == UNSET_VAR and p[1] == 2)):
            raise InvalidFrameError(f"action {p[0]} of {p[1]} arguments at byte {start}")
        if p[2] > 4:
            raise InvalidFrameError(f"unknown variable scope {p[2]} at byte {start + 2}")
        r.offset += 3
        read_span(r, &name, &length)
        value = _unset
        if p[0] == SET_VAR:
            read_typed_data(r, &field)
            value = field_value(&field)
        actions.append(Action(_scope_names[p[2]], text(name, length), value))
    return actions


cdef object decode_frame(Reader *r, Header *header):
    cdef int type = header.type
    cdef bint final = header.flags & FIN
    cdef object frame
    if type == NOTIFY and final:
        frame = new_instance(Notify)
        stream_id = header.stream_id
        frame_id = header.frame_id
        fill_slot(frame, notify_stream_id, stream_id)
        fill_slot(frame, notify_frame_id, frame_id)
        fill_slot(frame, notify_messages, read_messages(r, stream_id, frame_id))
        return frame
    if type == ACK:
        if not final:
            raise FragmentationError("an ACK may not be fragmented")
        frame = new_instance(Ack)
        fill_slot(frame, ack_stream_id, header.stream_id)
        fill_slot(frame, ack_frame_id, header.frame_id)
        fill_slot(frame, ack_actions, read_actions(r))
        fill_slot(frame, ack_aborted, header.flags & ABORT != 0)
        return frame
    if type in (HAPROXY_HELLO, HAPROXY_DISCONNECT, AGENT_HELLO, AGENT_DISCONNECT):
        if not final:
            raise FragmentationError("HELLO and DISCONNECT may not be fragmented")
        if header.stream_id or header.frame_id:
            raise InvalidFrameError("stream-id and frame-id of HELLO and DISCONNECT must be 0")
        return Control(_frame_types[type], read_kv_list(r))
    return RawFrame(
        type, header.flags, header.stream_id, header.frame_id,
        PyBytes_FromStringAndSize(<const char *>r.base + r.offset, r.end - r.offset))


# --- writing -----------------------------------------------------------------------------


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


cdef void release(Writer *w) noexcept:
    if w.heap:
        PyMem_Free(w.data)
        w.heap = False


cdef int write_varint(Writer *w, uint64_t value) except -1:
    cdef unsigned char *p
    reserve(w, 10)
    p = w.data + w.length
    if value < 240:
        p[0] = <unsigned char>value
        w.length += 1
        return 0
    p[0] = <unsigned char>value | 0xF0
    p += 1
    value = (value - 240) >> 4
    while value >= 128:
        p[0] = <unsigned char>value | 0x80
        p += 1
        value = (value - 128) >> 7
    p[0] = <unsigned char>value
    w.length = p + 1 - w.data
    return 0


cdef int write_text(Writer *w, str value) except -1:
    cdef Py_ssize_t length
    cdef const char *data
    try:
        data = PyUnicode_AsUTF8AndSize(value, &length)
    except UnicodeEncodeError:
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


cdef int write_signed(Writer *w, long long number) except -1:
    write_type(w, T_INT32 if -0x80000000LL <= number <= 0x7FFFFFFFLL else T_INT64)
    return write_varint(w, <uint64_t>number)


cdef int write_address(Writer *w, int type_, object address, Py_ssize_t size) except -1:
    cdef object packed = address.packed  # A subclass may have it of any type and length.
    if type(packed) is not bytes or PyBytes_GET_SIZE(packed) != size:
        raise TypeError(f"{type(address).__name__}.packed is not {size} bytes")
    write_type(w, type_)
    return write_bytes(w, PyBytes_AS_STRING(packed), size)


cdef int write_value(Writer *w, object value) except -1:
    if type(value) is int:
        write_plain_integer(w, value)
    elif value is None:
        write_type(w, T_NULL)
    elif value is True or value is False:
        write_type(w, 0x11 if value is True else 0x01)
    elif isinstance(value, int):
        write_integer(w, value)
    elif isinstance(value, str):
        write_type(w, T_STRING)
        write_string(w, value)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        write_type(w, T_STRING if isinstance(value, String) else T_BINARY)
        write_blob(w, bytes(value))
    elif isinstance(value, IPv4Address):
        write_address(w, T_IPV4, value, 4)
    elif isinstance(value, IPv6Address):
        write_address(w, T_IPV6, value, 16)
    else:
        write_type(w, T_BINARY)
        write_blob(w, _codec_py._binary(value))
    return 0


cdef int write_named_value(Writer *w, object name, object value) except -1:
    cdef int overflow = 0
    cdef long long number
    if type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow:
            return write_signed(w, number)
    try:
        return write_value(w, value)
    except UnicodeError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{name}: {error}") from None


cdef int write_kv_list(Writer *w, object items) except -1:
    for name, value in items.items() if isinstance(items, Mapping) else items:
        write_string(w, name)
        write_named_value(w, name, value)
    return 0


cdef int write_messages(Writer *w, object messages) except -1:
    cdef Py_ssize_t count
    for message in messages:
        count = len(message)
        if count > 255:
            raise ValueError(f"message {message.name}: {count} arguments, 255 at most")
        write_string(w, message.name)
        write_type(w, <int>count)
        for name, value in zip(message.names, message.values, strict=True):
            write_string(w, name)
            write_named_value(w, name, value)
    return 0


# Variables are mostly constants of the handlers' code, the same object each time: those set last
# are found by their identity, in a table that keeps them alive.
cdef enum:
    VARIABLES_KEPT = 64

cdef struct Variable:
    PyObject *name
    PyObject *target

cdef Variable _variables[VARIABLES_KEPT]


cdef inline object target_of(object name):
    """Scope and name of a variable as an action has them."""
    cdef Variable *kept = &_variables[(<size_t><void *>name >> 4) % VARIABLES_KEPT]
    if kept.name is <PyObject *>name:
        return <object>kept.target
    return find_target(name, kept)


cdef object find_target(object name, Variable *kept):
    cdef object target = _targets.get(name)
    if target is None:
        target = _codec_py._target(name)
    if HAS_GIL and type(name) is str:
        Py_XDECREF(kept.name)
        Py_XDECREF(kept.target)
        kept.name = <PyObject *>name
        kept.target = <PyObject *>target
        Py_INCREF(kept.name)
        Py_INCREF(kept.target)
    return target


cdef int write_action(Writer *w, object variable, object value) except -1:
    cdef object target = target_of(variable)
    reserve(w, 2)
    w.data[w.length] = UNSET_VAR if value is _unset else SET_VAR
    w.data[w.length + 1] = 2 if value is _unset else 3
    w.length += 2
    write_bytes(w, PyBytes_AS_STRING(target), PyBytes_GET_SIZE(target))
    if value is not _unset:
        write_named_value(w, variable, value)
    return 0


cdef int write_actions(Writer *w, object actions) except -1:
    return write_actions_with(w, actions, None)


cdef int write_answer(Writer *w, object answer) except -1:
    """What a handler answers, where None removes the variable."""
    return write_actions_with(w, answer, _unset)


cdef int write_actions_with(Writer *w, object actions, object null) except -1:
    """Write actions, with `null` in the place of None."""
    if type(actions) is dict:
        for variable, value in (<dict>actions).items():
            write_action(w, variable, null if value is None else value)
    elif isinstance(actions, Mapping):
        for variable, value in actions.items():
            write_action(w, variable, null if value is None else value)
    else:
        for action in actions:
            value = action.value
            write_action(w, action.variable, null if value is None else value)
    return 0


cdef Py_ssize_t begin_frame(
    Writer *w, int type, unsigned int flags, uint64_t stream_id, uint64_t frame_id,
    bint little_endian,
) except -1:
    cdef Py_ssize_t start = w.length
    cdef unsigned char *p
    cdef int i
    reserve(w, 29)
    p = w.data + start
    p[4] = type
    for i in range(4):
        p[5 + i] = <unsigned char>(flags >> (8 * i if little_endian else 24 - 8 * i))
    w.length += 9
    write_varint(w, stream_id)
    write_varint(w, frame_id)
    return start


cdef void finish_frame(Writer *w, Py_ssize_t start) noexcept:
    cdef Py_ssize_t length = w.length - start - 4
    cdef unsigned char *p = w.data + start
    p[0] = <unsigned char>(length >> 24)
    p[1] = <unsigned char>(length >> 16)
    p[2] = <unsigned char>(length >> 8)
    p[3] = <unsigned char>length


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


# --- the public functions, documented in `_codec_py` -----------------------------------------

# A function of the twin that takes `out` differs from the next only in what it writes.
ctypedef int (*Write)(Writer *, object) except -1


cdef bytearray written(Write write, object value, bytearray out):
    cdef unsigned char stack[512]
    cdef Writer w
    use_stack(&w, stack, sizeof(stack))
    try:
        write(&w, value)
        return append(out, &w)
    finally:
        release(&w)


cdef bytearray written_frame(
    Write write, object payload, int type, unsigned int flags, object stream_id,
    object frame_id, bytearray out, bint little_endian,
):
    cdef unsigned char stack[1024]
    cdef Writer w
    cdef Py_ssize_t start
    use_stack(&w, stack, sizeof(stack))
    try:
        start = begin_frame(
            &w, type, flags, as_uint64(stream_id), as_uint64(frame_id), little_endian)
        write(&w, payload)
        finish_frame(&w, start)
        return append(out, &w)
    finally:
        release(&w)


cdef int write_varint_of(Writer *w, object value) except -1:
    return write_varint(w, as_uint64(value))


cdef int write_buffer(Writer *w, object payload) except -1:
    cdef Py_buffer view
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        write_bytes(w, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return 0


cdef class View:
    """A reader over an object with the buffer protocol, released with it."""

    cdef Py_buffer buffer
    cdef Reader reader

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
    cdef View view = View(buffer, offset)
    cdef uint64_t value
    read_varint(&view.reader, &value)
    return value, view.reader.offset


def encode_string(value, bytearray out=None):
    return written(write_string, value, out)


def decode_string(buffer, Py_ssize_t offset=0):
    cdef View view = View(buffer, offset)
    cdef const unsigned char *data
    cdef Py_ssize_t length
    read_span(&view.reader, &data, &length)
    return text(data, length), view.reader.offset


def encode_value(value, bytearray out=None):
    return written(write_value, value, out)


def decode_value(buffer, Py_ssize_t offset=0):
    cdef View view = View(buffer, offset)
    cdef Field field
    read_typed_data(&view.reader, &field)
    return field_value(&field), view.reader.offset


def encode_kv_list(items, bytearray out=None):
    return written(write_kv_list, items, out)


def decode_kv_list(buffer):
    cdef View view = View(buffer)
    return read_kv_list(&view.reader)


def encode_messages(messages, bytearray out=None):
    return written(write_messages, messages, out)


def decode_messages(buffer):
    cdef View view = View(buffer)
    return read_messages(&view.reader, 0, 0)


def encode_actions(actions, bytearray out=None):
    return written(write_actions, actions, out)


def encode_answer(answer, bytearray out=None):
    return written(write_answer, answer, out)


def decode_actions(buffer):
    cdef View view = View(buffer)
    return read_actions(&view.reader)


def encode_notify(stream_id, frame_id, messages, bytearray out=None, *, bint little_endian=False):
    return written_frame(
        write_messages, messages, NOTIFY, FIN, stream_id, frame_id, out, little_endian)


def encode_ack(
    stream_id, frame_id, actions=(), bytearray out=None, *, bint abort=False,
    bint little_endian=False,
):
    return written_frame(
        write_actions, actions, ACK, FIN | ABORT if abort else FIN, stream_id, frame_id, out,
        little_endian)


def encode_control(int type, items, bytearray out=None, *, bint little_endian=False):
    return written_frame(write_kv_list, items, type, FIN, 0, 0, out, little_endian)


def encode_raw_frame(
    int type, unsigned int flags, stream_id, frame_id, payload, bytearray out=None, *,
    bint little_endian=False,
):
    return written_frame(
        write_buffer, payload, type, flags, stream_id, frame_id, out, little_endian)


def encode_frame(frame, bytearray out=None, *, bint little_endian=False):
    if isinstance(frame, Notify):
        return encode_notify(
            frame.stream_id, frame.frame_id, frame.messages, out, little_endian=little_endian)
    if isinstance(frame, Ack):
        return encode_ack(
            frame.stream_id, frame.frame_id, frame.actions, out, abort=frame.aborted,
            little_endian=little_endian)
    if isinstance(frame, Control):
        return encode_control(frame.type, frame.items, out, little_endian=little_endian)
    return encode_raw_frame(
        frame.type, frame.flags, frame.stream_id, frame.frame_id, frame.payload, out,
        little_endian=little_endian)


def decode_frames(
    buffer, Py_ssize_t start=0, end=None, *, Py_ssize_t max_frame_size=DEFAULT_MAX_FRAME_SIZE,
    bint little_endian=False, bint whole=False,
):
    cdef Py_buffer view
    cdef Reader reader
    cdef Header header
    cdef Py_ssize_t offset = start, limit, length
    cdef list frames = []
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        limit = view.len if end is None else end
        if not 0 <= start <= limit <= view.len:
            raise ValueError(f"{start} to {limit} is outside a buffer of {view.len} bytes")
        # Offsets in errors count from `start`, as the twin's do.
        reader.base = <const unsigned char *>view.buf + start
        while True:
            length = frame_length(reader.base, offset - start, limit - start, max_frame_size)
            if length < 0:
                break
            reader.offset = offset - start + 4
            reader.end = reader.offset + length
            read_header(&reader, &header, little_endian, whole)
            frames.append(decode_frame(&reader, &header))
            offset += 4 + length
    except (FrameTooBigError, FragmentationError, InvalidFrameError):
        if not frames:
            raise
    finally:
        PyBuffer_Release(&view)
    return frames, offset
