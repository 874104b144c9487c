"""The bytes of HAProxy 1.7, which sets no flags, not even FIN."""

from __future__ import annotations

from typing import Any

from spop import Message, codec
from spop.constants import FrameType
from spop.values import UInt32

HEALTH_CHECK = bytes.fromhex(
    "0000004e 01 00000000 00 00"
    "12 737570706f727465642d76657273696f6e73 08 03 312e30"  # supported-versions: "1.0"
    "0e 6d61782d6672616d652d73697a65 03 f0f106"  # max-frame-size: 16384
    "0c 6361706162696c6974696573 08 00"  # capabilities: ""
    "0b 6865616c7468636865636b 11"  # healthcheck: true
)
DISCONNECT = bytes(
    codec.encode_raw_frame(
        FrameType.HAPROXY_DISCONNECT,
        0,
        0,
        0,
        codec.encode_kv_list({"status-code": UInt32(0), "message": "normal"}),
    )
)


def hello(**changes: Any) -> bytes:
    """Its HELLO, with items that are changed, or left out where the value is None."""
    items: dict[str, Any] = {
        "supported-versions": "1.0",
        "max-frame-size": UInt32(16384),
        "capabilities": "",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    present = {key: value for key, value in items.items() if value is not None}
    payload = codec.encode_kv_list(present)
    return bytes(codec.encode_raw_frame(FrameType.HAPROXY_HELLO, 0, 0, 0, payload))


def notify(stream_id: int, message: Message) -> bytes:
    payload = codec.encode_messages([message])
    return bytes(codec.encode_raw_frame(FrameType.NOTIFY, 0, stream_id, 1, payload))
