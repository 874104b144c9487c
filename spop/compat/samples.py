"""Payloads that a replaced codec is compared with the original on."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from spop.codec import encode_messages
from spop.frames import Message
from spop.values import Int64, String, UInt32, UInt64, Value

_EVERY_TYPE: dict[str, Value] = {
    "null": None,
    "yes": True,
    "no": False,
    "int32": -5,
    "uint32": UInt32(2**32 - 1),
    "int64": Int64(-(2**63)),
    "uint64": UInt64(2**64 - 1),
    "ipv4": IPv4Address("192.0.2.1"),
    "ipv6": IPv6Address("2001:db8::1"),
    "text": "/index.html?a=b",
    "empty": "",
    "bytes": b"\x00\xff" * 300,
}

_MESSAGES: list[list[Message]] = [
    [],
    [Message("nothing")],
    [Message("every", _EVERY_TYPE)],
    [Message("one", {"a": 1}), Message("other"), Message("one", {"a": 2})],
    [Message("twice", [("a", 1), ("b", 2), ("a", 3)])],
    [Message("unnamed", [("", "a"), ("", "b")])],
    [Message("text", utf8="gr\u00fc\u00df", other=String(b"gr\xfc\xdf"))],
]

PAYLOADS: list[bytes] = [bytes(encode_messages(messages)) for messages in _MESSAGES]
"""LIST-OF-MESSAGES, well-formed ones and what the packages refuse."""
PAYLOADS += [
    PAYLOADS[2][:-1],
    PAYLOADS[2][:20],
    b"\x01a\x01\x01b\x0f",
    b"\x01a\x01\x01b\x02\xff\xff",
]

VALUES: list[object] = [
    *(0, 1, 239, 240, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1, -(2**63), -(2**63) - 1),
    *(True, False, None, 1.5),
    *("", "text", "gr\u00fc\u00df", "\u20ac", b"", b"\x00\xff" * 300, bytearray(b"a")),
    *(IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")),
]
"""Values of variables, those that a package takes and those that it refuses."""
