"""The codec twins and the codecs of other packages on the same work, by pytest-benchmark.

The exchange is a realistic one: a NOTIFY with six arguments, 600 bytes of headers among them,
is decoded and an ACK that sets one variable is encoded. Each round lasts a millisecond, so that
reading the clock does not count.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from spop import Message, _codec_py
from spop.values import Value

ARGUMENTS: dict[str, Value] = {
    "ip": IPv4Address("127.0.3.7"),
    "port": 50123,
    "method": "GET",
    "path": "/some/path/to/a/resource",
    "ssl": True,
    "headers": ("x-header: some value of a header\r\n" * 18)[:600],
}
NOTIFY = bytes(_codec_py.encode_notify(1234, 1, [Message("check-request", ARGUMENTS)]))
SMALL_NOTIFY = bytes(
    _codec_py.encode_notify(1234, 1, [Message("check-client-ip", ip=ARGUMENTS["ip"])])
)
ACK = bytes(_codec_py.encode_ack(1234, 1, {"sess.ip_score": 7}))

Exchange = Callable[[bytes], bytes]


def spop_codec(name: str) -> Exchange:
    codec = importlib.import_module(name)
    decode_frames, encode_ack = codec.decode_frames, codec.encode_ack

    def exchange(frame: bytes) -> bytes:
        notify = decode_frames(frame)[0][0]
        return encode_ack(notify.stream_id, notify.frame_id, {"sess.ip_score": 7})

    return exchange


def haproxyspoa() -> Exchange:
    from haproxyspoa.payloads.ack import AckPayload, ActionVarScope
    from haproxyspoa.payloads.notify import NotifyPayload
    from haproxyspoa.spoa_data_types import parse_varint
    from haproxyspoa.spoa_frame import Frame, FrameType

    class Writer:
        def __init__(self) -> None:
            self.written = bytearray()

        def write(self, data: bytes) -> None:
            self.written += data

        async def drain(self) -> None:
            pass

    def exchange(data: bytes) -> bytes:
        # As Frame.read_frame() does, without its waiting.
        buffer = io.BytesIO(data)
        int.from_bytes(buffer.read(4), "big")
        type_, flags = int.from_bytes(buffer.read(1), "big"), int.from_bytes(buffer.read(4), "big")
        stream_id, frame_id = parse_varint(buffer), parse_varint(buffer)
        frame = Frame(type_, flags, stream_id, frame_id, buffer)
        NotifyPayload(frame.payload)
        ack = AckPayload().set_var(ActionVarScope.SESSION, "ip_score", 7)
        writer = Writer()
        frame = Frame(FrameType.ACK, 1, stream_id, frame_id, ack.to_bytes())
        with contextlib.suppress(StopIteration):
            frame.write_frame(writer).send(None)
        return bytes(writer.written)

    return exchange


def spoe_forge() -> Exchange:
    from spoe_forge import ActionScope, SetVarAction
    from spoe_forge.spop.constants import FrameType
    from spoe_forge.spop.frame import Frame

    class Reader:
        def __init__(self, data: bytes) -> None:
            self.buffer = io.BytesIO(data)

        async def readexactly(self, size: int) -> bytes:
            return self.buffer.read(size)

    def decode(data: bytes) -> Any:
        try:
            Frame.decode(Reader(data), 16380).send(None)
        except StopIteration as stop:
            return stop.value

    def exchange(data: bytes) -> bytes:
        frame = decode(data)
        action = SetVarAction(ActionScope.SESSION, "ip_score", 7)
        ack = Frame.construct(
            FrameType.ACK,
            stream_id=frame.metadata.stream_id,
            frame_id=frame.metadata.frame_id,
            actions=[action],
        )
        return ack.encode(16380)

    return exchange


CODECS: dict[str, Callable[[], Exchange]] = {
    "spop, compiled": lambda: spop_codec("spop._codec"),
    "spop, pure Python": lambda: spop_codec("spop._codec_py"),
    "haproxyspoa": haproxyspoa,
    "spoe-forge": spoe_forge,
}


@pytest.fixture(params=CODECS)
def exchange(request: pytest.FixtureRequest) -> Exchange:
    try:
        return CODECS[request.param]()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.benchmark(min_time=0.001, group="NOTIFY of six arguments + ACK")
def test_exchange(benchmark: Any, exchange: Exchange) -> None:
    assert len(benchmark(exchange, NOTIFY)) in (len(ACK), len(ACK) + 1)


@pytest.mark.benchmark(min_time=0.001, group="NOTIFY of one argument + ACK")
def test_small_exchange(benchmark: Any, exchange: Exchange) -> None:
    assert len(benchmark(exchange, SMALL_NOTIFY)) in (len(ACK), len(ACK) + 1)


# --- the pieces: each is encoded and decoded again ---

RoundTrip = Callable[[Any], Any]


def spop_pieces(name: str) -> dict[str, RoundTrip]:
    codec = pytest.importorskip(name)
    return {
        "varint": lambda value: codec.decode_varint(codec.encode_varint(value))[0],
        "value": lambda value: codec.decode_value(codec.encode_value(value))[0],
        "messages": lambda args: codec.decode_messages(
            codec.encode_messages([Message("check-request", args)])
        ),
        "actions": lambda actions: codec.decode_actions(codec.encode_actions(actions)),
        "frame": lambda items: codec.decode_frames(codec.encode_control(1, items)),
    }


def haproxyspoa_pieces() -> dict[str, RoundTrip]:
    types = pytest.importorskip("haproxyspoa.spoa_data_types")

    def value(value: Any) -> Any:
        return types.parse_typed_data(io.BytesIO(types.write_typed_autodetect(value)))

    return {
        "varint": lambda value: types.parse_varint(io.BytesIO(types.write_varint(value))),
        "value": value,
    }


def spoe_forge_pieces() -> dict[str, RoundTrip]:
    encoders = pytest.importorskip("spoe_forge.spop.encoders.data_types")
    decoders = pytest.importorskip("spoe_forge.spop.decoders.data_types")
    into = pytest.importorskip("spoe_forge.spop.encoders.payloads")
    out_of = pytest.importorskip("spoe_forge.spop.decoders.payloads")

    def value(value: Any) -> Any:
        return decoders.auto_decode_var(encoders.auto_encode_dt_var(value))[0]

    def messages(args: Any) -> Any:
        data = into.encode_message_list([("check-request", args)])
        return out_of.decode_list_of_messages(data, 0, len(data))

    return {
        "varint": lambda value: decoders._parse_varint(encoders._compose_varint(value))[0],
        "value": value,
        "messages": messages,
    }


PIECES: dict[str, Callable[[], dict[str, RoundTrip]]] = {
    "spop, compiled": lambda: spop_pieces("spop._codec"),
    "spop, pure Python": lambda: spop_pieces("spop._codec_py"),
    "haproxyspoa": haproxyspoa_pieces,
    "spoe-forge": spoe_forge_pieces,
}
HELLO: dict[str, Value] = {
    "supported-versions": "2.0", "max-frame-size": 16380, "capabilities": "pipelining,async",
    "engine-id": "00000000-1111-2222-3333-444444444444",
}  # fmt: skip
WORK: list[tuple[str, str, Any]] = [
    ("varint 1", "varint", 1),
    ("varint 5000", "varint", 5000),
    ("varint of 64 bits", "varint", 2**63),
    ("value: address", "value", ARGUMENTS["ip"]),
    ("value: integer", "value", 50123),
    ("value: short text", "value", "GET"),
    ("value: 600 bytes of text", "value", ARGUMENTS["headers"]),
    ("messages: six arguments", "messages", ARGUMENTS),
    ("actions: one variable", "actions", {"sess.ip_score": 7}),
    ("actions: ten variables", "actions", {f"txn.variable_{n}": n for n in range(10)}),
    ("frame: HELLO", "frame", HELLO),
]


@pytest.mark.benchmark(min_time=0.001)
@pytest.mark.parametrize(("piece", "given"), [work[1:] for work in WORK], ids=[w[0] for w in WORK])
@pytest.mark.parametrize("package", PIECES)
def test_piece(benchmark: Any, request: Any, package: str, piece: str, given: Any) -> None:
    pieces = PIECES[package]()
    if piece not in pieces:
        pytest.skip(f"{package} has no function for {piece} alone")
    benchmark.group = request.node.callspec.id.removeprefix(f"{package}-")
    benchmark.extra_info["package"] = package
    found = benchmark(pieces[piece], given)
    if piece in ("varint", "value"):
        assert found == given
    else:
        assert found
