"""How bytes are cut into pieces makes no difference to what a connection receives."""

from __future__ import annotations

import tracemalloc
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from implementations import intake_class
from streams import Taken, cut, implementations, streams

from spop import Message, codec
from spop.constants import MAX_CONTROL_SIZE, FrameType
from spop.errors import FrameTooBigError


def taken(pieces: list[bytes], dispatch: Any, **limits: int) -> dict[str, Any]:
    connection = Taken(dispatch, **limits)
    for piece in pieces:
        if not connection.is_over:
            connection.feed(piece)
    return connection.outcome()


@given(
    streams(),
    st.lists(st.integers(0, 5000), max_size=10),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 200, 2**18]),
)
def test_frames_answers_and_errors_are_those_of_all_bytes_at_once(
    data: bytes, places: list[int], max_in_flight: int, max_answer_size: int
) -> None:
    limits = {"max_in_flight": max_in_flight, "max_answer_size": max_answer_size}
    expected = taken([data], implementations()[0][0])
    for dispatch, _ in implementations():
        for pieces in ([data], cut(data, places)):
            assert taken(pieces, dispatch, **limits) == expected


@given(streams())
def test_bytes_may_come_one_at_a_time(data: bytes) -> None:
    expected = taken([data], implementations()[0][0])
    for dispatch, _ in implementations():
        assert taken([bytes([byte]) for byte in data], dispatch) == expected


@pytest.mark.parametrize("size", [50, 1000, 65536])
def test_an_intake_keeps_no_more_memory_than_its_limits_and_one_read(
    dispatch: ModuleType, size: int
) -> None:
    """A payload that never ends, and behind it a frame that never ends."""
    max_frame_size, max_payload_size = 40_000, 150_000
    intake = intake_class(dispatch)(max_frame_size, max_payload_size)
    intake.is_open = intake.takes_fragments = True
    dispatcher = dispatch.Dispatcher(None)
    fragment = codec.encode_raw_frame(FrameType.NOTIFY, 0, 1, 1, bytes(max_frame_size - 7))
    data = fragment + fragment.replace(b"\3", b"\0", 1) * 2
    data += codec.encode_raw_frame(FrameType.UNSET, 0, 1, 1, bytes(max_frame_size - 7))[:-1]
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    most = 0
    tracemalloc.start()
    dispatcher.receive(intake, b"")
    before = tracemalloc.get_traced_memory()[0]
    for piece in pieces:
        assert dispatcher.receive(intake, piece) == ([], b"")
        most = max(most, tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    # A bytearray has an eighth in reserve; the rest is what Python itself has to do.
    reserve = (max_frame_size + max_payload_size) // 8 if "_py" in dispatch.__name__ else 0
    assert most < max_frame_size + max_payload_size + reserve + size + 2000
    assert intake.size > 3.9 * max_frame_size


@pytest.mark.parametrize("type_", [FrameType.HAPROXY_HELLO, FrameType.HAPROXY_DISCONNECT])
def test_a_control_frame_is_shorter_than_other_frames_may_be(
    dispatch: ModuleType, type_: FrameType
) -> None:
    intake = intake_class(dispatch)(100_000)
    intake.is_open = True
    dispatcher = dispatch.Dispatcher(None)
    notify = codec.encode_notify(1, 1, [Message("m", [("body", bytes(50_000))])])
    assert len(dispatcher.receive(intake, notify)[0]) == 1
    intake.in_flight = 0
    fits = codec.encode_control(type_, {"message": "x" * (MAX_CONTROL_SIZE - 50)})
    assert len(dispatcher.receive(intake, fits)[0]) == 1
    too_big = codec.encode_control(type_, {"message": "x" * MAX_CONTROL_SIZE})
    with pytest.raises(FrameTooBigError, match=f"{MAX_CONTROL_SIZE} at most"):
        dispatcher.receive(intake, too_big)
