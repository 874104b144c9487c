"""The dispatcher of both implementations at its limits: what it refuses, and how."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from types import ModuleType
from typing import Any

import pytest
from implementations import intake_class, route_class

from spop import Ack, Message, codec
from spop.constants import FrameType, Status
from spop.counters import Cell, new_row
from spop.errors import FrameTooBigError, InterlacedFramesError, InvalidFrameError
from spop.parameters import LEFT, Parameter

NOTIFY = bytes(codec.encode_notify(1, 1, [Message("m")]))


def open_intake(dispatch: ModuleType) -> Any:
    intake = intake_class(dispatch)(16380)
    intake.is_open = intake.takes_fragments = True
    return intake


def test_a_handler_cannot_use_the_dispatcher_that_runs_it(dispatch: ModuleType) -> None:
    failures: list[BaseException] = []
    intake, other = open_intake(dispatch), open_intake(dispatch)
    route = route_class(dispatch)("m", lambda: dispatcher.receive(other, NOTIFY))
    dispatcher = dispatch.Dispatcher([route], lambda name, error: failures.append(error))
    frames, acks = dispatcher.receive(intake, NOTIFY)
    assert not frames
    assert codec.decode_frames(acks)[0][0].stream_id == 1  # type: ignore[union-attr]
    assert [type(error) for error in failures] == [RuntimeError]
    dispatcher.receive(other, NOTIFY)
    assert len(failures) == 2, "it can be used again"


@pytest.mark.parametrize("end", [-1, len(NOTIFY) + 1])
def test_an_end_outside_of_the_buffer_is_the_callers_mistake(
    dispatch: ModuleType, end: int
) -> None:
    with pytest.raises(ValueError, match=f"end is {end}, outside a buffer of {len(NOTIFY)} bytes"):
        dispatch.Dispatcher([]).receive(open_intake(dispatch), NOTIFY, end)


def test_a_row_has_cells_for_each_route(dispatch: ModuleType) -> None:
    routes = [route_class(dispatch)("m", lambda: None), route_class(dispatch)("n", lambda: None)]
    with pytest.raises(ValueError, match="too few cells"):
        dispatch.Dispatcher(routes, cells=new_row(1))
    dispatch.Dispatcher(routes, cells=new_row(2))


@pytest.mark.parametrize("keyword_only", [False, True])
def test_a_deferred_call_has_any_number_of_parameters(
    dispatch: ModuleType, keyword_only: bool
) -> None:
    def handler(*args: int, **named: int) -> tuple[int, int]:
        return len(args), len(named)

    parameters = [Parameter(f"a{n}", default=n, keyword_only=keyword_only) for n in range(300)]
    route = route_class(dispatch)("m", handler, parameters, LEFT)
    ((deferred,), _) = dispatch.Dispatcher([route]).receive(open_intake(dispatch), NOTIFY)
    (call,) = deferred.calls
    assert call.run() == ((0, 300) if keyword_only else (300, 0))


def test_a_whole_notify_amid_a_payload_is_interlaced_though_it_is_malformed(
    dispatch: ModuleType,
) -> None:
    intake, dispatcher = open_intake(dispatch), dispatch.Dispatcher([])
    dispatcher.receive(intake, codec.encode_raw_frame(FrameType.NOTIFY, 0, 1, 1, b"\x01m"))
    malformed = codec.encode_raw_frame(FrameType.NOTIFY, 1, 2, 1, b"\xff")
    with pytest.raises(InterlacedFramesError) as caught:
        dispatcher.receive(intake, malformed)
    assert caught.value.status == Status.INTERLACED_FRAMES


@pytest.mark.parametrize("address", [IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")])
def test_a_deferred_call_has_plain_addresses(dispatch: ModuleType, address: Any) -> None:
    """As it outlives the bytes that an inline handler's address refers to."""
    route = route_class(dispatch)("m", lambda ip: ip, [Parameter("ip")], LEFT)
    notify = codec.encode_notify(1, 1, [Message("m", ip=address)])
    ((deferred,), _) = dispatch.Dispatcher([route]).receive(open_intake(dispatch), notify)
    assert type(deferred.calls[0].run()) is type(address)
    assert deferred.calls[0].run() == address


def test_an_ack_that_fits_no_frame_of_another_connection_is_empty(dispatch: ModuleType) -> None:
    """A connection may end before its calls. Another one of the engine may have smaller frames."""
    failures: list[BaseException] = []
    route = route_class(dispatch)("m", lambda: None, (), LEFT)
    dispatcher = dispatch.Dispatcher([route], lambda name, error: failures.append(error))
    dispatcher.path = object()
    first, second = open_intake(dispatch), open_intake(dispatch)
    dispatcher.receive(first, NOTIFY)
    (deferred,) = dispatcher.take_back(first)
    deferred.actions = bytes(codec.encode_answer({"txn.a": "a" * 500}))
    second.max_frame_size = 256
    dispatcher.acknowledge(second, deferred, object())
    assert codec.decode_frames(second.take_acks())[0] == [Ack(1, 1)]
    assert [type(error) for error in failures] == [FrameTooBigError]


def test_a_malformed_payload_of_fragments_is_refused_after_what_was_before(
    dispatch: ModuleType,
) -> None:
    route = route_class(dispatch)("m", lambda: None)
    intake, dispatcher = open_intake(dispatch), dispatch.Dispatcher([route])
    begun = codec.encode_raw_frame(FrameType.NOTIFY, 0, 2, 1, b"\x01m")
    dispatcher.receive(intake, NOTIFY + begun[:-1])
    malformed = b"m" + codec.encode_raw_frame(FrameType.UNSET, 1, 2, 1, b"\x01\x01a\xff")
    with pytest.raises(InvalidFrameError):
        dispatcher.receive(intake, malformed)


def test_a_message_without_its_argument_count_is_refused(dispatch: ModuleType) -> None:
    notify = codec.encode_raw_frame(FrameType.NOTIFY, 1, 1, 1, b"\x01m")
    with pytest.raises(InvalidFrameError, match="message without its argument count at byte"):
        dispatch.Dispatcher([]).receive(open_intake(dispatch), notify)


def test_a_call_that_is_settled_twice_is_answered_once(dispatch: ModuleType) -> None:
    intake = open_intake(dispatch)
    dispatcher = dispatch.Dispatcher([route_class(dispatch)("m", lambda: None, (), LEFT)])
    dispatcher.path = object()
    dispatcher.receive(intake, NOTIFY)
    call = dispatcher.left.pop()
    for _ in range(2):
        dispatcher.settle(call, {}, None)
    assert codec.decode_frames(intake.take_acks())[0] == [Ack(1, 1)]


def test_an_ack_that_cannot_be_kept_ends_its_connection(dispatch: ModuleType) -> None:
    """As where there is no memory for it: HAProxy would wait for an ACK that never comes."""

    class Path:
        def fail(self, error: BaseException) -> None:
            failures.append(error)

    def refuse() -> None:
        raise MemoryError

    failures: list[BaseException] = []
    intake, row = open_intake(dispatch), new_row(1)
    route = route_class(dispatch)("m", lambda: None, (), LEFT)
    dispatcher = dispatch.Dispatcher([route], cells=row)
    dispatcher.path = Path()
    dispatcher.receive(intake, NOTIFY)
    intake.memory.room, intake.memory.exceeded = 0, refuse
    dispatcher.settle(dispatcher.left.pop(), {}, None)
    assert [type(error) for error in failures] == [MemoryError]
    assert row[Cell.ACKS_DROPPED] == 1
