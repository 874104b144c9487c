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
from typing import Any, NamedTuple

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


class Parts(NamedTuple):
    """What a codec is made of: there and back of varints and values, one way of the rest."""

    varint: Callable[[int], int]
    value: Callable[[Any], Any]
    messages: Callable[[bytes], Any]
    actions: Callable[[], bytes]


def spop_parts(name: str) -> Parts:
    codec = importlib.import_module(name)
    return Parts(
        lambda value: codec.decode_varint(codec.encode_varint(value))[0],
        lambda value: codec.decode_value(codec.encode_value(value))[0],
        codec.decode_messages,
        lambda: codec.encode_actions({"sess.ip_score": 7}),
    )


def haproxyspoa_parts() -> Parts:
    from haproxyspoa import spoa_data_types as types
    from haproxyspoa.payloads.ack import AckPayload, ActionVarScope
    from haproxyspoa.payloads.notify import NotifyPayload

    writers = {
        IPv4Address: types.write_typed_ipv4,
        int: types.write_typed_int64,
        str: types.write_typed_string,
    }

    def value(value: Any) -> Any:
        return types.parse_typed_data(io.BytesIO(writers[type(value)](value)))

    return Parts(
        lambda value: types.parse_varint(io.BytesIO(types.write_varint(value))),
        value,
        lambda payload: NotifyPayload(io.BytesIO(payload)),
        lambda: AckPayload().set_var(ActionVarScope.SESSION, "ip_score", 7).to_bytes().getvalue(),
    )


def spoe_forge_parts() -> Parts:
    from spoe_forge import ActionScope, SetVarAction
    from spoe_forge.spop.decoders.data_types import _parse_varint, auto_decode_var
    from spoe_forge.spop.decoders.payloads import decode_list_of_messages
    from spoe_forge.spop.encoders.data_types import _compose_varint, auto_encode_dt_var
    from spoe_forge.spop.encoders.payloads import encode_action_list

    return Parts(
        lambda value: _parse_varint(_compose_varint(value))[0],
        lambda value: auto_decode_var(auto_encode_dt_var(value))[0],
        lambda payload: decode_list_of_messages(payload, offset=0, end=len(payload)),
        lambda: encode_action_list([SetVarAction(ActionScope.SESSION, "ip_score", 7)]),
    )


PARTS: dict[str, Callable[[], Parts]] = {
    "spop, compiled": lambda: spop_parts("spop._codec"),
    "spop, pure Python": lambda: spop_parts("spop._codec_py"),
    "haproxyspoa": haproxyspoa_parts,
    "spoe-forge": spoe_forge_parts,
}


@pytest.fixture(params=PARTS)
def parts(request: pytest.FixtureRequest) -> Parts:
    try:
        return PARTS[request.param]()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")


MESSAGES = bytes(_codec_py.encode_messages([Message("check-request", ARGUMENTS)]))


@pytest.mark.benchmark(min_time=0.001, group="varint")
@pytest.mark.parametrize("value", [1, 5000, 2**40])
def test_varint(benchmark: Any, parts: Parts, value: int) -> None:
    assert benchmark(parts.varint, value)  # Not everybody decodes what they encoded.


@pytest.mark.benchmark(min_time=0.001, group="value")
@pytest.mark.parametrize(
    "value", [ARGUMENTS["ip"], 50123, "GET", ARGUMENTS["headers"]],
    ids=["address", "integer", "word", "600 bytes"],
)  # fmt: skip
def test_value(benchmark: Any, parts: Parts, value: Value) -> None:
    assert type(benchmark(parts.value, value)) is type(value)


@pytest.mark.benchmark(min_time=0.001, group="messages, decoded")
def test_messages(benchmark: Any, parts: Parts) -> None:
    assert benchmark(parts.messages, MESSAGES)


@pytest.mark.benchmark(min_time=0.001, group="actions, encoded")
def test_actions(benchmark: Any, parts: Parts) -> None:
    assert b"ip_score" in benchmark(parts.actions)
