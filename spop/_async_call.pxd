"""What `_async_call.pyx` shares with the dispatcher, and the clock of both."""

cimport cython
from libc.stdint cimport int64_t

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)
    int CLOCK_MONOTONIC


cdef inline int64_t now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


@cython.final
cdef class AsyncCall:
    cdef object coroutine
    cdef readonly str name
    cdef object slow
    cdef int64_t slow_after
    cdef public object task
    cdef public object finished
    cdef public bint done
    cdef public object value
    cdef public object error

    cdef object step(self, value)
    cdef int observe(self, int64_t began) except -1
    cdef int end(self) except -1
