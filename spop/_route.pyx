"""Handlers, ready to be called, compiled.

The same as `_route_py`, its twin. Arguments go from `Field`s straight into the vector of a call.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from spop._codec cimport (
    T_BINARY, T_BOOL, T_INT32, T_IPV4, T_NULL, T_STRING, T_UINT64, Field, Header, argument_value,
    field_value, name_text, new_message,
)
from spop._headers cimport received

from spop.constants import MAX_TEXT_SIZE, DataType
from spop.errors import HandlerError, InvalidFrameError
from spop.frames import Ack
from spop.parameters import MISSING, missing, mistyped

cdef extern from "Python.h":
    void Py_INCREF(PyObject *)

cdef object _missing = MISSING

cdef enum:
    LEARNED_NAMES = 1024
    LONGEST_KEY = 1024     # Bytes of a key above which an answer is not kept.
    MAX_CACHED = 64        # Parameters of a handler whose answers may be kept.


cdef class Route:
    """A handler, ready to be called."""

    def __cinit__(
        self, str name, function, parameters=(), int kind=INLINE, bytes on_error=b"",
        bint limited=False,
    ):
        cdef int slot
        self.name = name
        self.raw_name = name.encode("utf-8", "surrogateescape")
        self.function = function
        self.parameters = tuple(sorted(parameters, key=_keyword_only))
        self.keywords = tuple([p.name for p in self.parameters if p.keyword_only])
        self.kind = kind
        self.on_error = on_error
        self.limited = limited
        self.size = len(self.parameters)
        self.positional = self.size - len(self.keywords)
        self.accepts = <long *>PyMem_Malloc(max(1, self.size) * sizeof(long))
        self.kinds = <int *>PyMem_Malloc(max(1, self.size) * sizeof(int))
        if self.accepts is NULL or self.kinds is NULL:
            raise MemoryError
        self.slots = {}
        self.names_seen = []
        for slot in range(self.size):
            parameter = self.parameters[slot]
            self.accepts[slot] = parameter.accepts
            self.kinds[slot] = parameter.kind
            self.takes_ack |= self.kinds[slot] == KIND_ACK
            if self.kinds[slot] == KIND_ARGUMENT:
                self.slots[parameter.name.encode()] = slot

    def __dealloc__(self):
        PyMem_Free(self.accepts)
        PyMem_Free(self.kinds)

    def call(self, list values not None):
        """Call the handler with bound values and return what it returns."""
        if not self.keywords:
            return self.function(*values)
        return self.function(
            *values[:self.positional],
            **dict(zip(self.keywords, values[self.positional:], strict=True)))

    def __repr__(self):
        return f"<Route {self.name}>"

    cdef inline int slot_of(self, int position, Field *field) except -2:
        """The slot of an argument, or -1. Names mostly come in the order of the last frame, so
        one comparison replaces a lookup."""
        cdef Seen *seen = &self.seen[position]
        if position < self.seen_count and seen.length == field.name_length and memcmp(
                seen.name, field.name, field.name_length) == 0:
            return seen.slot
        return self.learn_slot(position, field)

    cdef int learn_slot(self, int position, Field *field) except -2:
        cdef bytes name = PyBytes_FromStringAndSize(<const char *>field.name, field.name_length)
        cdef object found = self.slots.get(name)
        cdef int slot
        if found is None:
            found = self.slots.get(name.replace(b"-", b"_").replace(b".", b"_"), -1)
            if len(self.slots) < LEARNED_NAMES and len(name) <= MAX_TEXT_SIZE:
                self.slots[name] = found
        slot = found
        if position > self.seen_count or field.name_length > MAX_TEXT_SIZE:
            return slot
        if position == self.seen_count:
            self.names_seen.append(name)
            self.seen_count += 1
        self.names_seen[position] = name
        self.seen[position].name = PyBytes_AS_STRING(name)
        self.seen[position].length = field.name_length
        self.seen[position].slot = slot
        return slot

    cdef object accepted(self, int slot, Field *field):
        """The argument's value in a type that its parameter accepts, or MISSING."""
        cdef long accepts = self.accepts[slot]
        cdef int type = field.type
        if accepts >> type & 1:
            # Handlers that run later keep their arguments, so a spare address saves nothing.
            return argument_value(field) if self.kind == INLINE else field_value(field)
        if T_INT32 <= type <= T_UINT64 and accepts & 0x3C:
            return field_value(field)
        if type == T_STRING and accepts >> T_BINARY & 1:
            return PyBytes_FromStringAndSize(
                <const char *>field.data, <Py_ssize_t>field.number)
        if (type == T_STRING or type == T_BINARY) and accepts & HEADERS:
            return self.headers(slot, field)
        if type == T_NULL:
            return _missing
        named = "an integer" if T_INT32 <= type <= T_UINT64 else DataType(type).name
        raise mistyped(self.name, self.parameters[slot], named)

    cdef object headers(self, int slot, Field *field):
        cdef bytes data = PyBytes_FromStringAndSize(
            <const char *>field.data, <Py_ssize_t>field.number)
        try:
            return received(data, field.type == T_STRING)
        except InvalidFrameError as error:
            raise HandlerError(
                f"message {self.name}: argument {self.parameters[slot].name} "
                f"is no list of headers: {error}") from None

    cdef int bind(
        self, PyObject **values, Field *fields, Span *span, Header *header, object connection,
    ) except -1:
        """Fill `values`, owned references, with the values of the parameters."""
        cdef int i, slot
        cdef object value
        for i in range(span.count):
            slot = self.slot_of(i, &fields[span.first + i])
            if slot >= 0 and values[slot] is NULL:
                value = self.accepted(slot, &fields[span.first + i])
                if value is not _missing:
                    Py_INCREF(<PyObject *>value)
                    values[slot] = <PyObject *>value
        for slot in range(self.size):
            if values[slot] is NULL:
                value = self.supplied(slot, fields, span, header, connection)
                Py_INCREF(<PyObject *>value)
                values[slot] = <PyObject *>value
        return 0

    cdef object supplied(
        self, int slot, Field *fields, Span *span, Header *header, object connection,
    ):
        """The value of a parameter that no argument matched."""
        if self.kinds[slot] == KIND_MESSAGE:
            return message_of(fields, span, header, connection)
        if self.kinds[slot] == KIND_ACK:
            return Ack(header.stream_id, header.frame_id)
        if self.kinds[slot] == KIND_KEY:
            return self.key(fields, span)
        parameter = self.parameters[slot]
        if parameter.default is _missing:
            names = message_of(fields, span, header, connection).names
            raise missing(self.name, parameter, names)
        return parameter.default

    cdef bytes key(self, Field *fields, Span *span):
        """The key of a cached answer: the arguments that parameters take. None: it is too long."""
        cdef unsigned char key[LONGEST_KEY]
        cdef Field *taken[MAX_CACHED]
        cdef Py_ssize_t length = 0, size
        cdef Field *field
        cdef int i, slot
        if self.size > MAX_CACHED:
            return None
        for slot in range(self.size):
            taken[slot] = NULL
        for i in range(span.count):
            field = &fields[span.first + i]
            slot = self.slot_of(i, field)
            if slot >= 0 and taken[slot] is NULL:
                taken[slot] = field
        for slot in range(self.size):
            field = taken[slot]
            if field is NULL or field.type <= T_BOOL:
                size = 1
            elif field.type >= T_IPV4:
                size = 1 + sizeof(uint64_t) + <Py_ssize_t>field.number
            else:
                size = 1 + sizeof(uint64_t)
            if size > LONGEST_KEY - length:
                return None
            write_part(&key[length], field)
            length += size
        return PyBytes_FromStringAndSize(<const char *>key, length)


