"""Sockets, epoll and the fast path between a socket and the dispatcher, compiled.

The same as `_port_py` and `poller`, its twins. A round of epoll that brings only NOTIFY frames for
inline handlers runs no Python but these handlers.
"""

cimport cython
from cython cimport critical_section

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.math cimport ceil
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memmove

from spop._codec cimport LENGTH_SIZE, MAX_CONTROL_SIZE, Writer, release, use_stack
from spop._objects cimport release_view, writable_view
from spop._dispatch cimport BYTES_RECEIVED, BYTES_SENT, ROUND_BEGAN, Dispatcher, now
from spop._intake cimport Bytes, Intake, drop_bytes

from spop.counters import new_row

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
    #else  /* Without epoll, `spop.poller` makes no Poller. */
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

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock)
    int PyThread_acquire_lock(PyThread_type_lock, int)
    void PyThread_release_lock(PyThread_type_lock)

cdef enum:
    READ = 1
    WRITE = 2
    EVENTS = 128
    LONGEST_WAIT = 86400


@cython.final
cdef class Sleeper:
    """What a thread sleeps on, as the twin describes it."""

    cdef PyThread_type_lock lock

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock is NULL:
            raise MemoryError
        PyThread_acquire_lock(self.lock, 1)

    def __dealloc__(self):
        if self.lock is not NULL:
            PyThread_free_lock(self.lock)

    def sleep(self):
        with nogil:
            PyThread_acquire_lock(self.lock, 1)

    def wake(self):
        PyThread_release_lock(self.lock)


@cython.final
cdef class FastPaths:
    """What the fast paths of a loop share, as the twin describes it."""

    cdef Dispatcher dispatcher
    cdef Py_buffer *buffer
    cdef object ready
    cdef object go_on
    cdef object flush
    cdef object greeted
    cdef readonly dict hellos

    def __cinit__(
        self, Dispatcher dispatcher not None, buffer, ready, go_on, flush, greeted=lambda *_: None
    ):
        self.dispatcher = dispatcher
        self.buffer = writable_view(buffer)
        self.ready = ready
        self.go_on = go_on
        self.flush = flush
        self.greeted = greeted
        self.hellos = {}

    def __dealloc__(self):
        release_view(self.buffer)

    cdef inline bint has_more(self) noexcept:
        """There is more for the loop to do at the end of the round."""
        return len(self.dispatcher.left) > 0 or len(self.dispatcher.settled) > 0

    def send_acks(self):
        """Send the ACKs that `Dispatcher.settled` tells of, as the twin describes it."""
        cdef list settled = self.dispatcher.settled
        cdef FastPath path
        while settled:
            path = settled.pop()
            if path.connection is not None and not path.send_acks():
                self.flush(path.connection)


