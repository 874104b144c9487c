"""The ways in which public functions of the compiled modules fail, as calls.

Each call either raises, or its failure is told in another way: to `failed`, or in an ACK.
What a call needs is made once, so that a call leaves nothing behind but what leaks.
"""

from __future__ import annotations

import socket
from array import array
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from spop._async_call import AsyncCall
from spop._cache import Answers
from spop._dispatch import Call, Dispatcher
from spop._headers import Headers
from spop._intake import Intake, Memory
from spop._port import FastPath, FastPaths, Poller
from spop._route import Route
from spop.load._acks import take_acks

from spop import Message, codec
from spop.counters import new_row
from spop.frames import Ack, Action, Control, Notify, RawFrame
from spop.parameters import ASYNC, HEADERS, LEFT, Parameter
from spop.server import _alarm

Calls = dict[str, Callable[[], Any]]

LONG = b"\xff" * 12
INTEGERS = 0x3C


class Broken(IPv4Address):
    packed = b"\1"  # type: ignore[assignment]


class Mute:
    def __spop_binary__(self) -> bytes:
        raise LookupError("nothing to send")


def frame(payload: bytes, type_: int = 3, flags: int = 1) -> bytes:
    return bytes(codec.encode_raw_frame(type_, flags, 1, 1, payload))


def typed_data() -> Calls:
    out, big = bytearray(), "x" * 2000
    value, string, varint = codec.decode_value, codec.decode_string, codec.decode_varint
    return {
        "varint cut short": lambda: varint(b""),
        "long varint cut short": lambda: varint(b"\xff\x80"),
        "varint too long": lambda: varint(LONG),
        "varint above 64 bits": lambda: varint(b"\xff" * 9 + b"\x1f"),
        "varint's offset": lambda: varint(b"\1", 5),
        "varint of no buffer": lambda: varint("text"),  # type: ignore[arg-type]
        "varint below 0": lambda: codec.encode_varint(-1),
        "varint above 2**64": lambda: codec.encode_varint(2**64),
        "varint of a text": lambda: codec.encode_varint("1"),  # type: ignore[arg-type]
        "varint into bytes": lambda: codec.encode_varint(1, b""),  # type: ignore[arg-type]
        "string cut short": lambda: string(b"\5ab"),
        "string's length cut short": lambda: string(b"\xff"),
        "string of a number": lambda: codec.encode_string(5),  # type: ignore[arg-type]
        "string with a surrogate": lambda: codec.encode_string(big + "\ud800", out),
        "typed data of no byte": lambda: value(b""),
        "typed data of a reserved type": lambda: value(b"\x0a"),
        "STRING cut short": lambda: value(b"\x08\x05a"),
        "IPV4 cut short": lambda: value(b"\x06abc"),
        "IPV6 cut short": lambda: value(b"\x07abc"),
        "INT32 out of range": lambda: value(b"\x02" + codec.encode_varint(2**40)),
        "UINT32 out of range": lambda: value(b"\x03" + codec.encode_varint(2**40)),
        "integer too large": lambda: codec.encode_value(2**64),
        "integer too small": lambda: codec.encode_value(-(2**63) - 1),
        "value of no type": lambda: codec.encode_value(object()),  # type: ignore[arg-type]
        "address of a wrong size": lambda: codec.encode_value(Broken("1.2.3.4")),
        "binary that raises": lambda: codec.encode_value(Mute()),  # type: ignore[arg-type]
        "text with a surrogate": lambda: codec.encode_value(big + "\ud800", out),
    }


def frames_decoded() -> Calls:
    def decode(data: bytes, **limits: Any) -> Any:
        return lambda: codec.decode_frames(data, **limits)

    return {
        "frame too big": decode(b"\xff\xff\xff\xff"),
        "frame too short": decode(b"\0\0\0\1\3"),
        "frame's ids cut short": decode(b"\0\0\0\7\3\0\0\0\1\xff\x80"),
        "start outside": lambda: codec.decode_frames(b"abc", 7),
        "end outside": lambda: codec.decode_frames(b"abc", 0, 9),
        "buffer of a text": lambda: codec.decode_frames("abc"),  # type: ignore[arg-type]
        "NOTIFY without a count": decode(frame(b"\1m")),
        "NOTIFY cut short": decode(frame(b"\1m\2\1a\x08\2ab\1b\x08\x05a")),
        "HELLO with a wrong value": decode(frame(b"\1a\x08\2ab\1b\x0f", 1)),
        "ACK with a wrong action": decode(frame(b"\1\3\2\1a\x08\2ab\x09", 103)),
        "ACK with a wrong value": decode(frame(b"\1\3\2\1a\x08\2ab\1\3\2\1b\x0f", 103)),
        "ACK with a wrong scope": decode(frame(b"\1\3\x09\1a\x00", 103)),
        "ACK in fragments": decode(frame(b"", 103, 0)),
        "kv-list cut short": lambda: codec.decode_kv_list(b"\1a\x08\2ab\1b\x08\5a"),
        "kv-list of a text": lambda: codec.decode_kv_list("a"),  # type: ignore[arg-type]
        "messages cut short": lambda: codec.decode_messages(b"\1m\2\1a\x08\2ab\1b"),
        "actions cut short": lambda: codec.decode_actions(b"\1\3\2\1a\x08\2ab\1\3\2\5b"),
        "actions of no type": lambda: codec.decode_actions(b"\x09\3\2\1a\0"),
    }


