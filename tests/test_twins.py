"""The twins do the same on whatever bytes and values come."""

from __future__ import annotations

import importlib
import inspect
import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from implementations import intake_class, route_class

from spop import UNSET, Message, _codec_py, _dispatch_py, _typed_data_py, codec, poller
from spop.errors import ProtocolError
from spop.parameters import HEADERS, Parameter

_codec = pytest.importorskip("spop._codec", reason="there is one implementation only")
_dispatch = pytest.importorskip("spop._dispatch")

SOURCES = Path(codec.__file__).parent
NAMES = [
    ".".join(path.relative_to(SOURCES.parent).with_suffix("").parts)
    for path in sorted(SOURCES.rglob("*.pyx"))
]
PAIRS = [(importlib.import_module(name), importlib.import_module(f"{name}_py")) for name in NAMES]

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.text(),
    st.binary(max_size=300),
    st.builds(IPv4Address, st.integers(0, 2**32 - 1)),
    st.builds(IPv6Address, st.integers(0, 2**128 - 1)),
)
headers = st.sampled_from(
    ["", "a: 1\r\nB: 2\r\n\r\n", "a b: 1", b"\0\0", b"\1a\1b\0\0", b"\1a\1\n\0\0", b"\1a\5b"]
)
names = st.text(st.characters(codec="utf-8"), max_size=20)
messages = st.lists(
    st.builds(Message, names, st.lists(st.tuples(names, values), max_size=8)), max_size=4
)
identifiers = st.integers(0, 2**64 - 1)
variables = st.from_regex(r"(proc|sess|txn|req|res)\.[a-zA-Z0-9_.]{1,10}", fullmatch=True)
actions = st.dictionaries(variables, st.one_of(values, st.just(UNSET)), max_size=6)


def public(owner: Any) -> dict[str, Any]:
    """What a module defines, or all attributes of a class."""
    own = vars(owner).items() if inspect.ismodule(owner) else inspect.getmembers(owner)
    return {
        name: value
        for name, value in own
        if not name.startswith("_")
        and (inspect.isclass(owner) or getattr(value, "__module__", None) == owner.__name__)
    }


def in_python(name: str, module: ModuleType) -> Any:
    """The twin of a compiled function or class."""
    return poller.EpollPoller if name == "Poller" else getattr(module, name)


def is_encoder(name: str) -> bool:
    return name.startswith(("encode_", "decode_"))


TWINS = [
    pytest.param(value, in_python(name, python), id=name)
    for compiled, python in PAIRS
    for name, value in public(compiled).items()
    if inspect.isroutine(value) or inspect.isclass(value)
]


def parameters(function: Any) -> list[tuple[str, Any]]:
    signature = inspect.signature(function)
    return [(p.name, p.kind) for p in signature.parameters.values()]


def parameters_of_new(cls: type) -> list[tuple[str, Any]]:
    """What a class is called with. Of a compiled one only its source tells."""
    source = SOURCES.parent.joinpath(*cls.__module__.split(".")).with_suffix(".pyx")
    text = source.read_text().partition(f"\ncdef class {cls.__name__}:")[2]
    text = text.partition("\ncdef class ")[0]
    words = re.findall(r"def __c?init__\(\s*self,?(.*?)\):\n", text, re.DOTALL)[-1].split(",")
    found, kind = [], inspect.Parameter.POSITIONAL_OR_KEYWORD
    for word in filter(None, map(str.strip, words)):
        if word == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
        else:
            found.append((word.partition("=")[0].removesuffix(" not None").split()[-1], kind))
    return found


@pytest.mark.parametrize(("compiled", "python"), PAIRS, ids=lambda module: module.__name__)
def test_they_have_the_same_functions_in_the_same_order(
    compiled: ModuleType, python: ModuleType
) -> None:
    names = [name for name in public(compiled) if name in public(python)]
    assert names == [name for name in public(python) if name in public(compiled)]
    assert set(filter(is_encoder, public(python))) <= set(names)


def test_the_codec_has_the_functions_of_both_its_modules() -> None:
    expected = [*filter(is_encoder, [*public(_typed_data_py), *public(_codec_py)])]
    assert list(filter(is_encoder, vars(codec))) == expected
    for module in (_codec, _codec_py):
        assert all(hasattr(module, name) for name in expected)