cdef int write_part(unsigned char *key, Field *field) noexcept:
    """Write the part of a key that one parameter has: the type and value of its argument."""
    cdef int type
    if field is NULL:
        key[0] = 0xFF
        return 0
    type = field.type
    if type <= T_BOOL:
        key[0] = <unsigned char>(type | field.flags)
        return 0
    if T_INT32 <= type <= T_UINT64:
        # Handlers are given an int, whatever its type is. From 2 ** 63 on the same bits are two.
        type = T_UINT64 if type == T_UINT64 and field.number >> 63 else T_INT32
    key[0] = <unsigned char>type
    memcpy(key + 1, &field.number, sizeof(uint64_t))
    if type >= T_IPV4:
        memcpy(key + 1 + sizeof(uint64_t), field.data, <size_t>field.number)
    return 0


def _keyword_only(parameter):
    return parameter.keyword_only


cdef object message_of(Field *fields, Span *span, Header *header, object connection):
    cdef list names = [], values = []
    cdef int i
    cdef Field *field
    for i in range(span.count):
        field = &fields[span.first + i]
        names.append(name_text(field.name, field.name_length))
        values.append(field_value(field))
    return new_message(
        name_text(span.name, span.name_length), tuple(names), tuple(values), header.stream_id,
        header.frame_id, connection)
