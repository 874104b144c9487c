"""From the bytes of NOTIFY frames to the bytes of their ACKs, compiled.

The same as `_dispatch_py`, its twin. A NOTIFY is first read whole into `Field`s, so that a
malformed one calls no handler; then arguments go straight into the vector of a call.
"""

from cython cimport critical_section

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.math cimport ceil
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from spop._codec cimport (
    Field, Header, Reader, Writer, argument_value, begin_frame, decode_frame, field_value,
    finish_frame, frame_length, name_text, new_message, read_field, read_header, read_span,
    release, text, write_actions,
)

from spop._headers cimport received

from spop._dispatch_py import HEADERS as PY_HEADERS
from spop._dispatch_py import MISSING, Call, Deferred, Running
from spop._dispatch_py import MOST_HELD as PY_MOST_HELD
from spop.constants import MAX_ANSWER_SIZE, MAX_ARGUMENTS, MAX_MESSAGES, DataType
from spop.counters import Cell, RouteCell, new_row, row_size
from spop.counters import BUCKETS as PY_BUCKETS, BUCKET_SHIFT as PY_BUCKET_SHIFT
from spop.errors import (
    FragmentationError, FrameTooBigError, HandlerError, InterlacedFramesError, InvalidFrameError,
    ProtocolError,
)
from spop.frames import Ack, Notify

cdef extern from "Python.h":
    object PyObject_Vectorcall(object, PyObject **args, size_t nargs, PyObject *names)
    void Py_INCREF(PyObject *)
    void Py_XDECREF(PyObject *)

cdef extern from "sys/socket.h" nogil:
    Py_ssize_t recv(int, void *, size_t, int)
    Py_ssize_t send(int, const void *, size_t, int)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef extern from *:
    """
    #include <errno.h>
    #ifdef __linux__
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #else  /* Whoever has no epoll asks for no Poller. */
    enum {
        EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLLIN = 1, EPOLLOUT = 4,
        EPOLLET, EFD_CLOEXEC, EFD_NONBLOCK
    };
    struct epoll_event { uint32_t events; union { int fd; } data; };
    static int epoll_create1(int flags) { errno = ENOSYS; return -1; }
    static int epoll_ctl(int e, int how, int fd, struct epoll_event *event) { return -1; }
    static int epoll_wait(int e, struct epoll_event *events, int size, int timeout) { return -1; }
    static int eventfd(unsigned int value, int flags) { errno = ENOSYS; return -1; }
    static int eventfd_write(int fd, uint64_t value) { return -1; }
    #endif
    """
    union epoll_data:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data data
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    uint32_t EPOLLET
    int EFD_CLOEXEC
    int EFD_NONBLOCK
    int eventfd(unsigned int, int)
    int eventfd_write(int, uint64_t)
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int) nogil

cdef extern from "unistd.h":
    int close_fd "close"(int)

cdef extern from "errno.h" nogil:
    int errno
    int EAGAIN
    int EINTR
    int EWOULDBLOCK

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)
    int CLOCK_MONOTONIC

cdef extern from *:
    """
    static inline int bit_length(uint64_t number) {
        return number ? 64 - __builtin_clzll(number) : 0;
    }
    """
    int bit_length(uint64_t number) nogil

cdef object _missing = MISSING

cdef enum:
    FIN = 1
    ABORT = 2
    UNSET_FRAME = 0
    NOTIFY_FRAME = 3
    ACK_FRAME = 103
    T_INT32 = 2
    T_UINT64 = 5
    T_STRING = 8
    T_BINARY = 9
    READ = 1
    WRITE = 2
    EVENTS = 128
    LONGEST_WAIT = 86400
    MOST_HELD = 32768
    MOST_SPARE = 262144
    LEARNED_NAMES = 1024
    NOTIFIES = 0
    ACKS = 1
    UNKNOWN_MESSAGES = 2
    BYTES_RECEIVED = 3
    BYTES_SENT = 4
    PAYLOADS_TOO_BIG = 13
    TOO_MANY_MESSAGES = 16
    CALLS = 0
    ERRORS = 1
    NANOSECONDS = 3
    FIRST_BUCKET = 4
    BUCKETS = 28
    BUCKET_SHIFT = 10
    KIND_ARGUMENT = 0
    KIND_MESSAGE = 1
    KIND_ACK = 2
    HEADERS = 65536


