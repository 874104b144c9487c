"""Header fields, compiled: the same as `_headers_py`, its twin, which documents them.

Fields are looked up in the received bytes. Only a field that is found becomes an object.
"""

from cython cimport critical_section

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr

from collections.abc import Mapping

from spop._codec cimport (
    Reader, Writer, name_text, read_span, release, text, use_stack, write_bytes, write_varint,
)

from spop.errors import InvalidFrameError

cdef object _absent = object()
cdef bytes _token = b"!#$%&'*+-.^_`|~"


# A field as it stands in the bytes.
cdef struct Pair:
    const unsigned char *name
    Py_ssize_t name_length
    const unsigned char *value
    Py_ssize_t value_length


cdef Headers received(bytes data, bint lines):
    cdef Headers headers = Headers.__new__(Headers)
    headers.receive(data, lines)
    return headers


cdef class Headers:
    """Header fields, in order. Names are compared without case."""

    def __cinit__(self, *args, **kwargs):
        self.data = b""

    def __init__(self, fields=()):
        if isinstance(fields, str):
            self.receive(raw_text(fields), True)
        elif isinstance(fields, (bytes, bytearray, memoryview)):
            self.receive(bytes(fields), False)
        else:
            self.keep(fields.items() if isinstance(fields, (Mapping, Headers)) else fields)

    cdef int receive(self, bytes data, bint lines) except -1:
        return self.put(data, PyBytes_GET_SIZE(data) if lines else end_of_list(data), lines)

    cdef int keep(self, fields) except -1:
        cdef bytes data = b"".join([packed_pair(name, value) for name, value in fields])
        return self.put(data, PyBytes_GET_SIZE(data), False)

    cdef int put(self, bytes data, Py_ssize_t end, bint lines) except -1:
        with critical_section(self):
            self.data = data
            self.end = end
            self.lines = lines
        return 0

    cdef bytes begin(self, Cursor *cursor):
        """Put `cursor` before the first field. Returns the bytes that it reads."""
        cdef bytes data
        with critical_section(self):
            data = self.data
            cursor.reader.end = self.end
            cursor.lines = self.lines
        cursor.reader.base = <const unsigned char *>PyBytes_AS_STRING(data)
        cursor.reader.offset = 0
        return data

    def get(self, name, default=None):
        """The value of the first field of this name. Values are never joined."""
        cdef Cursor cursor
        cdef Pair pair
        cdef bytes data = self.begin(&cursor), wanted = raw_text(name)
        while next_pair(&cursor, &pair):
            if is_named(&pair, wanted):
                return text(pair.value, pair.value_length)
        return default

    def getlist(self, name):
        """The values of all fields of this name."""
        cdef Cursor cursor
        cdef Pair pair
        cdef bytes data = self.begin(&cursor), wanted = raw_text(name)
        cdef list values = []
        while next_pair(&cursor, &pair):
            if is_named(&pair, wanted):
                values.append(text(pair.value, pair.value_length))
        return values

    def __getitem__(self, name):
        value = self.get(name, _absent)
        if value is _absent:
            raise KeyError(name)
        return value

    def __contains__(self, name):
        return self.get(name) is not None

    def __len__(self):
        cdef Cursor cursor
        cdef Pair pair
        cdef bytes data = self.begin(&cursor)
        cdef Py_ssize_t count = 0
        while next_pair(&cursor, &pair):
            count += 1
        return count

    def __iter__(self):
        return iter([name for name, _ in self.items()])

    def items(self):
        """Name and value of each field. A name may repeat."""
        cdef Cursor cursor
        cdef Pair pair
        cdef bytes data = self.begin(&cursor)
        cdef list found = []
        while next_pair(&cursor, &pair):
            found.append((
                name_text(pair.name, pair.name_length), text(pair.value, pair.value_length)))
        return found

    @property
    def raw(self):
        """Name and value of each field, as bytes."""
        cdef Cursor cursor
        cdef Pair pair
        cdef bytes data = self.begin(&cursor)
        cdef list found = []
        while next_pair(&cursor, &pair):
            found.append((
                PyBytes_FromStringAndSize(<const char *>pair.name, pair.name_length),
                PyBytes_FromStringAndSize(<const char *>pair.value, pair.value_length)))
        return found

    def add(self, name, value):
        """Add a field behind the others."""
        cdef bytes pair = packed_pair(name, value)
        if self.lines:
            self.keep(self.raw)
        pair = self.data[:self.end] + pair
        self.put(pair, PyBytes_GET_SIZE(pair), False)

    def names(self):
        """The names alone, as ``del-headers-bin`` takes them."""
        return packed(self, False)

    def __spop_binary__(self):
        """The bytes that the codec sends."""
        return packed(self, True)

    def __eq__(self, other):
        if not isinstance(other, Headers):
            return NotImplemented
        return [(name.lower(), value) for name, value in self.raw] == [
            (name.lower(), value) for name, value in other.raw]

    def __repr__(self):
        return f"Headers({self.items()!r})"

    def __reduce__(self):
        return type(self), (self.raw,)


cdef bytes raw_text(object text):
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    if isinstance(text, bytes):
        return bytes(text)
    raise TypeError(f"a header is str or bytes, not {type(text).__name__}")


# --- reading ---


