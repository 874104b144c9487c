"""What `_dispatch.pyx` shares with `_port.pyx`."""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from spop._async_call cimport AsyncCall, now
from spop._codec cimport Field, Header, Reader, Writer
from spop._intake cimport Bytes, Intake
from spop._route cimport Route, Span


# Cells of a row; `C_CELLS` compares them with `spop.counters`.
cdef enum:
    NOTIFIES = 0
    ACKS = 1
    UNKNOWN_MESSAGES = 2
    BYTES_RECEIVED = 3
    BYTES_SENT = 4
    PAYLOADS_TOO_BIG = 13
    TOO_MANY_MESSAGES = 16
    ACKS_DROPPED = 17
    RUNNING_TASKS = 22
    ROUND_BEGAN = 25
    CALLS = 0
    ERRORS = 1
    NANOSECONDS = 3
    HITS = 4
    MISSES = 5
    KEPT = 6
    FIRST_BUCKET = 7
    BUCKETS = 25
    BUCKET_SHIFT = 10


@cython.final
cdef class Call:
    cdef readonly Route route
    cdef public list values
    cdef readonly AsyncCall begun
    cdef readonly bytes kept
    cdef public bint wanted
    cdef public object exchange
    cdef readonly Py_ssize_t size
    cdef public object running
    cdef object dispatcher  # a Dispatcher
    cdef Intake intake
    cdef object path
    cdef uint64_t stream_id
    cdef uint64_t frame_id
    cdef bytes actions
    cdef Py_ssize_t room
    cdef int64_t began


cdef class Deferred:
    cdef readonly uint64_t stream_id
    cdef readonly uint64_t frame_id
    cdef public bytes actions
    cdef readonly list calls
    cdef readonly Py_ssize_t room
    cdef readonly Py_ssize_t size


@cython.final
cdef class Dispatcher:
    cdef readonly dict routes
    cdef readonly object cells
    cdef readonly dict unknown
    cdef object without_route
    cdef readonly Py_ssize_t max_answer_size
    cdef readonly Py_ssize_t tasks
    cdef readonly list left
    cdef readonly list settled
    cdef public object start
    cdef public object ended
    cdef public object path
    cdef public object slow
    cdef public int64_t slow_after
    cdef object failed
    cdef object new_deferred
    cdef Route no_route
    cdef Py_buffer *row_view
    cdef int64_t *row
    cdef int64_t clock
    cdef int64_t max_pass
    cdef int64_t until  # When the pass ends; 0: it has not begun.
    cdef Py_ssize_t max_messages
    cdef Py_ssize_t max_arguments
    cdef Py_ssize_t max_tasks
    cdef dict by_raw_name
    cdef Route last
    cdef Field *fields
    cdef Py_ssize_t fields_size
    cdef Span *spans
    cdef Py_ssize_t spans_size
    cdef Py_ssize_t span_count
    cdef Py_ssize_t read_size  # Bytes of the messages that the spans are of.
    cdef bint busy
    cdef Bytes spare  # The memory of the last payload in fragments, for the next.
    cdef PyObject *running_route
    cdef PyObject *running_connection
    cdef Header *running_header

    cdef int take(
        self, Intake intake, const unsigned char *data, Py_ssize_t size, list frames, Writer *w
    ) except -1
    cdef int take_behind(
        self, Intake intake, const unsigned char *data, Py_ssize_t size, list frames, Writer *w
    ) except -1
    cdef int answer_and_keep(
        self, Intake intake, const unsigned char *data, Py_ssize_t size, list frames, Writer *w
    ) except -1
    cdef Py_ssize_t answer(
        self, Intake intake, const unsigned char *data, Py_ssize_t end, list frames, Writer *w
    ) except -1
    cdef bint pass_is_over(self, Py_ssize_t offset, Py_ssize_t *looked) noexcept
    cdef int leave(self, Reader *r, Header *header, Py_ssize_t length, list frames) except -1
    cdef bint put_together(self, Intake intake, Reader *r, Header *header, Writer *w) except -1
    cdef void keep_spare(self, Intake intake) noexcept
    cdef void shrink(self) noexcept
    cdef int read_spans(self, Reader *r) except -1
    cdef int grow_spans(self) except -1
    cdef int grow_fields(self, Py_ssize_t needed) except -1
    cdef PyObject *route_of(self, Span *span) except? NULL
    cdef PyObject *find_route(self, Span *span) except? NULL
    cdef int notify(self, Intake intake, Header *header, list frames, Writer *w) except -1
    cdef object run(
        self, Route route, Span *span, Header *header, Intake intake, Py_ssize_t most, Writer *w)
    cdef bytes find_kept(self, Route route, Span *span)
    cpdef bytes fitting(self, Route route, bytes answer, Py_ssize_t room)
    cdef object begin(
        self, Route route, coroutine, PyObject **values, Header *header, object connection)
    cdef int keep(
        self, Call call, bytes actions, Header *header, Intake intake, Py_ssize_t room) except -1
    cpdef count_task(self, int change)
    cpdef settle(self, Call call, returned, error)
    cdef int send_later(self, Intake intake, Writer *w, path) except -1
    cdef int write_result(
        self, Call call, returned, error, int64_t began, Py_ssize_t most, Writer *w) except -1
    cdef int observe(self, Route route) except -1
    cdef Py_ssize_t size_of_notify(self) noexcept
    cdef object defer(
        self, waiting, Py_ssize_t first, Header *header, Intake intake, bytes actions,
        Py_ssize_t room)
    cdef list calls(self, waiting, Py_ssize_t first, Header *header, object connection)
    cdef object as_notify(self, Header *header, object connection)
    cdef list bound(self, Route route, Span *span, Header *header, object connection)
    cpdef fail(self, Route route, error)
    cdef int count_call(self, Route route, int64_t taken) except -1
    cdef int count_unknown(self, Span *span) except -1