C_CELLS = [
    (Cell.NOTIFIES, NOTIFIES), (Cell.ACKS, ACKS), (Cell.UNKNOWN_MESSAGES, UNKNOWN_MESSAGES),
    (Cell.BYTES_RECEIVED, BYTES_RECEIVED), (Cell.BYTES_SENT, BYTES_SENT),
    (Cell.TOO_MANY_MESSAGES, TOO_MANY_MESSAGES), (RouteCell.CALLS, CALLS),
    (RouteCell.ERRORS, ERRORS), (RouteCell.NANOSECONDS, NANOSECONDS),
    (RouteCell.BUCKETS, FIRST_BUCKET), (PY_BUCKETS, BUCKETS), (PY_BUCKET_SHIFT, BUCKET_SHIFT),
    (Cell.PAYLOADS_TOO_BIG, PAYLOADS_TOO_BIG), (PY_MOST_HELD, MOST_HELD),
    (PY_HEADERS, HEADERS),
]


cdef int64_t now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


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


cdef class Route:
    """A handler, ready to be called."""

    cdef readonly str name
    cdef readonly object function
    cdef readonly tuple parameters
    cdef readonly tuple keywords
    cdef readonly bint deferred
    cdef readonly dict on_error
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

    def __cinit__(
        self, str name, function, parameters=(), bint deferred=False, on_error=None,
    ):
        cdef int slot
        self.name = name
        self.raw_name = name.encode("utf-8", "surrogateescape")
        self.function = function
        self.parameters = tuple(sorted(parameters, key=_keyword_only))
        self.keywords = tuple([p.name for p in self.parameters if p.keyword_only])
        self.deferred = deferred
        self.on_error = dict(on_error or {})
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

    def call(self, list values):
        """Call the handler with bound values and return what it returns."""
        if not self.keywords:
            return self.function(*values)
        return self.function(
            *values[:self.positional],
            **dict(zip(self.keywords, values[self.positional:], strict=True)))

    def __repr__(self):
        return f"<Route {self.name}>"

    cdef inline int slot_of(self, int position, Field *field) except -2:
        """The slot that an argument goes into, or -1. Names come in the order of last time."""
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
            if len(self.slots) < LEARNED_NAMES:
                self.slots[name] = found
        slot = found
        if position > self.seen_count:
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
        """The argument's value as its parameter has it, or MISSING."""
        cdef long accepts = self.accepts[slot]
        cdef int type = field.type
        if accepts >> type & 1:
            return argument_value(field)
        if T_INT32 <= type <= T_UINT64 and accepts & 0x3C:
            return field_value(field)
        if type == T_STRING and accepts >> T_BINARY & 1:
            return PyBytes_FromStringAndSize(
                <const char *>field.data, <Py_ssize_t>field.number)
        if (type == T_STRING or type == T_BINARY) and accepts & HEADERS:
            return self.headers(slot, field)
        if type == 0:
            return _missing
        named = "an integer" if T_INT32 <= type <= T_UINT64 else DataType(type).name
        raise HandlerError(
            f"message {self.name}: argument {self.parameters[slot].name} may not be {named}")

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
        """Fill `values`, owned references, with what the parameters are to be given."""
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
        """What a parameter is given that no argument was for."""
        if self.kinds[slot] == KIND_MESSAGE:
            return message_of(fields, span, header, connection)
        if self.kinds[slot] == KIND_ACK:
            return Ack(header.stream_id, header.frame_id)
        parameter = self.parameters[slot]
        if parameter.default is _missing:
            raise HandlerError(f"message {self.name}: no argument {parameter.name}")
        return parameter.default


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


cdef enum Step:
    WAITING = 0
    WHOLE = 1
    TOO_BIG = 2


