"""Files and pipes that ``spop decode`` reads. They may be zipped, and a pipe may grow."""

from __future__ import annotations

import io
import re
import zlib
from typing import Any

import click

from spop.errors import reason

GZIP_MAGIC = b"\x1f\x8b"
PCAP_MAGIC = (
    b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1",
    b"\x0a\x0d\x0d\x0a",
)  # fmt: skip
PIECE = 64 * 1024
"""Bytes of one read. The read of a pipe returns the bytes that there are."""


class CutOffError(click.ClickException):
    """The input ended too early. It is raised after all that could be read is shown."""


class Source(io.RawIOBase):
    """The bytes of a file.

    Attributes:
        live: it is a pipe, so that it may still grow.
        damage: why its end could not be read; empty if it could.
    """

    def __init__(self, file: Any, live: bool) -> None:
        self._file = file
        self._head = b""
        self.live = live
        self.damage: str = ""

    def peek(self, size: int) -> bytes:
        """The next bytes. They can be read again."""
        head = b""
        while len(head) < size and (data := self._piece(size - len(head))):
            head += data
        self._head = head
        return head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._piece(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _piece(self, size: int) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        try:
            data = self._file.read1(size)
        except (EOFError, zlib.error) as error:
            self.damage = f"the gzip file is cut off or damaged: {reason(error)}"
            return b""
        return bytes(data)


class _Gzip:
    """The content of a gzip file, as far as it has come. `gzip.GzipFile` waits for more."""

    def __init__(self, file: Source) -> None:
        self._file = file
        self._left = b""
        self._start()

    def _start(self) -> None:
        self._zip = zlib.decompressobj(zlib.MAX_WBITS + 16)
        self._begun = False

    def read1(self, size: int) -> bytes:
        """Raises EOFError: the file is cut off."""
        while not self._left:
            zipped = self._zip.unused_data or self._file.read(PIECE)
            if self._zip.eof:  # A file can have several members.
                self._start()
            if not zipped:
                if self._begun:
                    raise EOFError("its last bytes are missing")
                break
            self._begun = True
            self._left = self._zip.decompress(zipped)
            self._begun = not self._zip.eof
        data, self._left = self._left[:size], self._left[size:]
        return data


def unzipped(file: Any) -> Source:
    """The bytes of a file, without its gzip."""
    source = Source(file, not file.seekable())
    while source.peek(2) == GZIP_MAGIC:
        source = Source(_Gzip(source), source.live)
    return source


def kind_of(source: Source) -> str:
    """What a source is, as its first bytes show: pcap, hex or raw."""
    head = source.peek(4)
    if head in PCAP_MAGIC:
        return "pcap"
    return "hex" if is_text(head) else "raw"


def is_text(data: bytes) -> bool:
    """Whether the bytes are ASCII text, perhaps behind a byte order mark."""
    return re.fullmatch(rb"(?:\xef\xbb\xbf)?[\x20-\x7e\s]*", data) is not None