def frames_encoded() -> Calls:
    good, bad = [("a", "x" * 2000)], [("a", "x" * 2000), ("b", object())]
    out = bytearray()
    any_: Any = codec
    return {
        "kv-list with a wrong value": lambda: any_.encode_kv_list(dict(bad), out),
        "kv-list with a wrong name": lambda: any_.encode_kv_list({5: 1}, out),
        "kv-list of a number": lambda: any_.encode_kv_list(5),
        "messages with a wrong value": lambda: any_.encode_messages([Message("m", bad)], out),  # type: ignore[arg-type]
        "messages with a wrong name": lambda: any_.encode_messages([Message(5, good)], out),  # type: ignore[arg-type]
        "message of too many arguments": lambda: any_.encode_messages(
            [Message("m", good * 300)], out
        ),
        "messages of a number": lambda: any_.encode_messages(5),
        "actions with a wrong value": lambda: any_.encode_actions(
            {"txn.a": "x", "txn.b": object()}, out
        ),
        "actions with a wrong name": lambda: any_.encode_actions({"txn.a": "x", "b": 1}, out),
        "actions with a wrong scope": lambda: any_.encode_actions([Action("none", "a", 1)], out),
        "actions of a number": lambda: any_.encode_actions(5),
        "answer with a wrong value": lambda: any_.encode_answer(
            {"txn.a": "x", "txn.b": object()}, out
        ),
        "NOTIFY of a negative id": lambda: any_.encode_notify(-1, 1, []),
        "NOTIFY of a text as id": lambda: any_.encode_notify(1, "1", []),
        "ACK of a large id": lambda: any_.encode_ack(2**64, 1),
        "control frame of a large type": lambda: any_.encode_control(256, {}),
        "control frame with a wrong value": lambda: any_.encode_control(1, {"a": object()}, out),
        "raw frame of large flags": lambda: any_.encode_raw_frame(3, 2**32, 1, 1, b""),
        "raw frame of a text": lambda: any_.encode_raw_frame(3, 1, 1, 1, "text", out),
        "frame of another class": lambda: any_.encode_frame(object()),
        "frame NOTIFY": lambda: any_.encode_frame(Notify(-1, 1, [])),
        "frame ACK": lambda: any_.encode_frame(Ack(-1, 1)),
        "frame HELLO": lambda: any_.encode_frame(Control(1, {"a": object()})),  # type: ignore[arg-type, dict-item]
        "frame of unknown type": lambda: any_.encode_frame(RawFrame(300, 0, 1, 1, b"")),
    }


def headers() -> Calls:
    some, bad = Headers([("a", "1")]), Headers([("a b", "1")])
    line = Headers([("a", "1\r\n")])
    any_: Any = Headers
    return {
        "list cut short": lambda: any_(b"\1a\5b"),
        "list without a name": lambda: any_(b"\0\1a\0\0"),
        "list without its end": lambda: any_(b"\1a\1b"),
        "headers of a number": lambda: any_(5),
        "headers of numbers": lambda: any_([("a", "1"), (5, "b")]),
        "headers of no pairs": lambda: any_([("a", "1"), ("a",)]),
        "no such header": lambda: some["b"],
        "header of a number": lambda: some.get(5),
        "name that is no token": lambda: bad.names(),
        "value of lines": lambda: line.__spop_binary__(),
        "added number": lambda: some.add("a", 5),
    }


def raises(*_: Any) -> Any:
    raise LookupError("as it was asked")


async def raises_later() -> Any:
    raise LookupError("as it was asked")


def unread(*ignored: Any) -> Any:
    return None


