"""The packets of a capture file, pcap or pcapng. It is read as it grows, and may be cut off."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

PCAPNG = b"\x0a\x0d\x0d\x0a"
BYTE_ORDER = b"\x1a\x2b\x3c\x4d"
"""What a section of pcapng written in big endian begins with."""
SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET, PACKET = 0x0A0D0D0A, 1, 2, 3, 6
RESOLUTION = 9
"""Option of an interface: what part of a second its times count."""
MAX_SIZE = 256 * 1024 * 1024
"""Bytes above which the size of a packet counts as damage."""


class Packet(NamedTuple):
    """A packet: when it was captured, the type of its link, its bytes."""

    time: float
    link: int
    data: bytes


class _Interface(NamedTuple):
    link: int
    seconds: float
    """Seconds of one tick of its times."""


class CutShortError(Exception):
    """The file ends before its time, or what follows is no capture."""


class Packets:
    """Iterates over the packets of a file.

    Attributes:
        damage: why its end could not be read; empty if it could.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.damage: str = ""
        self._order = "<"
        self._interfaces: list[_Interface] = []

    def __iter__(self) -> Iterator[Packet]:
        try:
            magic = self._read(4)
            yield from self._blocks(magic) if magic == PCAPNG else self._records(magic)
        except CutShortError as error:
            self.damage = str(error)
        except struct.error:
            self.damage = "the capture is damaged: a block is too short"

    def _read(self, size: int) -> bytes:
        if size > MAX_SIZE:
            raise CutShortError(f"the capture is damaged: a packet cannot have {size} bytes")
        data = self._file.read(size)
        if len(data) < size:
            missing = size - len(data)
            raise CutShortError(f"the capture is cut off: at least {missing} bytes are missing")
        return data

    def _unpack(self, format_: str, data: bytes) -> tuple[int, ...]:
        return struct.unpack_from(self._order + format_, data)

    def _records(self, magic: bytes) -> Iterator[Packet]:
        """pcap: a header, then packets, each behind a header of its own."""
        self._order = ">" if magic[0] == 0xA1 else "<"
        ticks = 1e9 if b"\x3c" in magic else 1e6
        link = self._unpack("I", self._read(20)[16:])[0] & 0xFFFF
        while head := self._file.read(16):
            seconds, fraction, size, _ = self._unpack("4I", head + self._read(16 - len(head)))
            yield Packet(seconds + fraction / ticks, link, self._read(size))

    def _blocks(self, head: bytes) -> Iterator[Packet]:
        """pcapng: blocks, each with its type and its length."""
        time = 0.0
        while head:
            head += self._read(4 - len(head))
            kind, body = self._block(head)
            if kind == INTERFACE:
                self._interfaces.append(self._interface(body))
            elif kind in (PACKET, OLD_PACKET):
                packet = self._packet(kind, body)
                time = packet.time
                yield packet
            elif kind == SIMPLE_PACKET:
                yield Packet(time, self._of_interface(0).link, body[4:])
            head = self._file.read(4)

    def _block(self, head: bytes) -> tuple[int, bytes]:
        """The type and the body of a block. That of a section tells the order of bytes."""
        size = self._read(4)
        begin = b""
        if head == PCAPNG:
            begin = self._read(4)
            self._order = ">" if begin == BYTE_ORDER else "<"
            self._interfaces = []
        (kind,), (length,) = self._unpack("I", head), self._unpack("I", size)
        if length < 12 + len(begin) or length % 4:
            raise CutShortError(f"the capture is damaged: a block cannot have {length} bytes")
        return kind, begin + self._read(length - 8 - len(begin))[:-4]

    def _interface(self, body: bytes) -> _Interface:
        (link,) = self._unpack("H", body)
        place, seconds = 8, 1e-6
        while place + 4 <= len(body):
            code, size = self._unpack("2H", body[place:])
            if code == RESOLUTION:
                (exponent,) = self._unpack("B", body[place + 4 :])
                seconds = 2.0 ** -(exponent & 0x7F) if exponent & 0x80 else 10.0**-exponent
            place += 4 + size + -size % 4
        return _Interface(link, seconds)

    def _packet(self, kind: int, body: bytes) -> Packet:
        number, high, low, size = self._unpack("4I" if kind == PACKET else "H2x3I", body)
        interface = self._of_interface(number)
        return Packet((high << 32 | low) * interface.seconds, interface.link, body[20 : 20 + size])

    def _of_interface(self, number: int) -> _Interface:
        if number >= len(self._interfaces):
            raise CutShortError(f"the capture is damaged: there is no interface {number}")
        return self._interfaces[number]
