"""TCP streams out of packet captures, pcap and pcapng; `dpkt` reads the packets.

A `Conversation` is a TCP connection. Its bytes come in the order in which they became whole:
segments that arrive out of order, twice or overlapping are put right, and what the capture
lacks is a number of bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import dpkt

from spop.address import Address

_HALF = 2**31
_WHOLE = 2**32


class Piece(NamedTuple):
    """What became whole with a packet: when, from whom, and the bytes, or how many are missing."""

    time: float
    source: Address
    data: bytes | int


class Conversation:
    """A TCP connection."""

    def __init__(self, first: Address, second: Address) -> None:
        self.first = first
        self.second = second
        self.pieces: list[Piece] = []
        self._directions = {first: _Direction(), second: _Direction()}

    def add(self, time: float, source: Address, tcp: Any) -> None:
        """Take a segment."""
        for data in self._directions[source].add(tcp):
            self.pieces.append(Piece(time, source, data))
        self._last = time

    def finish(self) -> None:
        """There is no more."""
        for source, direction in self._directions.items():
            for data in direction.rest():
                self.pieces.append(Piece(self._last, source, data))


class CaptureError(ValueError):
    """The file is no capture that can be read."""


def read_conversations(file: BinaryIO) -> list[Conversation]:
    """All TCP connections of a capture, in the order of their first packets.

    Raises:
        CaptureError: it is none, or of a kind of link that is not known.
    """
    latest: dict[frozenset[Address], Conversation] = {}
    found: list[Conversation] = []
    for time, source, target, tcp in _segments(file):
        key = frozenset((source, target))
        conversation = latest.get(key)
        begins = bool(tcp.flags & dpkt.tcp.TH_SYN and not tcp.flags & dpkt.tcp.TH_ACK)
        if conversation is None or (begins and conversation.pieces):
            conversation = latest[key] = Conversation(source, target)
            found.append(conversation)
        conversation.add(time, source, tcp)
    for conversation in found:
        conversation.finish()
    return found


class _Direction:
    """Segments of one direction, put in order."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._waiting: dict[int, bytes] = {}

    def add(self, tcp: Any) -> Iterator[bytes]:
        sequence = tcp.seq
        if tcp.flags & dpkt.tcp.TH_SYN:
            self._next = (sequence + 1) % _WHOLE
            sequence = self._next
        if not tcp.data:
            return
        if self._next is None:
            self._next = sequence
        known = self._waiting.get(sequence, b"")
        if len(tcp.data) > len(known):
            self._waiting[sequence] = bytes(tcp.data)
        yield from self._whole()

    def _whole(self) -> Iterator[bytes]:
        """What follows on what there was."""
        assert self._next is not None
        while ready := [s for s in self._waiting if _distance(self._next, s) <= 0]:
            for sequence in ready:
                data = self._waiting.pop(sequence)[-_distance(self._next, sequence) :]
                if data:
                    self._next = (self._next + len(data)) % _WHOLE
                    yield data

    def rest(self) -> Iterator[bytes | int]:
        """What is left at the end of the capture, with the gaps before it."""
        while self._waiting and self._next is not None:
            ahead = {_distance(self._next, sequence): sequence for sequence in self._waiting}
            size = min(ahead)
            yield size
            self._next = ahead[size]
            yield from self._whole()


def _distance(start: int, end: int) -> int:
    """How far it is from one sequence number to another, which may lie before it."""
    return (end - start + _HALF) % _WHOLE - _HALF


def _segments(file: BinaryIO) -> Iterator[tuple[float, Address, Address, Any]]:
    for time, packet in _packets(file):
        ip = packet
        while isinstance(ip, dpkt.Packet) and not isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6):
            ip = ip.data
        if not isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6) or not isinstance(ip.data, dpkt.tcp.TCP):
            continue
        tcp = ip.data
        yield (
            time,
            Address(dpkt.utils.inet_to_str(ip.src), tcp.sport),
            Address(dpkt.utils.inet_to_str(ip.dst), tcp.dport),
            tcp,
        )


def _packets(file: BinaryIO) -> Iterator[tuple[float, Any]]:
    try:
        reader = dpkt.pcap.UniversalReader(file)
        link = reader.datalink()
    except (ValueError, dpkt.dpkt.Error) as error:
        raise CaptureError(f"no pcap or pcapng file: {error}") from None
    decode = _LINKS.get(link)
    if decode is None:
        raise CaptureError(f"packets of link type {link} are not known")
    with contextlib.suppress(dpkt.dpkt.Error, ValueError):  # The file may be cut off.
        for time, data in reader:
            # What can't be decoded is not the packet of a protocol that matters here.
            with contextlib.suppress(dpkt.dpkt.Error, ValueError, IndexError):
                yield float(time), decode(data)


def _raw_ip(data: bytes) -> Any:
    return dpkt.ip6.IP6(data) if data[0] >> 4 == 6 else dpkt.ip.IP(data)


_LINKS: dict[int, Any] = {
    dpkt.pcap.DLT_EN10MB: dpkt.ethernet.Ethernet,
    dpkt.pcap.DLT_LINUX_SLL: dpkt.sll.SLL,
    dpkt.pcap.DLT_LINUX_SLL2: dpkt.sll2.SLL2,
    dpkt.pcap.DLT_NULL: dpkt.loopback.Loopback,
    dpkt.pcap.DLT_LOOP: dpkt.loopback.Loopback,
    dpkt.pcap.DLT_RAW: _raw_ip,
    101: _raw_ip,
    228: dpkt.ip.IP,
    229: dpkt.ip6.IP6,
}
