"""The specification's tables (sections 3.1 to 3.4), on both twins."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest

import spop
from spop import UNSET, Action, Binary, Int32, Int64, Message, String, UInt32, UInt64, constants
from spop import _codec_py as python_codec
from spop.constants import ActionType, DataType, FrameFlag, FrameType, Scope, Status
from spop.errors import FragmentationError, FrameTooBigError, InvalidFrameError
from spop.frames import Ack, Control, Notify, RawFrame

# --- varints ---

VARINTS = [
    (0, "00"),
    (239, "ef"),
    (240, "f000"),
    (2287, "ff7f"),
    (2288, "f08000"),
    (264431, "ffff7f"),
    (264432, "f0808000"),
    (33818863, "ffffff7f"),
    (33818864, "f080808000"),
    (4328786159, "ffffffff7f"),
    (4328786160, "f08080808000"),
    (2**64 - 1, "fff0fefefefefefefe0e"),
]


@pytest.mark.parametrize(("value", "encoded"), VARINTS)
def test_varints_are_those_of_the_table(twin: ModuleType, value: int, encoded: str) -> None:
    raw = bytes.fromhex(encoded)
    assert twin.encode_varint(value) == raw
    assert twin.decode_varint(raw) == (value, len(raw))


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_varint_has_64_bits(twin: ModuleType, value: int) -> None:
    with pytest.raises(OverflowError):
        twin.encode_varint(value)


@pytest.mark.parametrize(
    "encoded",
    ["", "f0", "f080", "ff" * 10 + "00", "ff" * 20, "fff0fefefefefefefe1e", "fffffefefefefefefe0f"],
)
def test_a_varint_cut_short_or_too_long_is_invalid(twin: ModuleType, encoded: str) -> None:
    with pytest.raises(InvalidFrameError) as caught:
        twin.decode_varint(bytes.fromhex(encoded))
    assert caught.value.status is Status.INVALID


# --- typed data ---

VALUES: list[tuple[Any, str, Any]] = [
    (None, "00", None),
    (False, "01", False),
    (True, "11", True),
    (0, "0200", 0),
    (-1, "02fff0fefefefefefefe0e", -1),
    (2**31 - 1, "02" + python_codec.encode_varint(2**31 - 1).hex(), 2**31 - 1),
    (-(2**31), "02" + python_codec.encode_varint(2**64 - 2**31).hex(), -(2**31)),
    (2**31, "04" + python_codec.encode_varint(2**31).hex(), 2**31),
    (-(2**63), "04" + python_codec.encode_varint(2**63).hex(), -(2**63)),
    (2**63, "05" + python_codec.encode_varint(2**63).hex(), 2**63),
    (2**64 - 1, "05" + python_codec.encode_varint(2**64 - 1).hex(), 2**64 - 1),
    (Int32(5), "0205", 5),
    (UInt32(5), "0305", 5),
    (Int64(-1), "04fff0fefefefefefefe0e", -1),
    (UInt64(5), "0505", 5),
    (IPv4Address("192.0.2.1"), "06c0000201", IPv4Address("192.0.2.1")),
    (IPv6Address("::1"), "07" + "00" * 15 + "01", IPv6Address("::1")),
    ("é", "0802c3a9", "é"),
    ("", "0800", ""),
    (b"\xff", "0901ff", b"\xff"),
    (bytearray(b"a"), "090161", b"a"),
    (memoryview(b"a"), "090161", b"a"),
    (Binary(b"a"), "090161", b"a"),
    (String(b"a"), "080161", "a"),
]


@pytest.mark.parametrize(("value", "encoded", "decoded"), VALUES, ids=repr)
def test_typed_data_is_that_of_the_table(
    twin: ModuleType, value: Any, encoded: str, decoded: Any
) -> None:
    raw = bytes.fromhex(encoded)
    assert twin.encode_value(value) == raw
    result, offset = twin.decode_value(b"?" + raw + b"?", 1)
    assert (result, offset) == (decoded, 1 + len(raw))
    assert type(result) is type(decoded)


def test_strings_that_are_no_utf8_survive(twin: ModuleType) -> None:
    raw = bytes.fromhex("0803ff41fe")
    text, _ = twin.decode_value(raw)
    assert text == "\udcffA\udcfe"
    assert twin.encode_value(text) == raw


@pytest.mark.parametrize("type_", range(10, 16))
def test_reserved_types_are_invalid(twin: ModuleType, type_: int) -> None:
    with pytest.raises(InvalidFrameError, match=f"reserved data type {type_}"):
        twin.decode_value(bytes([type_, 0, 0, 0]))


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "02",
        "06c00002",
        "07" + "00" * 15,
        "0805616263",
        "09f0",
        "02" + "f0808080800f",
        "03fff0fe",
    ],
)
def test_typed_data_cut_short_is_invalid(twin: ModuleType, encoded: str) -> None:
    with pytest.raises(InvalidFrameError):
        twin.decode_value(bytes.fromhex(encoded))


@pytest.mark.parametrize(("type_", "value"), [(2, 2**31), (2, 2**63), (3, 2**32)])
def test_integers_out_of_their_types_range_are_invalid(
    twin: ModuleType, type_: int, value: int
) -> None:
    with pytest.raises(InvalidFrameError, match="range"):
        twin.decode_value(bytes([type_]) + twin.encode_varint(value))


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (1.5, TypeError),
        (object(), TypeError),
        (2**64, OverflowError),
        (-(2**63) - 1, OverflowError),
    ],
)
def test_values_that_no_type_can_hold_are_refused(
    twin: ModuleType, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        twin.encode_value(value)


@pytest.mark.parametrize(
    ("wrapper", "value"), [(Int32, 2**31), (UInt32, -1), (Int64, 2**63), (UInt64, -1)]
)
def test_wrappers_check_their_range(wrapper: Any, value: int) -> None:
    with pytest.raises(OverflowError, match=wrapper.__name__.upper()):
        wrapper(value)


# --- messages and actions ---


def test_a_message_is_name_count_and_arguments(twin: ModuleType) -> None:
    message = Message("m", [("ip", IPv4Address("127.0.0.1")), ("", None)])
    raw = bytes.fromhex("016d02" + "026970067f000001" + "0000")
    assert twin.encode_messages([message]) == raw
    assert twin.decode_messages(raw) == [message]


def test_arguments_are_found_by_name_and_position(twin: ModuleType) -> None:
    raw = twin.encode_messages([Message("m", [("a", 1), ("", "unnamed")])])
    (message,) = twin.decode_messages(raw)
    assert (message["a"], message[1], message.get("b", 7)) == (1, "unnamed", 7)
    assert "a" in message
    assert "b" not in message
    assert list(message) == ["a", ""]
    with pytest.raises(KeyError):
        message["b"]


def test_a_message_has_as_many_names_as_values(twin: ModuleType) -> None:
    message = Message("m", a=1, b=2)
    for values in ((1,), (1, 2, 3)):
        message.values = values
        with pytest.raises(ValueError, match=f"^message m: 2 names, {len(values)} values$"):
            twin.encode_messages([message])


def test_255_arguments_and_no_more(twin: ModuleType) -> None:
    args = [(str(number), number) for number in range(255)]
    (message,) = twin.decode_messages(twin.encode_messages([Message("m", args)]))
    assert message.args == args
    with pytest.raises(ValueError, match="256 arguments"):
        twin.encode_messages([Message("m", [*args, ("more", 1)])])


def test_set_var_and_unset_var_are_those_of_the_table(twin: ModuleType) -> None:
    raw = bytes.fromhex("010301" + "0161" + "0205" + "020202" + "0162")
    actions = [Action("sess", "a", 5), Action("txn", "b", UNSET)]
    assert twin.encode_actions(actions) == raw
    assert twin.encode_actions({"sess.a": 5, "txn.b": UNSET}) == raw
    decoded = twin.decode_actions(raw)
    assert decoded == actions
    assert set(decoded) == set(actions), "equal actions have the same hash"


@pytest.mark.parametrize("packed", [b"", b"abc", b"abcde", b"a" * 17, None, "abcd", bytearray(4)])
@pytest.mark.parametrize("kind", [IPv4Address, IPv6Address])
def test_an_address_of_another_length_than_its_type_is_an_error(
    twin: ModuleType, kind: type, packed: Any
) -> None:
    address = type("Odd", (kind,), {"packed": packed})(1)
    size = 4 if kind is IPv4Address else 16
    with pytest.raises(TypeError, match=rf"^Odd\.packed is not {size} bytes$"):
        twin.encode_value(address)
    out = bytearray(b"before")
    with pytest.raises(TypeError, match=rf"^sess\.a: Odd\.packed is not {size} bytes$"):
        twin.encode_actions({"sess.a": address}, out)
    assert out == b"before"


def test_none_is_null_for_the_codec_and_unset_in_an_answer(twin: ModuleType) -> None:
    null, unset = bytes.fromhex("0103010161" + "00"), bytes.fromhex("0202010161")
    for actions in ({"sess.a": None}, MappingProxyType({"sess.a": None})):
        assert (twin.encode_actions(actions), twin.encode_answer(actions)) == (null, unset)
    actions = [Action("sess", "a", None)]
    assert (twin.encode_actions(actions), twin.encode_answer(actions)) == (null, unset)
    assert twin.encode_ack(1, 1, actions).endswith(null)
    assert twin.encode_answer({"sess.a": UNSET}) == unset
    assert twin.encode_answer({"sess.a": False, "sess.b": 0, "sess.c": ""}) == (
        twin.encode_actions({"sess.a": False, "sess.b": 0, "sess.c": ""})
    )


@pytest.mark.parametrize(
    ("scope", "number"), [("proc", 0), ("sess", 1), ("txn", 2), ("req", 3), ("res", 4)]
)
def test_scopes_are_those_of_the_table(twin: ModuleType, scope: str, number: int) -> None:
    assert twin.encode_actions({f"{scope}.x": None})[2] == number


@pytest.mark.parametrize(
    "encoded",
    ["0103", "010201016100", "030301016100", "010305016100", "0203010161", "01030101610a"],
    ids=["short", "set of 2", "type 3", "scope 5", "unset of 3", "reserved value"],
)
def test_unknown_actions_are_invalid(twin: ModuleType, encoded: str) -> None:
    with pytest.raises(InvalidFrameError):
        twin.decode_actions(bytes.fromhex(encoded))


@pytest.mark.parametrize("variable", ["x", "sess.", "sess", "nope.x", "sess.a-b", "sess.a b", ""])
def test_a_variable_needs_a_scope_and_a_valid_name(twin: ModuleType, variable: str) -> None:
    with pytest.raises(ValueError, match="names no variable"):
        twin.encode_actions({variable: 1})


def test_errors_name_the_variable(twin: ModuleType) -> None:
    with pytest.raises(TypeError, match=r"sess\.score: float"):
        twin.encode_actions({"sess.score": 1.5})
    with pytest.raises(OverflowError, match=r"txn\.n: "):
        twin.encode_actions({"txn.n": 2**70})
    with pytest.raises(TypeError, match="arg: list"):
        twin.encode_messages([Message("m", {"arg": []})])  # type: ignore[dict-item]


def test_what_fails_to_encode_leaves_the_buffer_as_it_was(twin: ModuleType) -> None:
    out = bytearray(b"before")
    for encode in (
        lambda: twin.encode_ack(1, 1, {"sess.a": 1, "sess.b": object()}, out),
        lambda: twin.encode_notify(1, 1, [Message("m", a=1), Message("n", b=object())], out),  # type: ignore[arg-type]
        lambda: twin.encode_kv_list({"a": 1, "b": object()}, out),
        lambda: twin.encode_ack(-1, 1, {}, out),
        lambda: twin.encode_ack(1, 2**64, {}, out),
        lambda: twin.encode_raw_frame(0, 0, 1, 1, None, out),
    ):
        with pytest.raises((TypeError, OverflowError)):
            encode()
        assert out == b"before"


# --- frames ---

FRAMES = [
    Notify(300, 2, [Message("m", a=1), Message("n")]),
    Ack(2**32, 0, [Action("req", "x", "y")]),
    Ack(1, 1, aborted=True),
    Control(FrameType.HAPROXY_HELLO, {"supported-versions": "2.0", "healthcheck": True}),
    Control(FrameType.AGENT_DISCONNECT, {"status-code": 0, "message": "normal"}),
    RawFrame(FrameType.NOTIFY, 0, 1, 1, b"first fragment"),
    RawFrame(FrameType.UNSET, FrameFlag.FIN, 1, 1, b"last fragment"),
    RawFrame(77, FrameFlag.FIN, 1, 1, b"of the future"),
]


@pytest.mark.parametrize("flags", [0, FrameFlag.ABORT], ids=["none", "ABORT"])
def test_a_frame_needs_no_fin_where_all_are_whole(twin: ModuleType, flags: int) -> None:
    frames = [
        Notify(1, 2, [Message("m", a=1)]),
        Ack(1, 2, [Action("sess", "x", 1)], bool(flags)),
        Control(FrameType.HAPROXY_DISCONNECT, {"message": "normal"}),
    ]
    data = bytearray()
    for frame in frames:
        encoded = twin.encode_frame(frame)
        encoded[8] = flags
        data += encoded
    assert twin.decode_frames(data, whole=True) == (frames, len(data))


@pytest.mark.parametrize("little_endian", [False, True], ids=["SPOP 2.0", "SPOP 1.0"])
@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_frames_come_back_as_they_went(twin: ModuleType, buffer: Any, little_endian: bool) -> None:
    out = bytearray()
    for frame in FRAMES:
        assert twin.encode_frame(frame, out, little_endian=little_endian) is out
    decoded, consumed = twin.decode_frames(buffer(bytes(out)), little_endian=little_endian)
    assert (decoded, consumed) == (FRAMES, len(out))


def test_the_length_does_not_count_itself_and_flags_are_in_network_order(twin: ModuleType) -> None:
    assert twin.encode_ack(1, 2).hex() == "00000007" + "67" + "00000001" + "01" + "02"
    assert twin.encode_ack(1, 2, little_endian=True)[5:9].hex() == "01000000"
    assert twin.encode_ack(1, 2, abort=True)[5:9].hex() == "00000003"


SET = bytes.fromhex("01 03 01 01 61 11")
"""set-var sess.a = true."""


@pytest.mark.parametrize(
    ("odd", "further"),
    [
        ("09 01 78", False),
        ("01 03 09 01 78 11", False),
        ("01 04 01 01 78 11", False),
        ("02 03 01 01 78 11", False),
        ("01 03 01 01 78 0b", True),
        ("01 03 01 7f 78", False),
        ("01 09", False),
        ("01 03 01 01 78 08 7f 61", False),
    ],
    ids=["action", "scope", "count", "count-unset", "type", "name-cut", "head-cut", "value-cut"],
)
def test_lenient_takes_the_actions_before_one_that_is_malformed(
    twin: ModuleType, odd: str, further: bool
) -> None:
    """As HAProxy 2.6 and 3.4. Behind a reserved type they read on."""
    frame = twin.encode_raw_frame(
        FrameType.ACK, FrameFlag.FIN, 1, 1, SET + bytes.fromhex(odd) + SET
    )
    with pytest.raises(InvalidFrameError):
        twin.decode_frames(frame)
    ((ack,), _) = twin.decode_frames(frame, lenient=True)
    assert ack.variables == {"sess.a": True}
    assert (len(ack.actions), ack.ignored) == (2 if further else 1, 1)


def test_lenient_takes_integers_out_of_the_range_of_their_type(twin: ModuleType) -> None:
    values = {"02": (2**32 - 1, 2**40, -(2**40)), "03": (2**32, 2**64 - 5)}
    for type_, numbers in values.items():
        for number in numbers:
            data = bytes.fromhex(f"01 03 01 01 78 {type_}") + twin.encode_varint(number % 2**64)
            frame = twin.encode_raw_frame(FrameType.ACK, FrameFlag.FIN, 1, 1, data)
            with pytest.raises(InvalidFrameError):
                twin.decode_frames(frame)
            assert twin.decode_frames(frame, lenient=True)[0][0].variables == {"sess.x": number}
            items = b"\x01x" + data[5:] + b"\x01r\x0c"
            hello = twin.encode_raw_frame(FrameType.AGENT_HELLO, FrameFlag.FIN, 0, 0, items)
            assert twin.decode_frames(hello, lenient=True)[0][0].items == {"x": number, "r": None}


def test_lenient_changes_nothing_for_a_notify(twin: ModuleType) -> None:
    data = bytes.fromhex("01 6d 01 01 78 02 fff0fefe7e")
    frame = twin.encode_raw_frame(FrameType.NOTIFY, FrameFlag.FIN, 1, 1, data)
    with pytest.raises(InvalidFrameError):
        twin.decode_frames(frame, lenient=True)


def test_a_partial_last_frame_is_left(twin: ModuleType) -> None:
    whole, partial = twin.encode_ack(1, 1), twin.encode_ack(2, 2)
    for cut in range(len(partial)):
        frames, consumed = twin.decode_frames(whole + partial[:cut])
        assert (frames, consumed) == ([Ack(1, 1)], len(whole))


def test_decoding_stays_between_start_and_end(twin: ModuleType) -> None:
    frame = twin.encode_ack(1, 1)
    data = b"xx" + frame + frame
    assert twin.decode_frames(data, 2, 2 + len(frame)) == ([Ack(1, 1)], 2 + len(frame))
    for start, end in ((-1, 2), (3, 2), (0, len(data) + 1)):
        with pytest.raises(ValueError, match="outside"):
            twin.decode_frames(data, start, end)


def test_decoded_messages_know_their_frame(twin: ModuleType) -> None:
    ((notify,), _) = twin.decode_frames(twin.encode_notify(7, 8, [Message("m")]))
    message = notify.messages[0]
    assert (message.stream_id, message.frame_id, message.engine_id) == (7, 8, None)


def test_frames_before_a_bad_one_are_not_lost(twin: ModuleType) -> None:
    good = bytes(twin.encode_ack(1, 1))
    bad = bytes.fromhex("00000006") + bytes(6)
    assert twin.decode_frames(good + bad) == ([Ack(1, 1)], len(good))
    with pytest.raises(InvalidFrameError, match="6 bytes"):
        twin.decode_frames(good + bad, len(good))


def frame(type_: int, flags: int, ids: str, payload: str = "") -> bytes:
    body = bytes([type_]) + flags.to_bytes(4, "big") + bytes.fromhex(ids + payload)
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("data", "error", "status"),
    [
        (bytes.fromhex("7fffffff"), FrameTooBigError, Status.TOO_BIG),
        (frame(103, 0, "0101"), FragmentationError, Status.FRAGMENTATION_NOT_SUPPORTED),
        (frame(1, 0, "0000"), FragmentationError, Status.FRAGMENTATION_NOT_SUPPORTED),
        (frame(1, 1, "0100"), InvalidFrameError, Status.INVALID),
        (frame(102, 1, "0001"), InvalidFrameError, Status.INVALID),
        (frame(3, 2, "0101"), InvalidFrameError, Status.INVALID),
        (frame(3, 1, "01f0"), InvalidFrameError, Status.INVALID),
        (frame(3, 1, "0101", "016d"), InvalidFrameError, Status.INVALID),
        (frame(3, 1, "0101", "016d01"), InvalidFrameError, Status.INVALID),
        (frame(3, 1, "0101", "ef6d"), InvalidFrameError, Status.INVALID),
    ],
    ids=[
        "too big", "fragmented ACK", "fragmented HELLO", "HELLO of a stream",
        "DISCONNECT of a frame", "ABORT without FIN", "frame-id cut short",
        "no argument count", "no argument", "name past the end",
    ],
)  # fmt: skip
def test_bad_frames_have_their_status(
    twin: ModuleType, data: bytes, error: type[Exception], status: Status
) -> None:
    with pytest.raises(error) as caught:
        twin.decode_frames(data)
    assert caught.value.status is status  # type: ignore[attr-defined]


@pytest.mark.parametrize(("type_", "flags"), [(256, 0), (-1, 0), (3, 2**32), (3, -1)])
def test_a_type_of_frame_has_8_bits_and_flags_have_32(
    twin: ModuleType, type_: int, flags: int
) -> None:
    out = bytearray(b"before")
    with pytest.raises(OverflowError, match=f"^{flags or type_} is not in 0 to "):
        twin.encode_raw_frame(type_, flags, 1, 1, b"", out)
    if not flags:
        with pytest.raises(OverflowError, match=f"^{type_} is not in 0 to 255"):
            twin.encode_control(type_, {}, out)
    assert out == b"before"
    assert twin.encode_raw_frame(255, 2**32 - 1, 0, 0, b"").hex() == "00000007ffffffffff0000"


def test_a_frame_of_exactly_the_limit_is_taken(twin: ModuleType) -> None:
    data = twin.encode_raw_frame(0, 0, 1, 1, bytes(249))
    assert len(data) == 4 + 256
    assert len(twin.decode_frames(data, max_frame_size=256)[0]) == 1
    with pytest.raises(FrameTooBigError):
        twin.decode_frames(data, max_frame_size=255)


# --- numbers ---

SOURCES = Path(spop.__file__).parent


def numbers_of(declarations: str) -> dict[str, int]:
    """The names in the enums of a .pxd, with what they are there."""
    text = (SOURCES / declarations).read_text()
    found = re.findall(r"^ +([A-Z][A-Z0-9_]*) = (\w+)$", text, re.MULTILINE)
    return {name: int(number, 0) for name, number in found}


def test_the_compiled_numbers_are_those_of_the_constants() -> None:
    """All members of each enum of frames and typed data are there, and nothing else is."""
    typed_data = numbers_of("_typed_data.pxd")
    alone = {name: number for name, number in typed_data.items() if not name.startswith("T_")}
    assert {f"T_{member.name}": member.value for member in DataType} | alone == typed_data

    frames = numbers_of("_codec.pxd")
    members = [*FrameType, *FrameFlag, *ActionType]
    expected = {member.name: member.value for member in members}
    expected["UNSET_FRAME"] = expected.pop("UNSET")
    expected["LAST_SCOPE"] = max(Scope)
    assert expected.items() <= frames.items()
    alone |= {name: number for name, number in frames.items() if name not in expected}
    assert alone == {name: getattr(constants, name) for name in alone}


def test_the_compiled_cells_are_those_of_the_counters() -> None:
    _dispatch = pytest.importorskip("spop._dispatch")
    assert all(python == compiled for python, compiled in _dispatch.C_CELLS)
