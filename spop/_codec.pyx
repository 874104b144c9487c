"""The codec, compiled: the same functions, bytes and errors as `_codec_py`, its twin.

Messages, actions and frames, on top of the typed data of `_typed_data.pyx`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_New

from spop._objects cimport HAS_GIL, fill_slot, new_instance, put_item, slot_offset
from spop._typed_data cimport _View, Write, append, as_uint64, read_typed_data, take_typed_data, written

from collections.abc import Mapping

from spop import _codec_py
from spop._typed_data import (
    decode_string, decode_value, decode_varint, encode_string, encode_value, encode_varint,
)
from spop.constants import FrameType
from spop.errors import FragmentationError, FrameTooBigError, InvalidFrameError, too_long
from spop.frames import Ack, Action, Control, Message, Notify, RawFrame
from spop.values import SCOPE_NAMES, UNSET

cdef extern from "Python.h":
    void Py_INCREF(PyObject *)
    void Py_XDECREF(PyObject *)

cdef Py_ssize_t message_name = slot_offset(Message, "name")
cdef Py_ssize_t message_names = slot_offset(Message, "names")
cdef Py_ssize_t message_values = slot_offset(Message, "values")
cdef Py_ssize_t message_stream_id = slot_offset(Message, "stream_id")
cdef Py_ssize_t message_frame_id = slot_offset(Message, "frame_id")
cdef Py_ssize_t message_connection = slot_offset(Message, "connection")
cdef Py_ssize_t notify_stream_id = slot_offset(Notify, "stream_id")
cdef Py_ssize_t notify_frame_id = slot_offset(Notify, "frame_id")
cdef Py_ssize_t notify_messages = slot_offset(Notify, "messages")
cdef Py_ssize_t ack_stream_id = slot_offset(Ack, "stream_id")
cdef Py_ssize_t ack_frame_id = slot_offset(Ack, "frame_id")
cdef Py_ssize_t ack_actions = slot_offset(Ack, "actions")
cdef Py_ssize_t ack_aborted = slot_offset(Ack, "aborted")
cdef Py_ssize_t ack_ignored = slot_offset(Ack, "ignored")
cdef object _unset = UNSET
cdef object _new_tuple = tuple.__new__
cdef dict _frame_types = {int(member): member for member in FrameType}
cdef tuple _scope_names = SCOPE_NAMES
cdef dict _targets = _codec_py.targets


# --- reading ---


cdef int refuse_abort() except -1:
    raise InvalidFrameError("ABORT without FIN")


cdef Py_ssize_t refuse_length(Py_ssize_t length, Py_ssize_t max_frame_size) except -2:
    # The length alone decides: nothing waits for the rest of a frame that is refused anyway.
    if length > max_frame_size:
        raise too_long(length, max_frame_size)
    raise InvalidFrameError(f"frame of {length} bytes, {SHORTEST_FRAME} at least")


cdef list read_messages(Reader *r, object stream_id, object frame_id):
    cdef list messages = []
    cdef const unsigned char *name
    cdef Py_ssize_t length
    while r.offset < r.end:
        read_span(r, &name, &length)
        messages.append(read_message(r, name_text(name, length), stream_id, frame_id))
    return messages


cdef object read_message(Reader *r, object name, object stream_id, object frame_id):
    cdef tuple names, values
    cdef Field field
    cdef int count, i
    if r.offset >= r.end:
        raise InvalidFrameError(f"message without its argument count at byte {r.offset}")
    count = r.base[r.offset]
    r.offset += 1
    names = PyTuple_New(count)
    values = PyTuple_New(count)
    for i in range(count):
        read_field(r, &field)
        put_item(names, i, name_text(field.name, field.name_length))
        put_item(values, i, field_value(&field))
    return new_message(name, names, values, stream_id, frame_id, None)


cdef object new_message(
    object name, tuple names, tuple values, object stream_id, object frame_id, object connection
):
    cdef object message = new_instance(Message)
    fill_slot(message, message_name, name)
    fill_slot(message, message_names, names)
    fill_slot(message, message_values, values)
    fill_slot(message, message_stream_id, stream_id)
    fill_slot(message, message_frame_id, frame_id)
    fill_slot(message, message_connection, connection)
    return message


cdef dict read_kv_list(Reader *r, bint lenient):
    cdef dict items = {}
    cdef Field field
    while r.offset < r.end:
        read_span(r, &field.name, &field.name_length)
        if lenient:
            take_typed_data(r, &field)
        else:
            read_typed_data(r, &field)
        items[text(field.name, field.name_length)] = field_value(&field)
    return items


cdef list read_actions(Reader *r, bint lenient, Py_ssize_t *ignored):
    """The actions, and how many `lenient` passes over.

    It does as HAProxy: it reads up to an action that it can't read, without an error.
    """
    cdef list actions = []
    ignored[0] = 0
    try:
        while r.offset < r.end:
            ignored[0] += read_action(r, lenient, actions)
    except InvalidFrameError:
        if not lenient:
            raise
        ignored[0] += 1
    return actions


cdef int read_action(Reader *r, bint lenient, list actions) except -1:
    """Add an action. Returns 1 if it was passed over."""
    cdef const unsigned char *p = r.base + r.offset
    cdef Py_ssize_t length, start = r.offset
    cdef const unsigned char *name
    cdef Field field
    cdef object value = _unset
    if r.end - start < 3:
        raise InvalidFrameError(f"action cut short at byte {start}")
    if not ((p[0] == SET_VAR and p[1] == SET_VAR_ARGUMENTS)
            or (p[0] == UNSET_VAR and p[1] == UNSET_VAR_ARGUMENTS)):
        raise InvalidFrameError(f"action {p[0]} of {p[1]} arguments at byte {start}")
    if p[2] > LAST_SCOPE:
        raise InvalidFrameError(f"unknown variable scope {p[2]} at byte {start + 2}")
    r.offset += 3
    read_span(r, &name, &length)
    if p[0] == SET_VAR:
        if lenient:
            take_typed_data(r, &field)
            if field.type > T_BINARY:
                return 1
        else:
            read_typed_data(r, &field)
        value = field_value(&field)
    # The class's own `__new__` is Python: 0.4 µs in place of 0.9.
    actions.append(_new_tuple(Action, (_scope_names[p[2]], text(name, length), value)))
    return 0


cdef object read_frame(Reader *r, Header *header, bint lenient):
    cdef int type = header.type
    cdef Py_ssize_t ignored
    cdef bint final = header.flags & FIN
    cdef object frame
    if type == NOTIFY and final:
        frame = new_instance(Notify)
        stream_id = header.stream_id
        frame_id = header.frame_id
        fill_slot(frame, notify_stream_id, stream_id)
        fill_slot(frame, notify_frame_id, frame_id)
        fill_slot(frame, notify_messages, read_messages(r, stream_id, frame_id))
        return frame
    if type == ACK:
        # Section 3.2.7 allows fragments, but HAProxy neither announces nor sends them.
        if not final:
            raise FragmentationError("an ACK may not be fragmented")
        frame = new_instance(Ack)
        fill_slot(frame, ack_stream_id, header.stream_id)
        fill_slot(frame, ack_frame_id, header.frame_id)
        fill_slot(frame, ack_actions, read_actions(r, lenient, &ignored))
        fill_slot(frame, ack_ignored, ignored)
        fill_slot(frame, ack_aborted, header.flags & ABORT != 0)
        return frame
    if type in (HAPROXY_HELLO, HAPROXY_DISCONNECT, AGENT_HELLO, AGENT_DISCONNECT):
        # Sections 3.2.4, 3.2.5, 3.2.8 and 3.2.9.
        if not final:
            raise FragmentationError("HELLO and DISCONNECT may not be fragmented")
        if header.stream_id or header.frame_id:
            raise InvalidFrameError("stream-id and frame-id of HELLO and DISCONNECT must be 0")
        return Control(_frame_types[type], read_kv_list(r, lenient))
    return RawFrame(
        type, header.flags, header.stream_id, header.frame_id,
        PyBytes_FromStringAndSize(<const char *>r.base + r.offset, r.end - r.offset))


# --- writing ---


cdef int write_kv_list(Writer *w, object items) except -1:
    for name, value in items.items() if isinstance(items, Mapping) else items:
        write_string(w, name)
        write_named_value(w, name, value)
    return 0


cdef int write_messages(Writer *w, object messages) except -1:
    cdef tuple names, values
    cdef Py_ssize_t count, i
    for message in messages:
        names, values = tuple(message.names), tuple(message.values)
        count = len(names)
        if count > MAX_MESSAGE_ARGUMENTS:
            raise ValueError(
                f"message {message.name}: {count} arguments, {MAX_MESSAGE_ARGUMENTS} at most")
        if count != len(values):
            raise ValueError(f"message {message.name}: {count} names, {len(values)} values")
        write_string(w, message.name)
        write_type(w, <int>count)
        for i in range(count):
            write_string(w, names[i])
            write_named_value(w, names[i], values[i])
    return 0


# The name of a variable is mostly a constant in the code of a handler, the same str each time.
# A table finds those set last by identity, without a hash of the str. It keeps them alive, so no
# other object gets the address of one.
cdef enum:
    VARIABLES_KEPT = 64

cdef struct Variable:
    PyObject *name
    PyObject *target

cdef Variable _variables[VARIABLES_KEPT]


cdef inline object target_of(object name):
    """Scope and name of a variable as an action has them (section 3.4)."""
    cdef Variable *kept = &_variables[(<size_t><void *>name >> 4) % VARIABLES_KEPT]
    if kept.name is <PyObject *>name:
        return <object>kept.target
    return find_target(name, kept)


cdef object find_target(object name, Variable *kept):
    cdef object target = _targets.get(name)
    if target is None:
        target = _codec_py.find_target(name)
    # A subclass may change its hash or equality. Without a GIL the table would need a lock.
    if HAS_GIL and type(name) is str:
        Py_XDECREF(kept.name)
        Py_XDECREF(kept.target)
        kept.name = <PyObject *>name
        kept.target = <PyObject *>target
        Py_INCREF(kept.name)
        Py_INCREF(kept.target)
    return target


cdef int write_action(Writer *w, object variable, object value) except -1:
    cdef object target = target_of(variable)
    reserve(w, 2)
    w.data[w.length] = UNSET_VAR if value is _unset else SET_VAR
    w.data[w.length + 1] = UNSET_VAR_ARGUMENTS if value is _unset else SET_VAR_ARGUMENTS
    w.length += 2
    write_bytes(w, PyBytes_AS_STRING(target), PyBytes_GET_SIZE(target))
    if value is not _unset:
        write_named_value(w, variable, value)
    return 0


cdef int write_actions(Writer *w, object actions) except -1:
    return write_actions_with(w, actions, None)


cdef int write_answer(Writer *w, object answer) except -1:
    """The actions that a handler answers. None removes the variable, in every HAProxy."""
    return write_actions_with(w, answer, _unset)


cdef int write_actions_with(Writer *w, object actions, object null) except -1:
    """Write actions. `null` replaces a value that is None."""
    if type(actions) is dict:
        for variable, value in (<dict>actions).items():
            write_action(w, variable, null if value is None else value)
    elif isinstance(actions, Mapping):
        for variable, value in actions.items():
            write_action(w, variable, null if value is None else value)
    else:
        for action in actions:
            value = action.value
            write_action(w, action.variable, null if value is None else value)
    return 0


# --- public functions, documented in `_codec_py` ---


cdef bytearray written_frame(
    Write write, object payload, int type, unsigned int flags, object stream_id,
    object frame_id, bytearray out, bint little_endian,
):
    """As `written`, in a frame."""
    cdef unsigned char stack[1024]
    cdef Writer w
    cdef Py_ssize_t start
    use_stack(&w, stack, sizeof(stack))
    try:
        start = begin_frame(
            &w, type, flags, as_uint64(stream_id), as_uint64(frame_id), little_endian)
        write(&w, payload)
        finish_frame(&w, start)
        return append(out, &w)
    finally:
        release(&w)


cdef int check_range(object type, object flags) except -1:
    if not 0 <= type < 1 << 8:
        raise OverflowError(f"{type} is not in 0 to 255, the range of a frame's type")
    if not 0 <= flags < 1 << 32:
        raise OverflowError(f"{flags} is not in 0 to 2**32 - 1, the range of flags")
    return 0


cdef int write_buffer(Writer *w, object payload) except -1:
    cdef Py_buffer view
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        if view.len:  # An empty buffer may be at NULL.
            write_bytes(w, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return 0


def encode_kv_list(items, bytearray out=None):
    return written(write_kv_list, items, out)


def decode_kv_list(buffer):
    cdef _View view = _View(buffer)
    return read_kv_list(&view.reader, False)


def encode_messages(messages, bytearray out=None):
    return written(write_messages, messages, out)


def decode_messages(buffer):
    cdef _View view = _View(buffer)
    return read_messages(&view.reader, 0, 0)


def encode_actions(actions, bytearray out=None):
    return written(write_actions, actions, out)


def encode_answer(answer, bytearray out=None):
    return written(write_answer, answer, out)


def decode_actions(buffer):
    cdef _View view = _View(buffer)
    cdef Py_ssize_t ignored
    return read_actions(&view.reader, False, &ignored)


def encode_notify(stream_id, frame_id, messages, bytearray out=None, *, bint little_endian=False):
    return written_frame(
        write_messages, messages, NOTIFY, FIN, stream_id, frame_id, out, little_endian)


def encode_ack(
    stream_id, frame_id, actions=(), bytearray out=None, *, bint abort=False,
    bint little_endian=False,
):
    return written_frame(
        write_actions, actions, ACK, FIN | ABORT if abort else FIN, stream_id, frame_id, out,
        little_endian)


def encode_control(type, items, bytearray out=None, *, bint little_endian=False):
    check_range(type, 0)
    return written_frame(write_kv_list, items, type, FIN, 0, 0, out, little_endian)


def encode_raw_frame(
    type, flags, stream_id, frame_id, payload, bytearray out=None, *, bint little_endian=False,
):
    check_range(type, flags)
    return written_frame(
        write_buffer, payload, type, flags, stream_id, frame_id, out, little_endian)


def encode_frame(frame, bytearray out=None, *, bint little_endian=False):
    if isinstance(frame, Notify):
        return encode_notify(
            frame.stream_id, frame.frame_id, frame.messages, out, little_endian=little_endian)
    if isinstance(frame, Ack):
        return encode_ack(
            frame.stream_id, frame.frame_id, frame.actions, out, abort=frame.aborted,
            little_endian=little_endian)
    if isinstance(frame, Control):
        return encode_control(frame.type, frame.items, out, little_endian=little_endian)
    return encode_raw_frame(
        frame.type, frame.flags, frame.stream_id, frame.frame_id, frame.payload, out,
        little_endian=little_endian)


def decode_frames(
    buffer, Py_ssize_t start=0, end=None, *, Py_ssize_t max_frame_size=DEFAULT_MAX_FRAME_SIZE,
    bint little_endian=False, bint whole=False, bint lenient=False,
):
    cdef Py_buffer view
    cdef Reader reader
    cdef Header header
    cdef Py_ssize_t offset = start, limit, length
    cdef list frames = []
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        limit = view.len if end is None else end
        if not 0 <= start <= limit <= view.len:
            raise ValueError(f"{start} to {limit} is outside a buffer of {view.len} bytes")
        # Offsets in errors count from `start`, as the twin's do.
        reader.base = <const unsigned char *>view.buf + start
        while True:
            length = frame_length(reader.base, offset - start, limit - start, max_frame_size)
            if length < 0:
                break
            reader.offset = offset - start + LENGTH_SIZE
            reader.end = reader.offset + length
            read_header(&reader, &header, little_endian, whole)
            frames.append(read_frame(&reader, &header, lenient))
            offset += LENGTH_SIZE + length
    except (FrameTooBigError, FragmentationError, InvalidFrameError):
        if not frames:
            raise
    finally:
        PyBuffer_Release(&view)
    return frames, offset