cdef class Fragments:
    """A payload that comes in fragments, on one connection, as the twin describes it."""

    cdef readonly Py_ssize_t max_size
    cdef readonly bint begun
    cdef bint ignored
    cdef uint64_t stream_id
    cdef uint64_t frame_id
    cdef unsigned char *data
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity

    def __cinit__(self, Py_ssize_t max_size):
        self.max_size = max_size

    def __dealloc__(self):
        PyMem_Free(self.data)

    @property
    def idle(self):
        return not self.begun and not self.ignored

    cdef Step take(self, Reader *r, Header *header) except? WAITING:
        """Add a fragment; say what there is to do with the payload."""
        cdef bint known = (self.begun or self.ignored) and (
            header.stream_id == self.stream_id and header.frame_id == self.frame_id)
        if header.type == NOTIFY_FRAME:
            if self.begun:
                raise InterlacedFramesError
            self.begin(header)
        elif not known:
            raise InterlacedFramesError(
                f"fragment of {(header.stream_id, header.frame_id)} "
                "where none or another was begun")
        elif self.ignored or header.flags & ABORT:
            if header.flags & FIN:
                self.end()
            return WAITING
        self.add(r.base + r.offset, r.end - r.offset)
        if self.size > self.max_size:
            self.end()
            self.ignored = not header.flags & FIN
            return TOO_BIG
        return WHOLE if header.flags & FIN else WAITING

    cdef int begin(self, Header *header) except -1:
        self.begun, self.ignored = True, False
        self.stream_id = header.stream_id
        self.frame_id = header.frame_id
        return 0

    cdef int add(self, const unsigned char *data, Py_ssize_t size) except -1:
        if self.size + size > self.capacity:
            self.grow(2 * (self.size + size))
        memcpy(self.data + self.size, data, size)
        self.size += size
        return 0

    cdef int grow(self, Py_ssize_t capacity) except -1:
        cdef void *data = PyMem_Realloc(self.data, capacity)
        if data is NULL:
            raise MemoryError
        self.data = <unsigned char *>data
        self.capacity = capacity
        return 0

    cdef void end(self) noexcept:
        """Be ready for another payload, with no memory for it."""
        self.begun = self.ignored = False
        self.size = self.capacity = 0
        PyMem_Free(self.data)
        self.data = NULL