def answers(payload: bytes, route: Route | None = None, **limits: Any) -> Callable[[], Any]:
    """A NOTIFY, or what is none, to a dispatcher that goes on afterwards."""
    dispatcher = Dispatcher([] if route is None else [route], unread, **limits)

    def call() -> Any:
        intake = Intake(16380, 10_000)
        intake.is_open = intake.takes_fragments = True
        return dispatcher.receive(intake, payload)

    return call


def dispatchers() -> Calls:
    notify = bytes(codec.encode_notify(1, 1, [Message("m", a=5, b="x" * 50)]))
    error = bytes(codec.encode_actions({"txn.failed": True}))
    begun, interlaced = frame(b"\1m", 3, 0), frame(b"\1m\0", 3, 1)

    def route(function: Any, *parameters: Parameter, kind: int = 0) -> Route:
        return Route("m", function, parameters, kind, error)

    def inside() -> Any:
        return busy()

    busy = answers(notify, route(inside))
    small = answers(notify, route(lambda: {"txn.a": b"x" * 20_000}))
    any_: Any = Dispatcher
    return {
        "frame too big": answers(b"\xff\xff\xff\xff"),
        "frame too short": answers(b"\0\0\0\1\3"),
        "NOTIFY cut short": answers(frame(b"\1m\2\1a\x08\2ab\1b\x08\x05a")),
        "NOTIFY without a count": answers(frame(b"\1m\1\1a\x08\2ab\1n")),
        "too many messages": answers(frame(b"\1m\0" * 5), max_messages=2),
        "too many arguments": answers(frame(b"\1m\2\1a\0\1b\0"), max_arguments=1),
        "HELLO with a wrong value": answers(frame(b"\1a\x08\2ab\1b\x0f", 1)),
        "interlaced NOTIFY": answers(begun + interlaced),
        "interlaced fragment": answers(begun + frame(b"", 0, 1).replace(b"\1\1\1", b"\1\2\1")),
        "fragment of nothing": answers(frame(b"", 0, 1)),
        "payload too big": answers(frame(b"x" * 12_000, 3, 0)),
        "payload cut short": answers(begun + frame(b"\2\1a", 0, 1)),
        "end outside": lambda: any_().receive(Intake(256), b"", 5),
        "buffer of a text": lambda: any_().receive(Intake(256), "text"),
        "no intake": lambda: any_().receive(None, b""),
        "too few cells": lambda: any_([route(unread)], cells=new_row(0)),
        "unknown message": answers(notify),
        "handler that raises": answers(notify, route(raises)),
        "handler that uses the dispatcher": busy,
        "answer of another type": answers(notify, route(lambda: 5)),
        "answer with a wrong value": answers(
            notify, route(lambda: {"txn.a": 1, "txn.b": object()})
        ),
        "answer with a wrong name": answers(notify, route(lambda: {"a": 1})),
        "answer too large": small,
        "argument of a wrong type": answers(notify, route(unread, Parameter("a", accepts=1 << 8))),
        "argument that is missing": answers(notify, route(unread, Parameter("c"))),
        "headers that can't be read": answers(
            bytes(codec.encode_notify(1, 1, [Message("m", a=b"\1a\5b")])),
            route(unread, Parameter("a", accepts=HEADERS)),
        ),
        "call that fails later": lambda: later(notify, route(raises, kind=LEFT), LookupError("x")),
        "answer that fails later": lambda: later(notify, route(raises, kind=LEFT), None),
        "call that is taken back": lambda: taken_back(notify, route(raises, kind=LEFT)),
        "coroutine that raises": lambda: in_task(notify, route(raises_later, kind=ASYNC)),
        "ACK that fits no frame": lambda: too_late(notify, route(raises, kind=LEFT)),
    }


class Path:
    """A fast path, as far as a dispatcher knows it."""

    def fail(self, error: BaseException) -> None:
        raise error


def kept(notify: bytes, route: Route) -> tuple[Any, Any]:
    """A dispatcher that waits for a call, and its connection's intake."""
    dispatcher, intake = Dispatcher([route], unread), Intake(16380)
    intake.is_open, dispatcher.path = True, Path()
    dispatcher.receive(intake, notify)
    return dispatcher, intake


def later(notify: bytes, route: Route, error: BaseException | None) -> None:
    dispatcher, intake = kept(notify, route)
    dispatcher.settle(dispatcher.left.pop(), object(), error)
    assert intake.take_acks()


