"""Writes small databases in MaxMind's format, version 2.0."""

from __future__ import annotations

import time
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

_SEPARATOR = bytes(16)
_MARKER = b"\xab\xcd\xefMaxMind.com"


class Short(int):
    """An integer of 16 bits."""


class Long(int):
    """An integer of 64 bits."""


def database(networks: Mapping[str, dict[str, Any]]) -> bytes:
    """The bytes of a database: a tree of IPv6, with IPv4 in ::/96, in records of 32 bits."""
    nodes: list[list[int | None]] = [[None, None]]
    data, places = b"", {}
    for text, record in networks.items():
        network = ip_network(text)
        address = int(network.network_address)
        length = network.prefixlen + (96 if network.version == 4 else 0)
        places[text] = len(data)
        _insert(nodes, [address >> 127 - bit & 1 for bit in range(length)], -1 - len(data))
        data += _encoded(record)
    tree = b"".join(
        _record(record, len(nodes)).to_bytes(4, "big") for node in nodes for record in node
    )
    about = {
        "node_count": len(nodes), "record_size": Short(32), "ip_version": Short(6),
        "database_type": "Test", "languages": ["en"], "binary_format_major_version": Short(2),
        "binary_format_minor_version": Short(0), "build_epoch": Long(time.time()),
        "description": {"en": "A test"},
    }  # fmt: skip
    return tree + _SEPARATOR + data + _MARKER + _encoded(about)


def _insert(nodes: list[list[int | None]], bits: list[int], record: int) -> None:
    node = 0
    for bit in bits[:-1]:
        following = nodes[node][bit]
        if following is None:
            following = nodes[node][bit] = len(nodes)
            nodes.append([None, None])
        node = following
    nodes[node][bits[-1]] = record


def _record(record: int | None, count: int) -> int:
    """The number of a node, `count` for nothing, or beyond that a place in the data."""
    if record is None:
        return count
    return record if record >= 0 else count + len(_SEPARATOR) - 1 - record


def _encoded(value: Any) -> bytes:
    if isinstance(value, dict):
        pairs = (_encoded(key) + _encoded(each) for key, each in value.items())
        return bytes([7 << 5 | len(value)]) + b"".join(pairs)
    if isinstance(value, list):
        return bytes([len(value), 11 - 7]) + b"".join(map(_encoded, value))
    if isinstance(value, str):
        text = value.encode()
        more = bytes([len(text) - 29]) if len(text) >= 29 else b""
        return bytes([2 << 5 | min(len(text), 29)]) + more + text
    if isinstance(value, Short):
        return bytes([5 << 5 | 2]) + value.to_bytes(2, "big")
    if isinstance(value, Long):
        return bytes([8, 9 - 7]) + value.to_bytes(8, "big")
    return bytes([6 << 5 | 4]) + int(value).to_bytes(4, "big")
