"""TCP streams out of packet captures, pcap and pcapng; `dpkt` reads the packets.

A `Conversation` is a TCP connection. Its bytes come in the order in which they became whole:
segments that arrive out of order, twice or overlapping are put right, and what the capture
lacks is a number of bytes. A capture that grows is read as it grows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any, BinaryIO, NamedTuple

import dpkt

from spop.address import Address
from spop.cli.packets import Packet, Packets

_HALF = 2**31
_WHOLE = 2**32
MAX_WAITING = 100
"""Segments that wait behind a gap. With more, the missing bytes are not waited for any longer."""


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
        self.has_data: bool = False
        self._directions = {first: _Direction(), second: _Direction()}

    def add(self, time: float, source: Address, tcp: Any) -> Iterator[Piece]:
        """Take a segment. Returns what became whole."""
        self.has_data = self.has_data or bool(tcp.data)
        for at, data in self._directions[source].add(time, tcp):
            yield Piece(at, source, data)

    def finish(self) -> Iterator[Piece]:
        """There is no more. Returns what is left behind gaps."""
        for source, direction in self._directions.items():
            for at, data in direction.rest():
                yield Piece(at, source, data)


class CaptureError(ValueError):
    """The packets of a capture cannot be read."""


class Capture:
    """The TCP connections of a capture.

    Attributes:
        damage: why its end could not be read; empty if it could.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._packets = Packets(file)
        self._latest: dict[frozenset[Address], Conversation] = {}
        self._found: list[Conversation] = []

    @property
    def damage(self) -> str:
        return self._packets.damage

    def pieces(self, live: bool) -> Iterator[tuple[Conversation, Piece]]:
        """What the connections carried, in order of time; as it comes, if the file is live.

        Raises:
            CaptureError: no packet has a link of a known type.
        """
        if live:
            return self._pieces(self._packets)
        packets = sorted(self._packets, key=attrgetter("time"))
        return iter(sorted(self._pieces(packets), key=lambda each: each[1].time))

    def _pieces(self, packets: Iterable[Packet]) -> Iterator[tuple[Conversation, Piece]]:
        for time, source, target, tcp in _segments(packets):
            conversation = self._conversation(source, target, tcp)
            for piece in conversation.add(time, source, tcp):
                yield conversation, piece
        for conversation in self._found:
            for piece in conversation.finish():
                yield conversation, piece

    def _conversation(self, source: Address, target: Address, tcp: Any) -> Conversation:
        key = frozenset((source, target))
        conversation = self._latest.get(key)
        begins = bool(tcp.flags & dpkt.tcp.TH_SYN and not tcp.flags & dpkt.tcp.TH_ACK)
        if conversation is None or (begins and conversation.has_data):
            conversation = self._latest[key] = Conversation(source, target)
            self._found.append(conversation)
        return conversation


class _Direction:
    """Segments of one direction, put in order. Each has the time at which it was captured."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._time = 0.0
        self._waiting: dict[int, tuple[float, bytes]] = {}

    def add(self, time: float, tcp: Any) -> Iterator[tuple[float, bytes | int]]:
        sequence = tcp.seq
        if tcp.flags & dpkt.tcp.TH_SYN:
            self._next = (sequence + 1) % _WHOLE
            sequence = self._next
        if not tcp.data:
            return
        if self._next is None:
            self._next = sequence
        _, known = self._waiting.get(sequence, (time, b""))
        if len(tcp.data) > len(known):
            self._waiting[sequence] = time, bytes(tcp.data)
        yield from self._whole()
        if len(self._waiting) > MAX_WAITING:
            yield from self.rest()

    def _whole(self) -> Iterator[tuple[float, bytes]]:
        """What follows on what there was."""
        assert self._next is not None
        while ready := [s for s in self._waiting if _distance(self._next, s) <= 0]:
            for sequence in ready:
                time, segment = self._waiting.pop(sequence)
                data = segment[-_distance(self._next, sequence) :]
                if data:
                    self._next = (self._next + len(data)) % _WHOLE
                    self._time = max(self._time, time)
                    yield self._time, data

    def rest(self) -> Iterator[tuple[float, bytes | int]]:
        """What waits behind gaps, with the sizes of the gaps."""
        if self._next is None:
            return
        yield from self._whole()  # A SYN may have moved the place behind what waits.
        while self._waiting:
            ahead = {_distance(self._next, sequence): sequence for sequence in self._waiting}
            size = min(ahead)
            self._time = max(self._time, self._waiting[ahead[size]][0])
            yield self._time, size
            self._next = ahead[size]
            yield from self._whole()


def _distance(start: int, end: int) -> int:
    """How far it is from one sequence number to another, which may lie before it."""
    return (end - start + _HALF) % _WHOLE - _HALF


def _segments(packets: Iterable[Packet]) -> Iterator[tuple[float, Address, Address, Any]]:
    for time, ip in _decoded(packets):
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


def _decoded(packets: Iterable[Packet]) -> Iterator[tuple[float, Any]]:
    unknown, known = set(), False
    for packet in packets:
        decode = _LINKS.get(packet.link)
        if decode is None:
            unknown.add(packet.link)
            continue
        known = True
        # What can't be decoded is not the packet of a protocol that matters here.
        with contextlib.suppress(dpkt.dpkt.Error, ValueError, IndexError):
            yield packet.time, decode(packet.data)
    if unknown and not known:
        raise CaptureError(f"packets of link type {min(unknown)} are not known")


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