@pytest.mark.parametrize("source", sorted(SOURCES.rglob("*.pyx")), ids=lambda path: path.stem)
def test_no_line_of_a_compiled_module_is_unreachable(source: Path) -> None:
    """Cython only warns, in a build that is quiet. A merge once made a branch unreachable."""
    ends = re.compile(
        r"^( +)(?:raise|return)\b[^(\n]*(?:\(.*\))?[^(\n]*\n\1[^\s)\]}#]", re.MULTILINE
    )
    assert not ends.findall(source.read_text())


@pytest.mark.parametrize(("compiled", "python"), TWINS)
def test_they_take_the_same_parameters_and_have_the_same_attributes(
    compiled: Any, python: Any
) -> None:
    if not inspect.isclass(compiled):
        assert parameters(compiled) == parameters(python)
        return
    assert parameters_of_new(compiled) == parameters(python)
    assert public(compiled).keys() == public(python).keys()
    for name, method in public(compiled).items():
        if callable(method):
            assert parameters(method) == parameters(getattr(python, name)), name


@given(st.integers(0, 2**64 - 1))
def test_varints(value: int) -> None:
    encoded = _codec.encode_varint(value)
    assert encoded == _codec_py.encode_varint(value)
    assert (
        _codec.decode_varint(encoded) == _codec_py.decode_varint(encoded) == (value, len(encoded))
    )


@given(values)
def test_values(value: Any) -> None:
    encoded = _codec.encode_value(value)
    assert encoded == _codec_py.encode_value(value)
    assert _codec.decode_value(encoded) == _codec_py.decode_value(encoded) == (value, len(encoded))


@given(identifiers, identifiers, messages, st.booleans())
def test_notify(stream_id: int, frame_id: int, sent: list[Message], little_endian: bool) -> None:
    encoded = _codec.encode_notify(stream_id, frame_id, sent, little_endian=little_endian)
    assert encoded == _codec_py.encode_notify(
        stream_id, frame_id, sent, little_endian=little_endian
    )
    for twin in (_codec, _codec_py):
        ((notify,), consumed) = twin.decode_frames(encoded, little_endian=little_endian)
        assert (notify.stream_id, notify.frame_id) == (stream_id, frame_id)
        assert (notify.messages, consumed) == (sent, len(encoded))


@given(identifiers, identifiers, actions, st.booleans())
def test_ack(stream_id: int, frame_id: int, sent: dict[str, Any], abort: bool) -> None:
    encoded = _codec.encode_ack(stream_id, frame_id, sent, abort=abort)
    assert encoded == _codec_py.encode_ack(stream_id, frame_id, sent, abort=abort)
    for twin in (_codec, _codec_py):
        ((ack,), _) = twin.decode_frames(encoded)
        assert ack.variables == sent
        assert ack.aborted == abort


@given(actions)
def test_answers(sent: dict[str, Any]) -> None:
    encoded = _codec.encode_answer(sent)
    assert encoded == _codec_py.encode_answer(sent)
    assert encoded == codec.encode_actions(
        {name: UNSET if value is None else value for name, value in sent.items()}
    )


