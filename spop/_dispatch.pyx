"""From the bytes of NOTIFY frames to the bytes of their ACKs, compiled.

The same as `_dispatch_py`, its twin. All of a NOTIFY is read into `Field`s first, so that a
malformed one calls no handler. Then arguments go straight into the vector of a call.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp

from spop._codec cimport (
    ABORT, ACK, AGENT_DISCONNECT, AGENT_HELLO, FIN, HAPROXY_DISCONNECT, HAPROXY_HELLO,
    LENGTH_SIZE, MAX_CONTROL_SIZE, NOTIFY, UNSET_FRAME, Field, Header, Reader, Writer, begin_frame,
    finish_frame, frame_length, read_field, read_frame, read_header, read_span, release, text,
    use_stack, write_answer, write_bytes,
)
from spop._route cimport (
    ASYNC, HEADERS, INLINE, KIND_ACK, LEFT, Route, Span, free_values, message_of, parameter_values,
    values_list,
)
from spop._objects cimport release_view, writable_view
from spop._intake cimport TOO_BIG, WHOLE, Bytes, Intake, Step, drop_bytes, free_bytes

from spop.constants import (
    BYTES_PER_LOOK as PY_BYTES_PER_LOOK, MAX_ANSWER_SIZE, MAX_ARGUMENTS, MAX_MESSAGES, MAX_TASKS,
    MAX_TEXT_SIZE, MOST_UNKNOWN, NO_LIMIT, VALUE_SIZE as PY_VALUE_SIZE,
)
from spop.counters import (
    BUCKETS as PY_BUCKETS, BUCKET_SHIFT as PY_BUCKET_SHIFT, Cell, RouteCell, new_row, row_size,
)
from spop.errors import (
    FrameTooBigError, InterlacedFramesError, InvalidFrameError, ProtocolError, TooManyMessagesError,
)
from spop.forks import FORKED, end_child
from spop.frames import Ack, Notify
from spop.parameters import (
    ASYNC as PY_ASYNC, HEADERS as PY_HEADERS, INLINE as PY_INLINE, LEFT as PY_LEFT, RUNNING,
    Running, check_answer,
)

cdef extern from "Python.h":
    object PyObject_Vectorcall(object, PyObject **args, size_t nargs, PyObject *names)
    object PyContextVar_Set(object variable, object value)
    int PyContextVar_Reset(object variable, object token) except -1

cdef extern from *:
    """
    static inline int bit_length(uint64_t number) {
        return number ? 64 - __builtin_clzll(number) : 0;
    }
    """
    int bit_length(uint64_t number) nogil

cdef object _running = RUNNING
cdef list _forked = FORKED

cdef enum:
    MOST_SPARE = 262144    # Bytes of a payload's memory that may be kept for the next payload.
    FIELDS_KEPT = 1024     # Fields and spans whose memory is kept for the next NOTIFY.
    BYTES_PER_LOOK = 2048
    VALUE_SIZE = 64        # Bytes that the object of an argument takes besides its own, roughly.


C_CELLS = [
    (Cell.NOTIFIES, NOTIFIES), (Cell.ACKS, ACKS), (Cell.UNKNOWN_MESSAGES, UNKNOWN_MESSAGES),
    (Cell.BYTES_RECEIVED, BYTES_RECEIVED), (Cell.BYTES_SENT, BYTES_SENT),
    (Cell.TOO_MANY_MESSAGES, TOO_MANY_MESSAGES), (RouteCell.CALLS, CALLS),
    (RouteCell.ERRORS, ERRORS), (RouteCell.NANOSECONDS, NANOSECONDS),
    (RouteCell.HITS, HITS), (RouteCell.MISSES, MISSES), (RouteCell.KEPT, KEPT),
    (RouteCell.BUCKETS, FIRST_BUCKET), (PY_BUCKETS, BUCKETS), (PY_BUCKET_SHIFT, BUCKET_SHIFT),
    (Cell.PAYLOADS_TOO_BIG, PAYLOADS_TOO_BIG), (Cell.ROUND_BEGAN, ROUND_BEGAN),
    (Cell.RUNNING, RUNNING_TASKS), (Cell.ACKS_DROPPED, ACKS_DROPPED), (PY_VALUE_SIZE, VALUE_SIZE),
    (PY_HEADERS, HEADERS), (PY_INLINE, INLINE), (PY_ASYNC, ASYNC), (PY_LEFT, LEFT),
    (PY_BYTES_PER_LOOK, BYTES_PER_LOOK),
]


cdef class Call:
    """One message that has to be waited for, as the twin describes it."""

    def __cinit__(self, Route route not None, list values, AsyncCall begun=None, bytes kept=None):
        self.route = route
        self.values = values
        self.begun = begun
        self.kept = kept
        self.wanted = True

    def __call__(self, AsyncCall begun not None):
        """Its task has ended, in a NOTIFY that the dispatcher answers."""
        cdef Dispatcher dispatcher = self.dispatcher
        begun.task = begun.finished = None  # Breaks reference cycles.
        dispatcher.count_task(-1)
        dispatcher.settle(self, begun.value, begun.error)

    def run(self):
        """Call the handler and return what it returns."""
        try:
            return self.route.call(self.values or [])
        finally:
            if len(_forked):
                end_child()


cdef class Deferred:
    """A NOTIFY whose handlers have not all ended, as the twin describes it."""

    def __cinit__(
        self, uint64_t stream_id, uint64_t frame_id, bytes actions, list calls, Py_ssize_t room
    ):
        self.stream_id = stream_id
        self.frame_id = frame_id
        self.actions = actions
        self.calls = calls
        self.room = room


cdef class Dispatcher:
    """All routes of an agent, for use by one thread, as the twin describes it."""

    def __cinit__(
        self, routes=None, failed=None, *, cells=None,
        Py_ssize_t max_answer_size=MAX_ANSWER_SIZE, Py_ssize_t max_messages=MAX_MESSAGES,
        Py_ssize_t max_arguments=MAX_ARGUMENTS, Py_ssize_t max_tasks=MAX_TASKS,
        deferred=Deferred, bytes on_unknown=b"", without_route=None, int64_t max_pass=NO_LIMIT,
    ):
        self.routes = None if routes is None else {route.name: route for route in routes}
        self.by_raw_name = {}
        if self.routes is not None:
            self.by_raw_name = {(<Route>r).raw_name: r for r in self.routes.values()}
        self.cells = new_row(len(self.by_raw_name)) if cells is None else cells
        self.row_view = writable_view(self.cells)
        self.row = <int64_t *>self.row_view.buf
        if self.row_view.len < <Py_ssize_t>sizeof(int64_t) * row_size(len(self.by_raw_name)):
            raise ValueError("too few cells")
        for index, route in enumerate(self.by_raw_name.values()):
            (<Route>route).base = row_size(index)
        self.failed = failed
        self.max_answer_size = max_answer_size
        self.max_messages = max_messages
        self.max_arguments = max_arguments
        self.max_tasks = max_tasks
        self.left = []
        self.settled = []
        self.max_pass = max_pass
        self.unknown = {}
        self.without_route = without_route
        self.new_deferred = deferred
        self.no_route = Route("", lambda: None, on_error=on_unknown)

    @property
    def running(self):
        """The message whose handler is being called, else None."""
        if self.running_route is NULL:
            return None
        return Running(
            (<Route>self.running_route).name, self.running_header.stream_id,
            self.running_header.frame_id, <object>self.running_connection)

    @property
    def takes_tasks(self):
        """A further asynchronous handler may begin."""
        return self.start is not None and self.tasks < self.max_tasks

    def __dealloc__(self):
        release_view(self.row_view)
        PyMem_Free(self.fields)
        PyMem_Free(self.spans)
        free_bytes(&self.spare)

    def new_pass(self):
        """What is received next begins a pass."""
        self.until = 0

    def receive(self, Intake intake not None, data, end=None):
        """Take in bytes and answer the NOTIFY frames there are, as the twin describes it."""
        cdef Py_buffer view
        cdef unsigned char stack[4096]
        cdef Writer w
        cdef list frames = []
        cdef Py_ssize_t size
        use_stack(&w, stack, sizeof(stack))
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            size = view.len if end is None else end
            if not 0 <= size <= view.len:
                raise ValueError(f"end is {size}, outside a buffer of {view.len} bytes")
            self.take(intake, <const unsigned char *>view.buf, size, frames, &w)
            return frames, PyBytes_FromStringAndSize(<const char *>w.data, w.length)
        finally:
            PyBuffer_Release(&view)
            release(&w)

    cdef int take(
        self, Intake intake, const unsigned char *data, Py_ssize_t size, list frames, Writer *w,
    ) except -1:
        if self.busy:
            raise RuntimeError("a dispatcher can't be used inside of a handler it called")
        self.busy = True
        self.clock = now()
        if self.until == 0:
            self.until = self.clock + self.max_pass
        try:
            if intake.received.end:
                return self.take_behind(intake, data, size, frames, w)
            return self.answer_and_keep(intake, data, size, frames, w)
        finally:
            self.busy = False

    cdef int take_behind(
        self, Intake intake, const unsigned char *data, Py_ssize_t size, list frames, Writer *w,
    ) except -1:
        """Take bytes behind unread ones. Only the first frame is copied there; the others are
        read in `data`."""
        cdef Bytes *received = &intake.received
        cdef Py_ssize_t used = 0
        if not intake.is_paused():
            used = intake.complete_frame(data, size)
        drop_bytes(received, self.answer(
            intake, received.data + received.start, received.end - received.start, frames, w))
        if received.end or frames:
            return intake.keep(received, data + used, size - used)
        return self.answer_and_keep(intake, data + used, size - used, frames, w)

    cdef inline int answer_and_keep(
        self, Intake intake, const unsigned char *data, Py_ssize_t size, list frames, Writer *w,
    ) except -1:
        cdef Py_ssize_t used = self.answer(intake, data, size, frames, w)
        if used < size:
            intake.keep(&intake.received, data + used, size - used)
        return 0

    cdef Py_ssize_t answer(
        self, Intake intake, const unsigned char *data, Py_ssize_t end, list frames, Writer *w,
    ) except -1:
        """Answer the frames at the front of `data`. Returns their number of bytes."""
        cdef Reader r
        cdef Header header
        cdef Py_ssize_t offset = 0, looked = 0, length
        cdef bint is_counted = False
        r.base = data
        try:
            while not intake.is_paused() and w.length < self.max_answer_size:
                if self.pass_is_over(offset, &looked) and offset < end:
                    intake.suspended = True
                    break
                if not intake.is_open:
                    intake.see_flags(data + offset + LENGTH_SIZE, end - offset - LENGTH_SIZE)
                length = frame_length(data, offset, end, intake.frame_limit())
                if length < 0:
                    break
                r.offset = offset + LENGTH_SIZE
                r.end = r.offset + length
                read_header(&r, &header, intake.little_endian, intake.whole)
                if not intake.is_open or header.type not in (NOTIFY, UNSET_FRAME):
                    self.leave(&r, &header, length, frames)
                    offset = r.end
                    break
                if header.type == NOTIFY and header.flags & FIN:
                    if intake.begun:
                        raise InterlacedFramesError
                    self.read_spans(&r)
                elif not self.put_together(intake, &r, &header, w):
                    offset = r.end
                    continue
                offset = r.end
                is_counted = True
                self.notify(intake, &header, frames, w)
                is_counted = False
                if intake.begun:
                    self.keep_spare(intake)
        except ProtocolError as error:
            # Otherwise the next call raises it, after these are sent.
            if not frames and not w.length:
                if isinstance(error, TooManyMessagesError):
                    self.row[TOO_MANY_MESSAGES] += 1
                raise
        except BaseException:  # Our own, or there is no memory: the connection ends.
            self.row[ACKS_DROPPED] += is_counted + len(frames)
            raise
        self.shrink()
        return offset

    cdef inline bint pass_is_over(self, Py_ssize_t offset, Py_ssize_t *looked) noexcept:
        """Others have their turn. The clock was read at `looked` last, or at a handler's end."""
        if offset - looked[0] >= BYTES_PER_LOOK:
            looked[0] = offset
            self.clock = now()
        return self.clock >= self.until

    cdef int leave(self, Reader *r, Header *header, Py_ssize_t length, list frames) except -1:
        """Add a frame to those that the caller has to process."""
        if header.type in (
            HAPROXY_HELLO, HAPROXY_DISCONNECT, AGENT_HELLO, AGENT_DISCONNECT
        ) and length > MAX_CONTROL_SIZE:
            raise FrameTooBigError(f"frame of {length} bytes, {MAX_CONTROL_SIZE} at most")
        frames.append(read_frame(r, header, False))
        return 0

    cdef bint put_together(
        self, Intake intake, Reader *r, Header *header, Writer *w,
    ) except -1:
        """Take a fragment (section 3.2). True: it was the last, and the messages are read."""
        cdef Reader payload
        cdef Py_ssize_t before, start
        cdef Step step
        if header.type == NOTIFY and intake.payload.data is NULL:
            intake.payload, self.spare = self.spare, intake.payload
        before = intake.payload.end
        step = intake.take_fragment(r, header)
        if step == TOO_BIG:
            self.row[PAYLOADS_TOO_BIG] += 1
            start = begin_frame(
                w, ACK, FIN | ABORT, header.stream_id, header.frame_id, intake.little_endian)
            finish_frame(w, start)
        if step != WHOLE:
            return False
        payload.base = intake.payload.data
        payload.offset = 0
        payload.end = intake.payload.end
        try:
            self.read_spans(&payload)
        except ProtocolError:
            intake.payload.end = before  # The next call reads it once more.
            raise
        return True

    cdef void keep_spare(self, Intake intake) noexcept:
        """Keep the memory of an answered payload for the next one, which need not grow it."""
        if self.spare.data is NULL and intake.payload.capacity <= MOST_SPARE:
            self.spare, intake.payload = intake.payload, self.spare
            self.spare.end = 0
        intake.end_payload()

    cdef inline void shrink(self) noexcept:
        """Free the memory of one unusually large NOTIFY."""
        if self.fields_size > FIELDS_KEPT or self.spans_size > FIELDS_KEPT:
            PyMem_Free(self.fields)
            PyMem_Free(self.spans)
            self.fields, self.spans = NULL, NULL
            self.fields_size = self.spans_size = 0

    cdef int read_spans(self, Reader *r) except -1:
        """Read the messages of a NOTIFY, up to the limits."""
        cdef Py_ssize_t used = 0
        cdef Span *span
        cdef int i
        self.span_count = 0
        self.read_size = r.end - r.offset
        while r.offset < r.end:
            if self.span_count == self.max_messages:
                raise TooManyMessagesError(f"NOTIFY of more than {self.max_messages} messages")
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
            if used > self.max_arguments:
                raise TooManyMessagesError(f"NOTIFY of more than {self.max_arguments} arguments")
            self.span_count += 1
            span.route = self.route_of(span)
        return 0

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

    cdef int notify(self, Intake intake, Header *header, list frames, Writer *w) except -1:
        cdef Py_ssize_t i, start, payload, most
        cdef bint is_timed = True
        cdef Span *span
        cdef bytes kept
        self.row[NOTIFIES] += 1
        if self.routes is None:
            intake.in_flight += 1
            frames.append(self.as_notify(header, intake.peer))
            return 0
        start = begin_frame(
            w, ACK, FIN, header.stream_id, header.frame_id, intake.little_endian)
        payload = w.length
        # HAProxy takes no fragments of an ACK (section 3.2.7).
        most = start + LENGTH_SIZE + intake.max_frame_size
        for i in range(self.span_count):
            span = &self.spans[i]
            if span.route is NULL:
                is_timed = False
                self.count_unknown(span)
                write_if_it_fits(w, self.no_route.on_error, most)
                continue
            if (<Route>span.route).answers is not None:
                kept = self.find_kept(<Route>span.route, span)
                if kept is not None:
                    kept = self.fitting(<Route>span.route, kept, most - w.length)
                    write_bytes(w, PyBytes_AS_STRING(kept), PyBytes_GET_SIZE(kept))
                    continue
            waiting = self.run(<Route>span.route, span, header, intake, most, w)
            if waiting is not None:
                actions = PyBytes_FromStringAndSize(
                    <const char *>w.data + payload, w.length - payload)
                w.length = start
                if self.path is not None and i + 1 == self.span_count and keepable(waiting):
                    self.keep(waiting, actions, header, intake, most - payload)
                    return 0
                frames.append(self.defer(waiting, i + 1, header, intake, actions, most - payload))
                return 0
        finish_frame(w, start)
        self.row[ACKS] += 1
        if not is_timed:
            self.clock = now()
        return 0

    cdef object run(
        self, Route route, Span *span, Header *header, Intake intake, Py_ssize_t most, Writer *w,
    ):
        """Call a handler and write what fits `most` bytes. Returns a call to be waited for."""
        cdef object connection = intake.peer
        cdef PyObject *stack[16]
        cdef PyObject **values = parameter_values(route, stack)
        cdef Py_ssize_t start = w.length
        cdef int i
        try:
            route.bind(values, self.fields, span, header, connection)
            if route.kind == LEFT or (route.kind == ASYNC and not self.takes_tasks):
                return Call(route, values_list(route, values))
            self.running_header = header
            self.running_connection = <PyObject *>connection
            self.running_route = <PyObject *>route
            result = PyObject_Vectorcall(
                route.function, values, route.positional,
                <PyObject *>route.keywords if route.keywords else NULL)
            if route.kind == ASYNC:
                result = self.begin(route, result, values, header, connection)
                if type(result) is Call:
                    return result
            if route.takes_ack:
                for i in range(route.size):
                    if route.kinds[i] == KIND_ACK:
                        write_answer(w, (<object>values[i]).actions)
            if result is not None:
                if type(result) is not dict:
                    check_answer(route.function, result)
                write_answer(w, result)
            if w.length > most:
                raise too_big(w.length - start, most - start)
        except BaseException as error:  # Whatever it is, the loop goes on and the peer waits.
            w.length = start
            self.fail(route, error)
            write_if_it_fits(w, route.on_error, most)
        finally:
            if len(_forked):
                end_child()
            self.running_route = NULL
            free_values(route, values, stack)
        self.observe(route)
        return None

    cdef bytes find_kept(self, Route route, Span *span):
        """The answer that is kept, if one is."""
        cdef bytes key = None if route.answers is None else route.key(self.fields, span)
        cdef bytes answer
        if key is None:
            return None
        answer = route.answers.find(key, self.clock)
        self.row[route.base + (MISSES if answer is None else HITS)] += 1
        return answer

    cpdef bytes fitting(self, Route route, bytes answer, Py_ssize_t room):
        """An answer that is kept. If it does not fit, the message fails."""
        if PyBytes_GET_SIZE(answer) <= room:
            return answer
        self.fail(route, too_big(PyBytes_GET_SIZE(answer), room))
        return route.on_error if PyBytes_GET_SIZE(route.on_error) <= room else b""

    cdef object begin(
        self, Route route, coroutine, PyObject **values, Header *header, object connection,
    ):
        """Start a task for a handler's coroutine. Returns a call to be waited for or, if it has
        ended, the handler's result."""
        cdef AsyncCall begun = AsyncCall(coroutine, route.name, self.slow, self.slow_after)
        token = PyContextVar_Set(
            _running, (route.name, header.stream_id, header.frame_id, connection))
        try:
            begun.task = self.start(begun)
        finally:
            PyContextVar_Reset(_running, token)
        if not begun.done:
            return Call(route, values_list(route, values) if route.takes_ack else [], begun)
        if begun.error is not None:
            raise begun.error
        return begun.value

    cdef int keep(
        self, Call call, bytes actions, Header *header, Intake intake, Py_ssize_t room,
    ) except -1:
        """Answer a NOTIFY when its only call ends, without a `Deferred`."""
        call.dispatcher = self
        call.intake = intake
        call.path = self.path
        call.stream_id = header.stream_id
        call.frame_id = header.frame_id
        call.actions = actions
        call.room = room
        call.began = self.clock
        self.clock = now()
        intake.calls[call] = None
        intake.in_flight += 1
        call.size = self.size_of_notify()
        intake.memory.take(call.size)
        if call.begun is None:
            call.running = (call.route.name, header.stream_id, header.frame_id, intake.peer)
            self.left.append(call)
        else:
            call.begun.finished = call
            self.count_task(1)
        return 0

    cpdef count_task(self, int change):  # 1: has begun to wait, -1: has ended
        self.tasks += change
        self.row[RUNNING_TASKS] = self.tasks
        if change < 0 and self.ended is not None:
            self.ended()

    cpdef settle(self, Call call, returned, error):
        """Write the ACK of a call that has ended, as the twin describes it."""
        cdef Intake intake = call.intake
        cdef unsigned char stack[512]
        cdef Writer w
        if intake is None:  # It is settled already.
            return
        call.intake = None
        del intake.calls[call]
        intake.in_flight -= 1
        use_stack(&w, stack, sizeof(stack))
        try:
            begin_frame(&w, ACK, FIN, call.stream_id, call.frame_id, intake.little_endian)
            write_bytes(&w, PyBytes_AS_STRING(call.actions), PyBytes_GET_SIZE(call.actions))
            self.write_result(
                call, returned, error, call.began, LENGTH_SIZE + intake.max_frame_size, &w)
            finish_frame(&w, 0)
            self.send_later(intake, &w, call.path)
        except Exception as unexpected:  # Not a handler's: `write_result` takes those.
            self.row[ACKS_DROPPED] += 1
            call.path.fail(unexpected)
        finally:
            release(&w)

    cdef int send_later(self, Intake intake, Writer *w, path) except -1:
        if intake.acks.end == 0:
            self.settled.append(path)
        self.row[ACKS] += 1
        return intake.keep(&intake.acks, w.data, w.length, 2 * intake.acks.capacity)

    def take_back(self, Intake intake not None):
        """The NOTIFYs of a connection that wait for a call, as the twin describes it."""
        cdef list found = []
        cdef Call call
        cdef Deferred deferred
        for call in list(intake.calls):
            call.intake = None
            if call.begun is not None:
                self.count_task(-1)
            deferred = <Deferred>self.new_deferred(
                call.stream_id, call.frame_id, call.actions, [call], call.room)
            deferred.size = call.size
            found.append(deferred)
        intake.calls.clear()
        return found

    cdef int observe(self, Route route) except -1:
        """Count a call. Its time begins at the end of the last one: that saves a clock read."""
        cdef int64_t end = now()
        cdef int64_t taken = end - self.clock
        self.clock = end
        return self.count_call(route, taken)

    cdef int count_call(self, Route route, int64_t taken) except -1:
        cdef int bucket = min(bit_length(<uint64_t>taken >> BUCKET_SHIFT), BUCKETS - 1)
        self.row[route.base + CALLS] += 1
        self.row[route.base + NANOSECONDS] += taken
        self.row[route.base + FIRST_BUCKET + bucket] += 1
        if 0 < self.slow_after < taken and route.kind == INLINE and self.slow is not None:
            self.slow(route.name, taken)
        return 0

    cdef object defer(
        self, waiting, Py_ssize_t first, Header *header, Intake intake, bytes actions,
        Py_ssize_t room,
    ):
        """The `Deferred` of a NOTIFY with a call that has to be waited for."""
        cdef list calls = self.calls(waiting, first, header, intake.peer)
        cdef Deferred deferred = self.new_deferred(
            header.stream_id, header.frame_id, actions, calls, room)
        self.clock = now()
        deferred.size = self.size_of_notify()
        intake.in_flight += 1
        intake.memory.take(deferred.size)
        return deferred

    cdef Py_ssize_t size_of_notify(self) noexcept:
        """Bytes of memory that what was read takes while it waits."""
        cdef Span *last = &self.spans[self.span_count - 1]
        return self.read_size + VALUE_SIZE * (last.first + last.count)

    cdef list calls(self, waiting, Py_ssize_t first, Header *header, object connection):
        """The call that has to be waited for, and bound calls of the messages behind it."""
        cdef Py_ssize_t i
        cdef Route route
        cdef list calls = [waiting], values
        cdef bytes kept
        for i in range(first, self.span_count):
            if self.spans[i].route is NULL:
                self.count_unknown(&self.spans[i])
                if self.no_route.on_error:
                    calls.append(Call(self.no_route, None))
                continue
            route = <Route>self.spans[i].route
            try:
                values = None
                kept = self.find_kept(route, &self.spans[i])
                if kept is None:
                    values = self.bound(route, &self.spans[i], header, connection)
                calls.append(Call(route, values, None, kept))
            except BaseException as error:
                self.fail(route, error)
                calls.append(Call(route, None))
        return calls

    cdef object as_notify(self, Header *header, object connection):
        cdef Py_ssize_t i
        return Notify(header.stream_id, header.frame_id, [
            message_of(self.fields, &self.spans[i], header, connection)
            for i in range(self.span_count)])

    cdef list bound(self, Route route, Span *span, Header *header, object connection):
        cdef PyObject *stack[16]
        cdef PyObject **values = parameter_values(route, stack)
        try:
            route.bind(values, self.fields, span, header, connection)
            return values_list(route, values)
        finally:
            free_values(route, values, stack)

    def result(self, Call call not None, returned, error, int64_t began, Py_ssize_t room):
        """The encoded actions of a call that had to be waited for, as the twin describes it."""
        cdef unsigned char stack[512]
        cdef Writer w
        use_stack(&w, stack, sizeof(stack))
        try:
            self.write_result(call, returned, error, began, room, &w)
            return PyBytes_FromStringAndSize(<const char *>w.data, w.length)
        finally:
            release(&w)

    cdef int write_result(
        self, Call call, returned, error, int64_t began, Py_ssize_t most, Writer *w,
    ) except -1:
        cdef Route route = call.route
        cdef Py_ssize_t start = w.length
        try:
            if error is None:
                if route.takes_ack:
                    for value in call.values:
                        if type(value) is Ack:
                            write_answer(w, value.actions)
                if returned is not None:
                    if type(returned) is not dict:
                        check_answer(route.function, returned)
                    write_answer(w, returned)
                if w.length > most:
                    raise too_big(w.length - start, most - start)
        except BaseException as failure:
            error = failure
        self.count_call(route, now() - began)
        if error is not None:
            w.length = start
            self.fail(route, error)
            write_if_it_fits(w, route.on_error, most)
        return 0

    def acknowledge(self, Intake intake not None, Deferred deferred not None, path):
        """Write the ACK of a NOTIFY whose calls have all ended (section 3.2.7)."""
        cdef bytes actions = deferred.actions
        cdef Py_ssize_t room
        cdef unsigned char stack[512]
        cdef Writer w
        use_stack(&w, stack, sizeof(stack))
        try:
            begin_frame(
                &w, ACK, FIN, deferred.stream_id, deferred.frame_id, intake.little_endian)
            room = LENGTH_SIZE + intake.max_frame_size - w.length
            if PyBytes_GET_SIZE(actions) > room:  # Another connection may have a lower limit.
                self.fail(deferred.calls[0].route, too_big(PyBytes_GET_SIZE(actions), room))
                actions = b""
            write_bytes(&w, PyBytes_AS_STRING(actions), PyBytes_GET_SIZE(actions))
            finish_frame(&w, 0)
            self.send_later(intake, &w, path)
        finally:
            release(&w)

    cpdef fail(self, Route route, error):
        """Count a failure of a route and call `failed`."""
        self.row[route.base + ERRORS] += 1
        if self.failed is not None:
            self.failed(route.name, error)

    cdef int count_unknown(self, Span *span) except -1:
        self.row[UNKNOWN_MESSAGES] += 1
        name = text(span.name, span.name_length)[:MAX_TEXT_SIZE]
        if name in self.unknown:
            self.unknown[name] += 1
        elif len(self.unknown) < MOST_UNKNOWN:
            self.unknown[name] = 1
            if self.without_route is not None:
                self.without_route(name)
        return 0


cdef inline bint keepable(Call call) noexcept:
    """Nothing but the call's end can end the wait for it, unless the connection ends."""
    return not call.route.limited and (call.begun is not None or call.route.kind == LEFT)


cdef object too_big(Py_ssize_t size, Py_ssize_t room):
    return FrameTooBigError(f"answer of {size} bytes where the ACK has room for {room}")


cdef int write_if_it_fits(Writer *w, bytes actions, Py_ssize_t most) except -1:
    if w.length + PyBytes_GET_SIZE(actions) > most:
        return 0
    return write_bytes(w, PyBytes_AS_STRING(actions), PyBytes_GET_SIZE(actions))
