"""The coroutine of an ``async def`` handler, compiled: the same as `_async_call_py`, its twin."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from collections.abc import Coroutine

from spop.forks import FORKED, end_child

cdef extern from "Python.h":
    int PyIter_Send(object, object value, PyObject **result) except -1
    int PYGEN_NEXT
    void Py_XDECREF(PyObject *)

cdef list _forked = FORKED


cdef class AsyncCall:
    """The coroutine of an ``async def`` handler, as the twin describes it."""

    def __cinit__(self, coroutine, str name, slow=None, int64_t slow_after=0):
        self.coroutine = coroutine
        self.name = name
        self.slow = slow
        self.slow_after = slow_after

    def send(self, value):
        """Run the handler's next step."""
        yielded = self.step(value)
        if self.done:
            raise StopIteration
        return yielded

    def throw(self, *error):
        """Run its next step with an exception, `asyncio.CancelledError` for one."""
        cdef int64_t began = now()
        try:
            return self.coroutine.throw(*error)
        except StopIteration as stop:
            self.value = stop.value
        except BaseException as failure:
            self.error = failure
        finally:
            self.observe(began)
        self.end()
        raise StopIteration

    def close(self):
        """End it without a result."""
        self.coroutine.close()

    def __next__(self):  # A task calls this where it sends None, as no method is looked up.
        yielded = self.step(None)
        if self.done:
            raise StopIteration
        return yielded

    def __iter__(self):
        return self

    def __await__(self):
        return self

    def __getattr__(self, str name):
        """``cr_frame`` and its like, for those who look into a task."""
        return getattr(self.coroutine, name)

    cdef object step(self, value):
        cdef PyObject *result = NULL
        cdef int64_t began = now()
        cdef int how
        try:
            how = PyIter_Send(self.coroutine, value, &result)
            yielded = <object>result
            Py_XDECREF(result)
            if how == PYGEN_NEXT:
                return yielded
            self.value = yielded
        except BaseException as failure:
            self.error = failure
        finally:
            self.observe(began)
        self.end()
        return None

    cdef int observe(self, int64_t began) except -1:
        cdef int64_t took = now() - began
        if 0 < self.slow_after < took and self.slow is not None:
            self.slow(self.name, took)
        if len(_forked):
            end_child()
        return 0

    cdef int end(self) except -1:
        self.done = True
        if self.finished is not None:
            self.finished(self)
        return 0


Coroutine.register(AsyncCall)
