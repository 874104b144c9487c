"""What `_route.pyx` shares with `_dispatch.pyx`: the class, and the vector of a call."""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.string cimport memset

from spop._cache cimport Answers
from spop._codec cimport Field, Header

cdef extern from "Python.h":
    void Py_XDECREF(PyObject *)


# The numbers of `spop.parameters`; `_dispatch.pyx` compares them.
cdef enum:
    INLINE = 0
    ASYNC = 1
    LEFT = 2

    KIND_ARGUMENT = 0
    KIND_MESSAGE = 1
    KIND_ACK = 2
    KIND_KEY = 3
    HEADERS = 65536


# A message as it stands in the buffer: its name, where its arguments are in the fields, and
# its route, where there is one.
cdef struct Span:
    const unsigned char *name
    Py_ssize_t name_length
    Py_ssize_t first
    int count
    PyObject *route


# The name of an argument as it was seen last, in bytes that `Route.names_seen` keeps.
cdef struct Seen:
    const char *name
    Py_ssize_t length
    int slot


@cython.final
cdef class Route:
    cdef readonly str name
    cdef readonly object function
    cdef readonly tuple parameters
    cdef readonly tuple keywords
    cdef readonly int kind
    cdef readonly bytes on_error
    cdef readonly bint limited
    cdef public Answers answers
    cdef public Py_ssize_t base
    cdef bytes raw_name
    cdef dict slots            # by name as bytes; -1: no parameter wants it
    cdef list names_seen       # last, by position of the argument
    cdef Seen seen[256]
    cdef int seen_count
    cdef int size
    cdef int positional
    cdef long *accepts
    cdef int *kinds
    cdef bint takes_ack

    cdef int slot_of(self, int position, Field *field) except -2
    cdef int learn_slot(self, int position, Field *field) except -2
    cdef object accepted(self, int slot, Field *field)
    cdef object headers(self, int slot, Field *field)
    cdef int bind(
        self, PyObject **values, Field *fields, Span *span, Header *header, object connection
    ) except -1
    cdef object supplied(
        self, int slot, Field *fields, Span *span, Header *header, object connection)
    cdef bytes key(self, Field *fields, Span *span)


cdef inline PyObject **parameter_values(Route route, PyObject **stack) except NULL:
    """Memory for the values of a handler's parameters: `stack` if there are 16 at most."""
    cdef PyObject **values = stack
    if route.size > 16:
        values = <PyObject **>PyMem_Malloc(route.size * sizeof(PyObject *))
        if values is NULL:
            raise MemoryError
    memset(values, 0, route.size * sizeof(PyObject *))
    return values


cdef inline list values_list(Route route, PyObject **values):
    cdef int i
    return [<object>values[i] for i in range(route.size)]


cdef inline void free_values(Route route, PyObject **values, PyObject **stack) noexcept:
    cdef int i
    for i in range(route.size):
        Py_XDECREF(values[i])
    if values is not stack:
        PyMem_Free(values)


cdef object message_of(Field *fields, Span *span, Header *header, object connection)
