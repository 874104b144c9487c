"""Sockets, epoll and the fast path between a socket and the dispatcher, compiled.

The same as `_port_py` and `poller`, its twins. A round of epoll in which all that came were
NOTIFY frames for inline handlers runs no Python but these handlers.
"""

cimport cython
from cython cimport critical_section

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.math cimport ceil
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memmove

from spop._codec cimport Writer, release, use_stack
from spop._dispatch cimport BYTES_RECEIVED, BYTES_SENT, ROUND_BEGAN, Dispatcher, now
from spop._intake cimport Intake

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

cdef enum:
    READ = 1
    WRITE = 2
    EVENTS = 128
    LONGEST_WAIT = 86400


@cython.final
cdef class FastPaths:
    """What the fast paths of a loop have in common, as the twin describes it."""

    cdef Dispatcher dispatcher
    cdef unsigned char[::1] buffer
    cdef object ready
    cdef object go_on

    def __cinit__(self, Dispatcher dispatcher, buffer, ready, go_on):
        self.dispatcher = dispatcher
        self.buffer = buffer
        self.ready = ready
        self.go_on = go_on


@cython.final
cdef class FastPath:
    """A socket whose NOTIFY frames are answered as they come, as the twin describes it."""

    cdef FastPaths shared
    cdef Intake intake
    cdef readonly int fd
    cdef readonly object connection
    cdef public bint enabled
    cdef public bint active

    def __cinit__(self, FastPaths shared, Intake intake, int fd, connection):
        self.shared = shared
        self.intake = intake
        self.fd = fd
        self.connection = connection

    def close(self):
        """Have nothing more to do with the connection."""
        self.enabled = False
        self.connection = None

    def __call__(self, int events):
        """The socket is ready for something."""
        if events == READ and self.is_usable():
            self.exchange()
        else:
            self.shared.ready(self.connection, events)

    cdef inline bint is_usable(self) noexcept:
        return self.enabled and self.intake.is_open and not self.intake.is_paused()

    cdef bint exchange(self) except -1:
        """One recv, one pass, one send. True: that was all."""
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

    cdef bint receive(self, list frames, Writer *w) except -1:
        """True: all that was received is answered and sent. False: `frames` or what is
        written is left."""
        cdef Intake intake = self.intake
        cdef Dispatcher d = self.shared.dispatcher
        cdef unsigned char *buffer = &self.shared.buffer[0]
        cdef Py_ssize_t size = self.recv(buffer)
        if size == 0:
            return True
        d.until = 0
        d.take(intake, buffer, size, frames, w)
        while w.length or frames:
            if not self.send(w) or frames:
                return False
            if intake.received.end == 0:
                break
            # Behind what was answered there is a partial frame, one that is malformed, or more
            # than there may be answers for at a time.
            d.take(intake, NULL, 0, frames, w)
        return not intake.suspended

    cdef Py_ssize_t recv(self, unsigned char *buffer) except -1:
        """How many bytes there are; 0: none yet."""
        cdef Py_ssize_t received
        with nogil:
            received = recv(self.fd, buffer, self.shared.buffer.shape[0], MSG_DONTWAIT)
        if received > 0:
            self.shared.dispatcher.row[BYTES_RECEIVED] += received
            return received
        if received == 0:
            raise EOFError
        if errno != EAGAIN and errno != EWOULDBLOCK and errno != EINTR:
            PyErr_SetFromErrno(OSError)
        return 0

    cdef bint send(self, Writer *w) except -1:
        """Send what is written; what could not be sent stays. True: nothing did."""
        cdef Py_ssize_t sent
        if w.length == 0:
            return True
        with nogil:
            sent = send(self.fd, w.data, w.length, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            return False  # Whoever sends the rest finds out why.
        self.shared.dispatcher.row[BYTES_SENT] += sent
        self.active = True
        w.length -= sent
        if w.length:
            memmove(w.data, w.data + sent, w.length)
        return w.length == 0


@cython.final
cdef class Poller:
    """Waits for sockets with epoll, as `spop.poller.EpollPoller` does. As long as only fast
    paths have something to do, nothing of Python runs in between."""

    cdef int epoll
    cdef int wakeups
    cdef list ready  # by file descriptor
    cdef int64_t[::1] row
    cdef object soon
    cdef object later

    def __cinit__(self, cells=None):
        self.ready = []
        self.soon = self.later = ()
        self.row = new_row(0) if cells is None else cells
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
        """One wait, and what it found. True: that was for fast paths alone, which saw to it."""
        cdef epoll_event events[EVENTS]
        cdef int count = self.wait(events, timeout), i
        cdef bint fast = count > 0
        cdef Py_ssize_t later = len(self.later)
        for i in range(count):
            ready = self.ready_at(&events[i])
            if type(ready) is FastPath and events[i].events == EPOLLIN and (
                    (<FastPath>ready).is_usable()):
                if not (<FastPath>ready).exchange():
                    fast = False
            else:
                fast = False
                if ready is not None:
                    ready(read_and_write(&events[i]))
        return fast and len(self.soon) == 0 and len(self.later) == later

    def poll(self, timeout):
        cdef epoll_event events[EVENTS]
        cdef int i
        cdef list found = []
        for i in range(self.wait(events, -1.0 if timeout is None else min(timeout, LONGEST_WAIT))):
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

    cdef int wait(self, epoll_event *events, double timeout) except -1:
        """How many events there are; none as well when a signal came. Below 0: no timeout."""
        cdef int milliseconds = -1 if timeout < 0 else <int>ceil(timeout * 1000)
        cdef int count
        if self.epoll < 0:
            raise ValueError("the poller is closed")
        if milliseconds == 0:  # Not to wait keeps the GIL.
            count = epoll_wait(self.epoll, events, EVENTS, 0)
        else:
            self.row[ROUND_BEGAN] = 0
            with nogil:
                count = epoll_wait(self.epoll, events, EVENTS, milliseconds)
        self.row[ROUND_BEGAN] = now()
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
