"""The reader of packet captures, pcap and pcapng: any bytes give pieces of TCP streams."""

from __future__ import annotations

import struct
from io import BytesIO
from random import Random
from typing import Any

from pair import Twins
from structure import OPTIONS, Options, in_list

from spop.cli.capture import Capture, CaptureError

__all__ = ["mutate", "outcome"]

HEADER = 24
"""Bytes in front of the first packet of a pcap; those in front of each packet are 16."""


def outcome(twins: Twins, data: bytes) -> Any:
    live = Options(data).take([False, True])
    capture = Capture(BytesIO(data[OPTIONS:]))
    total = 0
    try:
        for _, piece in capture.pieces(live):
            size = piece.data if isinstance(piece.data, int) else len(piece.data)
            assert size > 0
            total += size
    except CaptureError as error:
        return str(error)
    return total, capture.damage


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Packets, or blocks of a pcapng, that change; their lengths stay right mostly."""
    rng = Random(seed)
    options, data = data[:OPTIONS].ljust(OPTIONS, b"\0"), data[OPTIONS:]
    if rng.randrange(6) == 0:
        options = rng.randbytes(OPTIONS)
    split, join = (_blocks, _of_blocks) if data[:4] == b"\n\r\r\n" else (_records, _of_records)
    head, packets = split(data)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.randrange(3) == 0 or not packets:
            in_list(rng, packets, lambda: rng.choice(packets) if packets else b"\0" * 70)
            continue
        place = rng.randrange(len(packets))
        packet = bytearray(packets[place] or b"\0")
        at = rng.randrange(min(len(packet), 90))
        packet[at : at + rng.choice((0, 1, 1, 4))] = rng.choice(
            (b"", rng.randbytes(1), rng.randbytes(4), b"\0\0\0\0", b"\xff\xff")
        )
        packets[place] = bytes(packet)
    return (options + join(head, packets))[:max_size]


def _records(data: bytes) -> tuple[bytes, list[bytes]]:
    order, offset, packets = ">" if data[:1] == b"\xa1" else "<", HEADER, []
    while offset + 16 <= len(data):
        size = struct.unpack_from(order + "I", data, offset + 8)[0]
        packets.append(data[offset : offset + 16 + size])
        offset += 16 + size
    return data[:HEADER], packets


def _of_records(head: bytes, packets: list[bytes]) -> bytes:
    order = ">" if head[:1] == b"\xa1" else "<"
    sized = [p[:8] + struct.pack(order + "I", max(0, len(p) - 16)) + p[12:] for p in packets]
    return head + b"".join(sized)


def _blocks(data: bytes) -> tuple[bytes, list[bytes]]:
    order, offset, blocks = ">" if data[8:9] == b"\x1a" else "<", 0, []
    while offset + 8 <= len(data):
        size = max(12, struct.unpack_from(order + "I", data, offset + 4)[0])
        blocks.append(data[offset : offset + 4] + data[offset + 8 : offset + size - 4])
        offset += size
    return order.encode(), blocks


def _of_blocks(head: bytes, blocks: list[bytes]) -> bytes:
    def block(body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        size = struct.pack(head.decode() + "I", len(body) + 8)
        return body[:4] + size + body[4:] + size

    return b"".join(map(block, blocks))
