"""What `_headers.pyx` shares with `_dispatch.pyx`: the class, and how an argument becomes one."""

from spop._codec cimport Reader


# The bytes of a `Headers`, and how far they are read.
cdef struct Cursor:
    Reader reader
    bint lines


cdef class Headers:
    cdef bytes data      # "name: value" lines, or to `end` strings with their lengths, in pairs
    cdef Py_ssize_t end
    cdef bint lines

    cdef int receive(self, bytes data, bint lines) except -1
    cdef int keep(self, fields) except -1
    cdef int put(self, bytes data, Py_ssize_t end, bint lines) except -1
    cdef bytes begin(self, Cursor *cursor)


cdef Headers received(bytes data, bint lines)