cdef class Dispatcher:
    """All routes of an agent, for use by one thread."""

    cdef readonly dict routes
    cdef readonly object cells
    cdef readonly object buffer
    cdef unsigned char[::1] room_for_bytes
    cdef readonly dict unknown
    cdef object failed
    cdef int64_t[::1] row
    cdef int64_t clock
    cdef readonly Py_ssize_t max_answer_size
    cdef Py_ssize_t max_messages
    cdef Py_ssize_t max_arguments
    cdef dict by_raw_name
    cdef Route last
    cdef Field *fields
    cdef Py_ssize_t fields_size
    cdef Span *spans
    cdef Py_ssize_t spans_size
    cdef Py_ssize_t span_count
    cdef bint any_deferred
    cdef bint busy
    cdef unsigned char *spare  # The memory of the last payload in fragments, for the next.
    cdef Py_ssize_t spare_size
    cdef PyObject *running_route
    cdef PyObject *running_connection
    cdef Header *running_header

    def __cinit__(
        self, routes=None, failed=None, *, cells=None,
        Py_ssize_t max_answer_size=MAX_ANSWER_SIZE, Py_ssize_t max_messages=MAX_MESSAGES,
        Py_ssize_t max_arguments=MAX_ARGUMENTS, buffer=None,
    ):
        self.buffer = buffer
        if buffer is not None:
            self.room_for_bytes = buffer
        self.routes = None if routes is None else {route.name: route for route in routes}
        self.by_raw_name = {}
        if self.routes is not None:
            self.by_raw_name = {(<Route>r).raw_name: r for r in self.routes.values()}
        self.cells = new_row(len(self.by_raw_name)) if cells is None else cells
        self.row = self.cells
        if self.row.shape[0] < row_size(len(self.by_raw_name)):
            raise ValueError("too few cells")
        for index, route in enumerate(self.by_raw_name.values()):
            (<Route>route).base = row_size(index)
        self.failed = failed
        self.max_answer_size = max_answer_size
        self.max_messages = max_messages
        self.max_arguments = max_arguments
        self.unknown = {}

    @property
    def running(self):
        """The message whose handler is being called, else None."""
        if self.running_route is NULL:
            return None
        return Running(
            (<Route>self.running_route).name, self.running_header.stream_id,
            self.running_header.frame_id, <object>self.running_connection)

    def __dealloc__(self):
        PyMem_Free(self.fields)
        PyMem_Free(self.spans)
        PyMem_Free(self.spare)

    def answer_frames(
        self, buffer, Py_ssize_t start, Py_ssize_t end, Py_ssize_t max_frame_size,
        Py_ssize_t max_ack_size, bint little_endian, Py_ssize_t room, connection,
        Fragments fragments=None,
    ):
        """Answer the NOTIFY frames at the front of a buffer, as the twin describes it."""
        cdef Py_buffer view
        cdef unsigned char stack[4096]
        cdef Writer w
        cdef list left = []
        if self.busy:
            raise RuntimeError("a dispatcher can't be used inside of a handler it called")
        w.data = stack
        w.length = 0
        w.capacity = sizeof(stack)
        w.heap = False
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        self.busy = True
        self.clock = now()
        try:
            if not 0 <= start <= end <= view.len:
                raise ValueError(f"{start} to {end} is outside a buffer of {view.len} bytes")
            start += self.answer(
                <const unsigned char *>view.buf + start, end - start, max_frame_size,
                max_ack_size, little_endian, room, connection, fragments, left, &w)
            return left, start, PyBytes_FromStringAndSize(<const char *>w.data, w.length)
        finally:
            self.busy = False
            PyBuffer_Release(&view)
            release(&w)

    cdef Py_ssize_t answer(
        self, const unsigned char *base, Py_ssize_t end, Py_ssize_t max_frame_size,
        Py_ssize_t max_ack_size, bint little_endian, Py_ssize_t room, object connection,
        Fragments fragments, list left, Writer *w,
    ) except -1:
        cdef Reader r
        cdef Header header
        cdef Py_ssize_t offset = 0, length
        r.base = base
        try:
            while len(left) < room and w.length < self.max_answer_size:
                length = frame_length(base, offset, end, max_frame_size)
                if length < 0:
                    break
                r.offset = offset + 4
                r.end = r.offset + length
                read_header(&r, &header, little_endian)
                if header.type == NOTIFY_FRAME and header.flags & FIN:
                    if fragments is not None and fragments.begun:
                        raise InterlacedFramesError
                    self.read_spans(&r)
                elif header.type == NOTIFY_FRAME or header.type == UNSET_FRAME:
                    if not self.put_together(&r, &header, fragments, w, little_endian):
                        offset += 4 + length
                        continue
                else:
                    left.append(decode_frame(&r, &header))
                    offset += 4 + length
                    break
                offset += 4 + length
                self.notify(&header, connection, left, w, max_ack_size, little_endian)
                if fragments is not None and fragments.begun:
                    self.take_memory(fragments)
                    fragments.end()
        except ProtocolError:
            if offset == 0:
                raise
        return offset

    cdef Py_ssize_t answer_received(
        self, Port port, Py_ssize_t size, list left, Writer *w,
    ) except -1:
        """Answer what a port received into the buffer."""
        self.busy = True
        self.clock = now()
        try:
            return self.answer(
                &self.room_for_bytes[0], size, port.max_frame_size, port.max_frame_size,
                port.little_endian, port.room, port.peer, port.fragments, left, w)
        finally:
            self.busy = False

    cdef bint put_together(
        self, Reader *r, Header *header, Fragments fragments, Writer *w, bint little_endian,
    ) except -1:
        """Take a fragment. True: it was the last, and the messages of the whole are read."""
        cdef Reader payload
        cdef Py_ssize_t before, start
        cdef Step step
        if fragments is None:
            raise FragmentationError
        if header.type == NOTIFY_FRAME and fragments.data is NULL:
            self.lend_memory(fragments)
        before = fragments.size
        step = fragments.take(r, header)
        if step == TOO_BIG:
            self.row[PAYLOADS_TOO_BIG] += 1
            start = begin_frame(
                w, ACK_FRAME, FIN | ABORT, header.stream_id, header.frame_id, little_endian)
            finish_frame(w, start)
        if step != WHOLE:
            return False
        payload.base = fragments.data
        payload.offset = 0
        payload.end = fragments.size
        try:
            self.read_spans(&payload)
        except ProtocolError:
            fragments.size = before  # It is taken once more, when it is the first frame.
            raise
        return True

    cdef void lend_memory(self, Fragments fragments) noexcept:
        fragments.data, fragments.capacity = self.spare, self.spare_size
        self.spare, self.spare_size = NULL, 0

    cdef void take_memory(self, Fragments fragments) noexcept:
        if self.spare is NULL and fragments.capacity <= MOST_SPARE:
            self.spare, self.spare_size = fragments.data, fragments.capacity
            fragments.data = NULL

    cdef int read_spans(self, Reader *r) except -1:
        """Read the messages of a NOTIFY."""
        cdef Py_ssize_t used = 0
        cdef Span *span
        cdef int i
        self.span_count = 0
        self.any_deferred = self.routes is None
        while r.offset < r.end:
            if self.span_count == self.spans_size:
                self.grow_spans()
            span = &self.spans[self.span_count]
            read_span(r, &span.name, &span.name_length)
            if r.offset >= r.end:
                raise InvalidFrameError(
                    f"message without its argument count at byte {r.offset}")
            span.count = r.base[r.offset]
            span.first = used
            r.offset += 1
            if used + span.count > self.fields_size:
                self.grow_fields(used + span.count)
            for i in range(span.count):
                read_field(r, &self.fields[used + i])
            used += span.count
            self.span_count += 1
            span.route = self.route_of(span)
            self.any_deferred |= span.route is not NULL and (<Route>span.route).deferred
        if self.span_count > self.max_messages:
            self.too_many(f"{self.span_count} messages", self.max_messages)
        if used > self.max_arguments:
            self.too_many(f"{used} arguments", self.max_arguments)
        return 0

    cdef int too_many(self, str what, Py_ssize_t limit) except -1:
        self.row[TOO_MANY_MESSAGES] += 1
        raise FrameTooBigError(f"NOTIFY of {what}, {limit} at most")

    cdef int grow_spans(self) except -1:
        cdef Py_ssize_t size = max(8, 2 * self.spans_size)
        cdef void *spans = PyMem_Realloc(self.spans, size * sizeof(Span))
        if spans is NULL:
            raise MemoryError
        self.spans = <Span *>spans
        self.spans_size = size
        return 0

    cdef int grow_fields(self, Py_ssize_t needed) except -1:
        cdef Py_ssize_t size = 2 * needed
        cdef void *fields = PyMem_Realloc(self.fields, size * sizeof(Field))
        if fields is NULL:
            raise MemoryError
        self.fields = <Field *>fields
        self.fields_size = size
        return 0

    cdef inline PyObject *route_of(self, Span *span) except? NULL:
        cdef bytes name
        if self.last is not None:
            name = self.last.raw_name
            if PyBytes_GET_SIZE(name) == span.name_length and memcmp(
                    PyBytes_AS_STRING(name), span.name, span.name_length) == 0:
                return <PyObject *>self.last
        return self.find_route(span)

    cdef PyObject *find_route(self, Span *span) except? NULL:
        name = PyBytes_FromStringAndSize(<const char *>span.name, span.name_length)
        found = self.by_raw_name.get(name)
        if found is None:
            return NULL
        self.last = found
        return <PyObject *>self.last

    cdef int notify(
        self, Header *header, object connection, list left, Writer *w,
        Py_ssize_t max_ack_size, bint little_endian,
    ) except -1:
        cdef Py_ssize_t i, start, payload
        cdef Span *span
        self.row[NOTIFIES] += 1
        if self.any_deferred:
            left.append(self.deferred(header, connection))
            return 0
        start = begin_frame(
            w, ACK_FRAME, FIN, header.stream_id, header.frame_id, little_endian)
        payload = w.length
        for i in range(self.span_count):
            span = &self.spans[i]
            if span.route is NULL:
                self.count_unknown(span)
            else:
                self.run(<Route>span.route, span, header, connection, w)
        if w.length - start - 4 > max_ack_size:
            self.too_big(w.length - start - 4, max_ack_size)
            w.length = payload
        finish_frame(w, start)
        self.row[ACKS] += 1
        return 0

    cdef int run(
        self, Route route, Span *span, Header *header, object connection, Writer *w,
    ) except -1:
        """Call a handler and write what it returns."""
        cdef PyObject *stack[16]
        cdef PyObject **values = stack
        cdef Py_ssize_t start = w.length
        cdef int i
        if route.size > 16:
            values = <PyObject **>PyMem_Malloc(route.size * sizeof(PyObject *))
            if values is NULL:
                raise MemoryError
        memset(values, 0, route.size * sizeof(PyObject *))
        try:
            route.bind(values, self.fields, span, header, connection)
            self.running_header = header
            self.running_connection = <PyObject *>connection
            self.running_route = <PyObject *>route
            result = PyObject_Vectorcall(
                route.function, values, route.positional,
                <PyObject *>route.keywords if route.keywords else NULL)
            if route.takes_ack:
                for i in range(route.size):
                    if route.kinds[i] == KIND_ACK:
                        write_actions(w, (<object>values[i]).actions)
            if result is not None:
                write_actions(w, result)
        except (Exception, SystemExit) as error:
            w.length = start
            self.fail(route, error)
            write_actions(w, route.on_error)
        finally:
            self.running_route = NULL
            for i in range(route.size):
                Py_XDECREF(values[i])
            if values is not stack:
                PyMem_Free(values)
        self.observe(route.base)
        return 0

    cdef int observe(self, Py_ssize_t base) except -1:
        """Count a run, from the end of the one before it, and how long it took."""
        cdef int64_t end = now()
        cdef int64_t taken = end - self.clock
        cdef int bucket = min(bit_length(<uint64_t>taken >> BUCKET_SHIFT), BUCKETS - 1)
        self.clock = end
        self.row[base + CALLS] += 1
        self.row[base + NANOSECONDS] += taken
        self.row[base + FIRST_BUCKET + bucket] += 1
        return 0

    cdef object deferred(self, Header *header, object connection):
        """What the caller has to run: the calls of a NOTIFY, or all of it as `Notify`."""
        cdef Py_ssize_t i
        cdef Route route
        cdef list calls = []
        if self.routes is None:
            return self.as_notify(header, connection)
        for i in range(self.span_count):
            if self.spans[i].route is NULL:
                self.count_unknown(&self.spans[i])
                continue
            route = <Route>self.spans[i].route
            try:
                calls.append(Call(route, self.bound(route, &self.spans[i], header, connection)))
            except HandlerError as error:
                self.fail(route, error)
                calls.append(Call(_constant(route), []))
        return Deferred(header.stream_id, header.frame_id, calls)

    cdef object as_notify(self, Header *header, object connection):
        cdef Py_ssize_t i
        return Notify(header.stream_id, header.frame_id, [
            message_of(self.fields, &self.spans[i], header, connection)
            for i in range(self.span_count)])

    cdef list bound(self, Route route, Span *span, Header *header, object connection):
        cdef PyObject *values[256]
        cdef int i
        if route.size > 256:
            raise HandlerError(f"message {route.name}: more than 256 parameters")
        memset(values, 0, route.size * sizeof(PyObject *))
        try:
            route.bind(values, self.fields, span, header, connection)
            return [<object>values[i] for i in range(route.size)]
        finally:
            for i in range(route.size):
                Py_XDECREF(values[i])

    cpdef fail(self, Route route, error):
        """Count a failure of a route and tell of it."""
        self.row[route.base + ERRORS] += 1
        if self.failed is not None:
            self.failed(route.name, error)

    cdef int too_big(self, Py_ssize_t size, Py_ssize_t limit) except -1:
        if self.failed is not None:
            name = text(self.spans[0].name, self.spans[0].name_length)
            self.failed(name, FrameTooBigError(f"ACK of {size} bytes, {limit} at most"))
        return 0

    cdef int count_unknown(self, Span *span) except -1:
        self.row[UNKNOWN_MESSAGES] += 1
        name = text(span.name, span.name_length)
        if name in self.unknown or len(self.unknown) < 100:
            self.unknown[name] = self.unknown.get(name, 0) + 1
        return 0