cdef inline bint next_pair(Cursor *cursor, Pair *pair) except -1:
    """Read the next field. False: there is none."""
    if cursor.lines:
        return next_line(&cursor.reader, pair)
    if cursor.reader.offset >= cursor.reader.end:
        return False
    read_pair(&cursor.reader, pair)
    return True


cdef inline int read_pair(Reader *r, Pair *pair) except -1:
    read_span(r, &pair.name, &pair.name_length)
    return read_span(r, &pair.value, &pair.value_length)


cdef bint next_line(Reader *r, Pair *pair) noexcept:
    """Read the next ``name: value`` line. Lines without a name or a colon are skipped."""
    cdef const unsigned char *start
    cdef const unsigned char *stop
    cdef const unsigned char *colon
    while r.offset < r.end:
        start = r.base + r.offset
        stop = <const unsigned char *>memchr(start, b"\n", r.end - r.offset)
        if stop is NULL:
            stop = r.base + r.end
        r.offset = stop - r.base + 1
        colon = <const unsigned char *>memchr(start, b":", stop - start)
        if colon is not NULL and colon > start:
            pair.name = start
            pair.name_length = colon - start
            set_value(pair, colon + 1, stop)
            return True
    return False


cdef void set_value(
    Pair *pair, const unsigned char *start, const unsigned char *stop
) noexcept:
    """The value between colon and newline, without the CR and the space around it."""
    if start < stop and stop[-1] == b"\r":
        stop -= 1
    while start < stop and (start[0] == b" " or start[0] == b"\t"):
        start += 1
    while start < stop and (stop[-1] == b" " or stop[-1] == b"\t"):
        stop -= 1
    pair.value = start
    pair.value_length = stop - start


cdef inline bint is_named(Pair *pair, bytes wanted) noexcept:
    cdef Py_ssize_t i
    cdef const unsigned char *name = <const unsigned char *>PyBytes_AS_STRING(wanted)
    if pair.name_length != PyBytes_GET_SIZE(wanted):
        return False
    for i in range(pair.name_length):
        if lower(pair.name[i]) != lower(name[i]):
            return False
    return True


cdef inline unsigned char lower(unsigned char c) noexcept:
    return c | 0x20 if b"A" <= c <= b"Z" else c


cdef Py_ssize_t end_of_list(bytes data) except -1:
    """The offset of the two empty strings that end a list. HAProxy ends it there, too."""
    cdef Reader r
    cdef Pair pair
    cdef Py_ssize_t start
    r.base = <const unsigned char *>PyBytes_AS_STRING(data)
    r.offset = 0
    r.end = PyBytes_GET_SIZE(data)
    while True:
        start = r.offset
        read_pair(&r, &pair)
        if pair.name_length == 0:
            if pair.value_length:
                raise InvalidFrameError(f"header without a name at byte {start}")
            return start


# --- writing ---


cdef bytes packed_pair(object name, object value):
    cdef bytes raw_value = raw_text(value), raw_name = raw_text(name)
    cdef unsigned char stack[512]
    cdef Writer w
    use_stack(&w, stack, sizeof(stack))
    try:
        write_span(&w, PyBytes_AS_STRING(raw_name), PyBytes_GET_SIZE(raw_name))
        write_span(&w, PyBytes_AS_STRING(raw_value), PyBytes_GET_SIZE(raw_value))
        return PyBytes_FromStringAndSize(<const char *>w.data, w.length)
    finally:
        release(&w)


cdef bytes packed(Headers headers, bint values):
    """All fields as HAProxy reads them, or only their names."""
    cdef Cursor cursor
    cdef Pair pair
    cdef bytes data = headers.begin(&cursor)
    cdef unsigned char stack[2048]
    cdef Writer w
    use_stack(&w, stack, sizeof(stack))
    try:
        while next_pair(&cursor, &pair):
            check_name(&pair)
            write_span(&w, pair.name, pair.name_length)
            if values:
                check_value(&pair)
                write_span(&w, pair.value, pair.value_length)
        write_varint(&w, 0)
        if values:
            write_varint(&w, 0)
        return PyBytes_FromStringAndSize(<const char *>w.data, w.length)
    finally:
        release(&w)


cdef int check_name(Pair *pair) except -1:
    cdef Py_ssize_t i
    cdef bint token = pair.name_length > 0
    for i in range(pair.name_length):
        token &= is_token(pair.name[i])
    if not token:
        raise ValueError(f"header name {text(pair.name, pair.name_length)!r} is no token")
    return 0


cdef inline bint is_token(unsigned char c) noexcept:
    """Section 5.6.2 of RFC 9110."""
    return b"a" <= lower(c) <= b"z" or b"0" <= c <= b"9" or (
        memchr(PyBytes_AS_STRING(_token), c, PyBytes_GET_SIZE(_token)) is not NULL)


cdef int check_value(Pair *pair) except -1:
    cdef Py_ssize_t i
    cdef unsigned char c
    for i in range(pair.value_length):
        c = pair.value[i]
        if c == b"\r" or c == b"\n" or c == 0:
            raise ValueError(
                f"header {text(pair.name, pair.name_length)!r}: CR, LF or NUL in its value")
    return 0


cdef int write_span(Writer *w, const void *data, Py_ssize_t length) except -1:
    write_varint(w, length)
    return write_bytes(w, data, length)
