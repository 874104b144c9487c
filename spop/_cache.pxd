"""What `_cache.pyx` shares with `_dispatch.pyx`: the class, and how an answer is found."""

cimport cython
from libc.stdint cimport int64_t


# An answer, in the list of all by the time of their last use. The dict owns it.
@cython.final
cdef class _Entry:
    cdef bytes key
    cdef bytes answer
    cdef int64_t expires
    cdef void *newer
    cdef void *older


@cython.final
cdef class Answers:
    cdef object __weakref__
    cdef dict entries
    cdef Py_ssize_t size
    cdef void *newest
    cdef void *oldest
    cdef readonly int64_t hits
    cdef readonly int64_t misses
    cdef readonly int64_t memory
    cdef readonly int64_t generation
    cdef int64_t begun  # The generation of the entries.

    cpdef bytes find(self, bytes key, int64_t now)
    cdef int link(self, _Entry entry) except -1
    cdef int unlink(self, _Entry entry) except -1
    cdef int drop(self, _Entry entry) except -1
    cpdef forget(self)