def _constant(Route route):
    """A route that answers what `route` answers when it fails."""
    return Route(route.name, lambda: route.on_error)


cdef class Port:
    """A socket whose NOTIFY frames are answered as they come, as the twin describes it."""

    cdef readonly int fd
    cdef readonly object connection
    cdef public bint open
    cdef public bint active
    cdef bint little_endian
    cdef Dispatcher dispatcher
    cdef Fragments fragments
    cdef object ready
    cdef object taken
    cdef object peer
    cdef Py_ssize_t max_frame_size
    cdef Py_ssize_t room
    cdef char *held
    cdef Py_ssize_t held_size

    def __init__(self, Dispatcher dispatcher, int fd, connection, ready, taken):
        self.dispatcher = dispatcher
        self.fd = fd
        self.connection = connection
        self.ready = ready
        self.taken = taken

    def __dealloc__(self):
        PyMem_Free(self.held)

    def agree(
        self, Py_ssize_t max_frame_size, bint little_endian, Py_ssize_t room, peer,
        Fragments fragments,
    ):
        """What HELLO agreed on."""
        self.max_frame_size = max_frame_size
        self.little_endian = little_endian
        self.room = room
        self.peer = peer
        self.fragments = fragments

    def close(self):
        """Leave the socket to `ready`. Returns the partial frame, for who reads it now."""
        self.open = False
        held = PyBytes_FromStringAndSize(self.held, self.held_size)
        self.hold(NULL, 0)
        return held

    def __call__(self, int events):
        """The socket is ready for something."""
        if self.open and events == READ:
            self.exchange()
        else:
            self.ready(self.connection, events)

    cdef int exchange(self) except -1:
        """One recv, one pass, one send."""
        cdef Dispatcher d = self.dispatcher
        cdef unsigned char *buffer = &d.room_for_bytes[0]
        cdef Py_ssize_t size = self.receive(buffer), consumed = 0, sent = 0
        cdef bint partial
        cdef unsigned char stack[4096]
        cdef Writer w
        cdef list left = []
        if size < 0:
            return 0
        w.data = stack
        w.length = 0
        w.capacity = sizeof(stack)
        w.heap = False
        try:
            consumed = d.answer_received(self, size, left, &w)
            partial = size - consumed <= MOST_HELD and w.length < d.max_answer_size
            if (consumed == size or partial) and not left:
                sent = self.send(w.data, w.length)
                if sent == w.length:
                    self.hold(buffer + consumed, size - consumed)
                    return 0
            acks = PyBytes_FromStringAndSize(<const char *>w.data + sent, w.length - sent)
            error = None
        except ProtocolError as failure:
            acks, error = b"", failure
        finally:
            release(&w)
        self.taken(self.connection, size, left, consumed, acks, error)
        return 0

    cdef Py_ssize_t receive(self, unsigned char *buffer) except? -1:
        """What is in the buffer now, behind the partial frame; -1: there is nothing to do."""
        cdef Py_ssize_t held = self.held_size, room = self.dispatcher.room_for_bytes.shape[0]
        cdef Py_ssize_t received
        with nogil:
            received = recv(self.fd, buffer + held, room - held, MSG_DONTWAIT)
        if received > 0:
            self.dispatcher.row[BYTES_RECEIVED] += received
            if held:
                memcpy(buffer, self.held, held)
                self.hold(NULL, 0)
            return held + received
        if received == 0:
            self.taken(self.connection, 0, [], 0, b"", None)
        elif errno != EAGAIN and errno != EWOULDBLOCK and errno != EINTR:
            self.taken(self.connection, 0, [], 0, b"", _os_error())
        return -1

    cdef int hold(self, const unsigned char *data, Py_ssize_t size) except -1:
        """Keep a partial frame, where there is one, instead of what was kept."""
        if size == self.held_size == 0:
            return 0
        PyMem_Free(self.held)
        self.held = NULL
        self.held_size = 0
        if size:
            self.held = <char *>PyMem_Malloc(size)
            if self.held is NULL:
                raise MemoryError
            memcpy(self.held, data, size)
            self.held_size = size
        return 0

    cdef Py_ssize_t send(self, const unsigned char *data, Py_ssize_t size) except -1:
        """How much of it could be sent. Whoever sends the rest finds out why not all."""
        cdef Py_ssize_t sent
        if size == 0:
            return 0
        with nogil:
            sent = send(self.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            return 0
        self.dispatcher.row[BYTES_SENT] += sent
        self.active = True
        return sent


cdef class Poller:
    """Waits for sockets with epoll, as `spop.poller.EpollPoller` does, and has ports
    exchange with nothing of Python in between."""

    cdef int epoll
    cdef int wakeups
    cdef list ready  # by file descriptor

    def __cinit__(self):
        self.ready = []
        self.wakeups = -1
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            PyErr_SetFromErrno(OSError)
        self.wakeups = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.wakeups < 0:
            PyErr_SetFromErrno(OSError)
        # It is never read: each write is an edge.
        self.control(EPOLL_CTL_ADD, self.wakeups, EPOLLIN | EPOLLET)

    def __dealloc__(self):
        self.close()

    def register(self, int fd, int events, ready):
        self.control(EPOLL_CTL_ADD, fd, epoll_events(events))
        while len(self.ready) <= fd:
            self.ready.append(None)
        self.ready[fd] = ready

    def modify(self, int fd, int events):
        self.control(EPOLL_CTL_MOD, fd, epoll_events(events))

    def unregister(self, int fd):
        if not 0 <= fd < len(self.ready) or self.ready[fd] is None:
            raise KeyError(fd)
        self.ready[fd] = None
        self.control(EPOLL_CTL_DEL, fd, 0)

    def run(self, timeout):
        cdef epoll_event events[EVENTS]
        cdef int i
        for i in range(self.wait(events, timeout)):
            ready = self.ready_at(&events[i])
            if type(ready) is Port and events[i].events == EPOLLIN and (<Port>ready).open:
                (<Port>ready).exchange()
            elif ready is not None:
                ready(read_and_write(&events[i]))

    def poll(self, timeout):
        cdef epoll_event events[EVENTS]
        cdef int i
        cdef list found = []
        for i in range(self.wait(events, timeout)):
            ready = self.ready_at(&events[i])
            if ready is not None:
                found.append((ready, read_and_write(&events[i])))
        return found

    def wake(self):
        with critical_section(self):
            eventfd_write(self.wakeups, 1)  # It fails where all is closed.

    def close(self):
        with critical_section(self):
            if self.epoll >= 0:
                close_fd(self.epoll)
            if self.wakeups >= 0:
                close_fd(self.wakeups)
            self.epoll = self.wakeups = -1

    cdef object ready_at(self, epoll_event *event):
        """Whom to tell of an event; None where it was to wake up or is unregistered since."""
        if event.data.fd < len(self.ready):
            return self.ready[event.data.fd]
        return None

    cdef int control(self, int how, int fd, uint32_t events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.fd = fd
        if epoll_ctl(self.epoll, how, fd, &event) < 0:
            PyErr_SetFromErrno(OSError)
        return 0

    cdef int wait(self, epoll_event *events, timeout) except -1:
        """How many events there are now; none as well when a signal came."""
        cdef int milliseconds = -1
        cdef int count
        if self.epoll < 0:
            raise ValueError("the poller is closed")
        if timeout is not None:
            milliseconds = <int>ceil(min(timeout, LONGEST_WAIT) * 1000)
        if milliseconds == 0:
            count = epoll_wait(self.epoll, events, EVENTS, 0)
        else:
            with nogil:
                count = epoll_wait(self.epoll, events, EVENTS, milliseconds)
        if count >= 0:
            return count
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()
        return 0


cdef inline uint32_t epoll_events(int events) noexcept:
    return (EPOLLIN if events & READ else 0) | (EPOLLOUT if events & WRITE else 0)


cdef inline int read_and_write(epoll_event *event) noexcept:
    """Hang-ups and errors come without EPOLLOUT, and reading finds out what they are."""
    return READ | WRITE if event.events & EPOLLOUT else READ


cdef object _os_error():
    try:
        PyErr_SetFromErrno(OSError)
    except OSError as error:
        return error