def taken_back(notify: bytes, route: Route) -> None:
    dispatcher, intake = kept(notify, route)
    (deferred,) = dispatcher.take_back(intake)
    dispatcher.result(deferred.calls[0], None, LookupError("x"), 0, 100)


def too_late(notify: bytes, route: Route) -> None:
    dispatcher, intake = kept(notify, route)
    (deferred,) = dispatcher.take_back(intake)
    deferred.actions = bytes(20_000)
    dispatcher.acknowledge(intake, deferred, Path())
    assert intake.take_acks()


def in_task(notify: bytes, route: Route) -> None:
    dispatcher, intake = Dispatcher([route], unread), Intake(16380)
    intake.is_open = True
    dispatcher.start = run_to_end
    dispatcher.receive(intake, notify)


def run_to_end(begun: Any) -> Any:
    try:
        begun.send(None)
    except StopIteration:
        return begun


def others() -> Calls:
    some: Any = Answers(2)
    memory: Any = Memory()
    memory.exceeded, memory.room = raises, -1
    any_route: Any = Route
    return {
        "cache of size 0": lambda: Answers(0),
        "answer that is no bytes": lambda: some.keep(b"a", "text", 1, 0),
        "key that is no bytes": lambda: some.find("text", 1),
        "memory beyond its room": lambda: memory.take(0),
        "intake of a text": lambda: Intake("text"),  # type: ignore[arg-type]
        "route of a number": lambda: any_route(5, raises),
        "route of wrong parameters": lambda: any_route("m", raises, [5]),
        "call with wrong values": lambda: any_route("m", unread, [Parameter("a")]).call("ab"),
        "call that raises": lambda: Call(Route("m", raises), []).run(),
        "call of no route": lambda: Call(None, [], 5),  # type: ignore[arg-type]
        "coroutine that raises": lambda: AsyncCall(raises_later(), "m").send(None),
        "coroutine that was thrown into": lambda: AsyncCall(raises_later(), "m").throw(KeyError),
        "no such attribute": lambda: AsyncCall(None, "m").cr_frame,
        "fast paths over bytes": lambda: FastPaths(Dispatcher(), b"", raises, raises, raises),
        "poller without the socket": lambda: poller.unregister(7),
        "poller with no socket": lambda: poller.register(-1, 1, raises),
        "poller that is closed": lambda: closed_poller().poll(0),
        "alarm of a text": lambda: _alarm.order("soon"),  # type: ignore[arg-type]
    }


poller = Poller()
_ended, _end = socket.socketpair()
_end.close()


def open_intake() -> Any:
    intake = Intake(256)
    intake.is_open = True
    return intake


def closed_poller() -> Any:
    found = Poller()
    found.close()
    return found


def fast_paths() -> Calls:
    """What a fast path gives to its loop."""
    shared = FastPaths(Dispatcher(), bytearray(100), unread, unread, unread)
    ended = FastPath(shared, open_intake(), _ended.fileno(), "it")
    broken = FastPath(shared, open_intake(), -1, "it")
    ended.enabled = broken.enabled = True
    return {
        "end of the stream": lambda: ended(1),
        "no socket": lambda: broken(1),
        "not reading alone": lambda: broken(3),
        "failure": lambda: broken.fail(LookupError("as it was asked")),
    }


def acks() -> Calls:
    sent, histogram = array("q", [5] * 20), array("q", bytes(8 * 2048))

    def take(data: bytes, end: int | None = None, expected: Any = None) -> Callable[[], Any]:
        size = len(data) if end is None else end
        return lambda: take_acks(data, size, 16380, 0, sent, 9, histogram, expected, [])

    any_: Any = take_acks
    return {
        "ACK too big": take(b"\xff\xff\xff\xff"),
        "ACK in fragments": take(frame(b"", 103, 0)),
        "ACK's ids cut short": take(b"\0\0\0\7\x67\0\0\0\1\xff\x80"),
        "end outside": take(b"", 5),
        "expected text": take(b"", 0, "text"),
        "buffer of a text": lambda: any_("", 0, 256, 0, sent, 9, histogram, None, []),
        "sent is read-only": lambda: any_(b"", 0, 256, 0, b"", 9, histogram, None, []),
    }


GROUPS: dict[str, Callable[[], Calls]] = {
    "typed data": typed_data,
    "frames decoded": frames_decoded,
    "frames encoded": frames_encoded,
    "headers": headers,
    "dispatchers": dispatchers,
    "fast paths": fast_paths,
    "others": others,
    "acks": acks,
}
"""The error paths by what fails."""
