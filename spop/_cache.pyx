"""The encoded answers of one handler in one loop, by key, compiled.

The same as `_cache_py`, its twin. The answers are in a list by their last use, so that a hit
moves two pointers and leaves the dict as it is.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from spop.constants import ENTRY_SIZE as PY_ENTRY_SIZE

cdef enum:
    ENTRY_SIZE = 256  # Bytes that a kept answer takes besides its own and its key's, roughly.

if PY_ENTRY_SIZE != ENTRY_SIZE:
    raise ImportError("compiled for another spop")


@cython.final
@cython.no_gc  # It refers to bytes alone: the list's pointers are borrowed.
cdef class _Entry:
    pass


@cython.final
cdef class Answers:
    def __init__(self, Py_ssize_t size):
        if size < 1:
            raise ValueError(f"size is {size}, 1 at least")
        self.size = size
        self.forget()

    cpdef forget(self):
        # The entries of before are freed with their dict. No pointer leads to them any more.
        self.newest = self.oldest = NULL
        self.entries = {}
        self.begun = self.generation
        self.memory = 0

    cpdef bytes find(self, bytes key, int64_t now):
        cdef object found
        cdef _Entry entry
        if self.begun != self.generation:
            self.forget()
        found = self.entries.get(key)
        if found is not None:
            entry = <_Entry>found
            if now < entry.expires:
                if self.newest != <void *>entry:
                    self.unlink(entry)
                    self.link(entry)
                self.hits += 1
                return entry.answer
            self.drop(entry)
        self.misses += 1
        return None

    def keep(self, bytes key, bytes answer, int64_t expires, int64_t generation):
        if generation != self.generation:
            return
        if self.begun != generation:
            self.forget()
        cdef object found = self.entries.get(key)
        cdef _Entry entry
        if found is not None:
            self.drop(<_Entry>found)
        elif len(self.entries) >= self.size:
            self.drop(<_Entry>self.oldest)
        entry = _Entry.__new__(_Entry)
        entry.key, entry.answer, entry.expires = key, answer, expires
        self.entries[key] = entry
        self.link(entry)
        self.memory += size_of(entry)

    cdef int link(self, _Entry entry) except -1:
        """Put an entry in front, as the newest."""
        entry.newer, entry.older = NULL, self.newest
        if self.newest is not NULL:
            (<_Entry>self.newest).newer = <void *>entry
        else:
            self.oldest = <void *>entry
        self.newest = <void *>entry
        return 0

    cdef int unlink(self, _Entry entry) except -1:
        if entry.newer is not NULL:
            (<_Entry>entry.newer).older = entry.older
        else:
            self.newest = entry.older
        if entry.older is not NULL:
            (<_Entry>entry.older).newer = entry.newer
        else:
            self.oldest = entry.newer
        return 0

    cdef int drop(self, _Entry entry) except -1:
        self.unlink(entry)
        self.memory -= size_of(entry)
        del self.entries[entry.key]
        return 0

    def clear(self):
        self.generation += 1  # The loop's thread forgets them, before it looks for the next one.

    def __len__(self):
        return len(self.entries) if self.begun == self.generation else 0


cdef inline Py_ssize_t size_of(_Entry entry) noexcept:
    return ENTRY_SIZE + PyBytes_GET_SIZE(entry.key) + PyBytes_GET_SIZE(entry.answer)