def outcome(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except ProtocolError as error:
        return type(error), str(error), error.status


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    frame = bytearray(_codec_py.encode_notify(draw(identifiers), 1, draw(messages)))
    frame += _codec_py.encode_ack(1, draw(identifiers), draw(actions))
    for _ in range(draw(st.integers(0, 4))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame)


@given(st.one_of(st.binary(max_size=100), damaged_frames()), *[st.booleans()] * 3)
def test_arbitrary_bytes_give_the_same_frames_or_the_same_error(
    data: bytes, little_endian: bool, whole: bool, lenient: bool
) -> None:
    limits = {
        "max_frame_size": 1000,
        "little_endian": little_endian,
        "whole": whole,
        "lenient": lenient,
    }
    compiled = outcome(_codec.decode_frames, data, **limits)
    assert compiled == outcome(_codec_py.decode_frames, data, **limits)
    for name in ("decode_kv_list", "decode_messages", "decode_actions", "decode_value"):
        compiled = outcome(getattr(_codec, name), data)
        assert compiled == outcome(getattr(_codec_py, name), data)


def dispatcher(module: Any, failures: list[str]) -> Any:
    def handler(a: Any, *, b: Any = 5) -> dict[str, Any]:
        return {"sess.a": a, "txn.b": b}

    def with_headers(a: Any = None, *, b: Any) -> dict[str, Any]:
        return {"txn.a": a, "txn.b": b.names(), "txn.c": b}

    route = route_class(module)(
        "m",
        handler,
        [Parameter("a"), Parameter("b", accepts=0x3C, default=5, keyword_only=True)],
        on_error=bytes(codec.encode_actions({"txn.failed": True})),
    )
    other = route_class(module)(
        "h",
        with_headers,
        [Parameter("a", accepts=HEADERS | 1), Parameter("b", accepts=HEADERS, keyword_only=True)],
    )
    large = route_class(module)(
        "large", lambda: {"txn.large": bytes(200)},
        on_error=bytes(codec.encode_actions({"txn.too_large": "x" * 30})),
    )  # fmt: skip
    return module.Dispatcher(
        [route, other, large],
        lambda name, error: failures.append(f"{name}: {error}"),
        on_unknown=bytes(codec.encode_actions({"txn.unknown": True})),
    )


def open_intake(module: Any, max_frame_size: int, max_payload_size: int = 10**6) -> Any:
    intake = intake_class(module)(max_frame_size, max_payload_size)
    intake.max_in_flight = 10
    intake.is_open = True
    return intake


@given(
    st.lists(
        st.builds(
            Message,
            st.sampled_from(["m", "h", "unknown", "large"]),
            st.lists(
                st.tuples(st.sampled_from(["a", "b", "c", "a"]), st.one_of(values, headers)),
                max_size=4,
            ),
        ),
        max_size=4,
    ),
    st.sampled_from([300, 16380]),
    st.integers(-3, 0),
)
def test_dispatchers_send_the_same_bytes(
    sent: list[Message], max_frame_size: int, missing: int
) -> None:
    frame = _codec_py.encode_notify(1, 2, sent)
    data = bytes(frame + frame)
    end = len(data) + missing
    results = []
    for module in (_dispatch_py, _dispatch):
        failures: list[str] = []
        subject = dispatcher(module, failures)
        intake = open_intake(module, max_frame_size)
        # The compiled one has learned the names the second time.
        answers = [outcome(subject.receive, intake, data, end) for _ in range(3)]
        state = answers, intake.unread, intake.size, intake.in_flight
        results.append((state, failures, list(subject.cells[:64]), subject.unknown))
    assert results[0] == results[1]


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """Payloads in fragments, whole NOTIFYs, and what may not be: parts swapped, lost, damaged."""
    frames = []
    for stream_id in range(1, draw(st.integers(1, 3)) + 1):
        payload = bytes(_codec_py.encode_messages(draw(messages)))
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for index, part in enumerate(parts):
            final = index == len(parts) - 1
            flags = 1 if final else draw(st.sampled_from([0, 0, 0, 0, 3]) if index else st.just(0))
            type_ = 3 if index == 0 else 0
            frames.append(bytes(_codec_py.encode_raw_frame(type_, flags, stream_id, 1, part)))
    if draw(st.integers(0, 3)) == 0:
        frames = draw(st.permutations(frames))
    data = bytearray(b"".join(frames))
    if draw(st.integers(0, 3)) == 0:
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(
    fragmented(),
    st.lists(st.integers(0, 400), max_size=4),
    st.sampled_from([40, 10_000]),
    st.booleans(),
    st.booleans(),
)
def test_dispatchers_put_the_same_payloads_together(
    data: bytes, cuts: list[int], max_size: int, allowed: bool, whole: bool
) -> None:
    """Whatever the pieces are in which the bytes arrive."""
    places = sorted(min(cut, len(data)) for cut in cuts)
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    results = []
    for module in (_dispatch_py, _dispatch):
        failures: list[str] = []
        subject = dispatcher(module, failures)
        intake = open_intake(module, 10**6, max_size)
        intake.takes_fragments = allowed
        intake.whole = whole
        found = []
        for piece in [*pieces, b"", b""]:
            answer = outcome(subject.receive, intake, piece)
            found.append((answer, intake.unread, intake.size, intake.begun, intake.at_rest))
            if isinstance(answer[0], type):
                break
        results.append((found, failures, list(subject.cells[:64])))
    assert results[0] == results[1]