@cython.final
cdef class FastPath:
    """A socket whose NOTIFY frames are answered at once, as the twin describes it."""

    cdef FastPaths shared
    cdef Intake intake
    cdef readonly int fd
    cdef readonly object connection
    cdef public bint enabled
    cdef public bint active
    cdef public int events
    cdef public bytes hello

    def __cinit__(self, FastPaths shared not None, Intake intake not None, int fd, connection):
        self.shared = shared
        self.intake = intake
        self.fd = fd
        self.connection = connection
        self.events = READ

    def close(self):
        """Forget the connection."""
        self.enabled = False
        self.connection = None

    def fail(self, error):
        """End the connection, unless it has ended, after an unexpected error."""
        if self.connection is not None:
            self.shared.go_on(self.connection, [], b"", error)

    def __call__(self, int events):
        """The socket is ready for something."""
        if events == READ and self.is_usable():
            self.exchange()
        else:
            self.shared.ready(self.connection, events)

    cdef inline bint is_usable(self) noexcept:
        return self.enabled and not self.intake.closed and not self.intake.is_paused()

    cdef inline bint takes_notify(self) noexcept:
        return self.intake.is_open and self.is_usable()

    cdef bint exchange(self) except -1:
        """One recv, one pass, one send. False: the loop has to go on with the connection."""
        cdef unsigned char stack[4096]
        cdef Writer w
        cdef list frames = None
        cdef bint done
        error, acks = None, b""
        use_stack(&w, stack, sizeof(stack))
        try:
            frames = []
            done = self.receive(frames, &w)
            if not done:
                acks = PyBytes_FromStringAndSize(<const char *>w.data, w.length)
        except Exception as failure:
            done, error = False, failure
        finally:
            release(&w)
        if not done:
            self.shared.go_on(self.connection, frames, acks, error)
        return done

    cdef bint send_acks(self) except -1:
        """Send the ACKs of calls that have ended. False: there is more to do."""
        cdef Bytes *acks = &self.intake.acks
        cdef Py_ssize_t sent
        if not self.enabled or self.events != READ or self.intake.received.end:
            return False
        sent = self.send_bytes(acks.data + acks.start, acks.end - acks.start)
        drop_bytes(acks, max(0, sent))
        return acks.end == 0

    cdef bint receive(self, list frames, Writer *w) except -1:
        """Receive, answer and send. False: there are `frames` for the loop, or unsent bytes."""
        cdef Intake intake = self.intake
        cdef Dispatcher d = self.shared.dispatcher
        cdef unsigned char *buffer = <unsigned char *>self.shared.buffer.buf
        cdef Py_ssize_t size = self.recv(buffer)
        if size == 0 or (not intake.is_open and self.greet(buffer, size)):
            return True
        d.until = 0
        d.path = self
        try:
            d.take(intake, buffer, size, frames, w)
        finally:
            d.path = None
        while w.length or frames:
            if not self.send(w) or frames:
                return False
            if intake.received.end == 0:
                break
            # The unread bytes are a partial frame, a malformed one, or those behind
            # `max_answer_size` bytes of answers.
            d.take(intake, NULL, 0, frames, w)
        return not intake.is_paused() or intake.received.end == 0

    cdef bint greet(self, const unsigned char *data, Py_ssize_t size) except -1:
        """Answer a HELLO that came before with the same bytes. False: it is another."""
        cdef bytes hello, answer
        cdef Py_ssize_t sent
        self.hello = None
        if self.intake.received.end:
            return False
        hello = PyBytes_FromStringAndSize(<const char *>data, size)
        agreed = self.shared.hellos.get(hello)
        if agreed is None:
            self.hello = hello
            return False
        answer = agreed.answer
        sent = self.send_bytes(
            <const unsigned char *>PyBytes_AS_STRING(answer), PyBytes_GET_SIZE(answer))
        self.shared.greeted(self.connection, agreed, answer[max(0, sent):])
        return True

    cdef Py_ssize_t recv(self, unsigned char *buffer) except -1:
        """Number of received bytes; 0 if none have come."""
        cdef Py_ssize_t received, most = self.shared.buffer.len
        if not self.intake.is_open:
            # A peer has to wait for our HELLO. What it sends behind its own is not copied yet.
            most = min(most, LENGTH_SIZE + MAX_CONTROL_SIZE)
        with nogil:
            received = recv(self.fd, buffer, most, MSG_DONTWAIT)
        if received > 0:
            self.shared.dispatcher.row[BYTES_RECEIVED] += received
            return received
        if received == 0:
            raise EOFError
        if errno != EAGAIN and errno != EWOULDBLOCK and errno != EINTR:
            PyErr_SetFromErrno(OSError)
        return 0

    cdef bint send(self, Writer *w) except -1:
        """Send the written bytes. False: some could not be sent, and stay."""
        cdef Py_ssize_t sent
        if w.length == 0:
            return True
        sent = self.send_bytes(w.data, w.length)
        if sent < 0:
            return False  # The loop sends the rest, and gets the error.
        w.length -= sent
        if w.length:
            memmove(w.data, w.data + sent, w.length)
        return w.length == 0

    cdef Py_ssize_t send_bytes(self, const unsigned char *data, Py_ssize_t size):
        cdef Py_ssize_t sent
        with nogil:
            sent = send(self.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent > 0:
            self.shared.dispatcher.row[BYTES_SENT] += sent
            self.active = True
        return sent


@cython.final
cdef class Poller:
    """Waits for sockets with epoll, as `spop.poller.EpollPoller` does. It runs no Python between
    rounds in which only fast paths were ready."""

    cdef int epoll
    cdef int wakeups
    cdef int64_t busy_poll  # nanoseconds
    cdef list ready  # by file descriptor
    cdef Py_buffer *row_view
    cdef int64_t *row
    cdef object soon
    cdef object later
    cdef Sleeper sleeper

    def __cinit__(self, cells=None, double busy_poll=0.0):
        self.busy_poll = <int64_t>(busy_poll * 1e9)
        self.ready = []
        self.soon = self.later = ()
        self.row_view = writable_view(new_row(0) if cells is None else cells)
        self.row = <int64_t *>self.row_view.buf
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
        release_view(self.row_view)

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

    def fileno(self):
        if self.epoll < 0:
            raise ValueError("the poller is closed")
        return self.epoll

    def watch(self, soon, later):
        self.soon = soon
        self.later = later

    def run(self, timeout):
        cdef double left = -1.0 if timeout is None else min(timeout, LONGEST_WAIT)
        cdef int64_t end
        if left <= 0:
            while self.round(left) and left < 0:
                pass
            return
        end = now() + <int64_t>(left * 1e9)
        while left > 0 and self.round(left):
            left = (end - now()) / 1e9

    cdef bint round(self, double timeout) except -1:
        """Wait once. Answer the NOTIFY frames that came, then make the calls of all other events.

        True: only NOTIFY frames came.
        """
        cdef epoll_event events[EVENTS]
        cdef epoll_event new[EVENTS]
        cdef int count = self.wait(events, timeout), others, i
        cdef bint fast = count > 0
        cdef Py_ssize_t later = len(self.later)
        others = self.answer(events, count, &fast)
        for i in range(others):
            if i:
                self.answer(new, epoll_wait(self.epoll, new, EVENTS, 0), &fast)
            ready = self.ready_at(&events[i])
            if ready is not None:
                ready(read_and_write(&events[i]))
        return fast and not others and len(self.soon) == 0 and len(self.later) == later

    cdef int answer(self, epoll_event *events, int count, bint *fast) except -1:
        """Answer the NOTIFY frames of ready sockets, and move all other events to the front.

        Returns the number of other events.
        """
        cdef int others = 0, i
        for i in range(count):
            ready = self.ready_at(&events[i])
            if type(ready) is FastPath and events[i].events == EPOLLIN and (
                    (<FastPath>ready).takes_notify()):
                if not (<FastPath>ready).exchange() or (<FastPath>ready).shared.has_more():
                    fast[0] = False
            else:
                events[others] = events[i]
                others += 1
        return others

    def poll(self, timeout):
        cdef epoll_event events[EVENTS]
        cdef int i
        cdef list found = []
        for i in range(self.wait(events, -1.0 if timeout is None else min(timeout, LONGEST_WAIT))):
            ready = self.ready_at(&events[i])
            if ready is not None:
                found.append((ready, read_and_write(&events[i])))
        return found

    def wake_in_wait(self, Sleeper sleeper):
        if self.sleeper is not None:
            self.sleeper.wake()
        self.sleeper = sleeper

    def wake(self):
        with critical_section(self):
            eventfd_write(self.wakeups, 1)  # It fails if the poller is closed.

    def close(self):
        with critical_section(self):
            if self.epoll >= 0:
                close_fd(self.epoll)
            if self.wakeups >= 0:
                close_fd(self.wakeups)
            self.epoll = self.wakeups = -1

    cdef object ready_at(self, epoll_event *event):
        """The object to call for an event; None for a wake-up or an unregistered socket."""
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

    cdef int wait(self, epoll_event *events, double timeout) except -1:
        """Wait, without limit if the timeout is below 0. Returns the number of events; 0 after a
        signal, too."""
        cdef int milliseconds = -1 if timeout < 0 else <int>ceil(timeout * 1000)
        cdef int count
        cdef PyThread_type_lock lock = NULL
        cdef Sleeper sleeper = self.sleeper
        if sleeper is not None:
            lock, self.sleeper = sleeper.lock, None
        if self.epoll < 0:
            raise ValueError("the poller is closed")
        if milliseconds == 0:  # It does not wait, so it keeps the GIL.
            if lock is not NULL:
                PyThread_release_lock(lock)
            count = epoll_wait(self.epoll, events, EVENTS, 0)
        else:
            self.row[ROUND_BEGAN] = 0
            with nogil:
                if lock is not NULL:
                    PyThread_release_lock(lock)
                count = self.look_and_sleep(events, milliseconds)
        self.row[ROUND_BEGAN] = now()
        if count >= 0:
            return count
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()
        return 0

    cdef int look_and_sleep(self, epoll_event *events, int milliseconds) noexcept nogil:
        """`epoll_wait`, which looks again and again for `busy_poll` before it sleeps."""
        cdef int64_t began, past
        cdef int count
        if self.busy_poll == 0:
            return epoll_wait(self.epoll, events, EVENTS, milliseconds)
        began, past = now(), 0
        while past < self.busy_poll and (milliseconds < 0 or past < <int64_t>milliseconds * 1000000):
            count = epoll_wait(self.epoll, events, EVENTS, 0)
            if count != 0:
                return count
            past = now() - began
        if milliseconds > 0:
            milliseconds = max(0, milliseconds - <int>(past // 1000000))
        return epoll_wait(self.epoll, events, EVENTS, milliseconds)


cdef inline uint32_t epoll_events(int events) noexcept:
    return (EPOLLIN if events & READ else 0) | (EPOLLOUT if events & WRITE else 0)


cdef inline int read_and_write(epoll_event *event) noexcept:
    """Hang-ups and errors come without EPOLLOUT. Reading shows which they are."""
    return READ | WRITE if event.events & EPOLLOUT else READ
