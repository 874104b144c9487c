"""Lists of networks in a file that all processes map: built by a process of its own, looked up here.

`build` reads the sources, and writes an `Index`: the disjoint ranges that all networks make
together, as two sorted arrays for each family. `spop.agents.reputation` runs it as

    python networks.py <settings.json

so that parsing a million lines takes no time from the requests. A range belongs to the first
list that has it, in the order in which the lists are given.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import signal
import socket
import sys
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

MOST_LISTS = 80
NONE = 255
"""The number that stands for no list."""
MOST_BAD = 0.01
"""The part of a source's lines that may be no network. With more, the source is refused."""
MOST_BYTES = 256 * 1024 * 1024
"""Size of the largest source."""
MOST_SECONDS = 600
"""Time after which a build ends without a result."""

_CHECKSUM_SIZE = 16
_MAPPED = bytes(10) + b"\xff\xff"
"""What IPv4-mapped IPv6 addresses begin with."""

Range = tuple[int, int, int]
"""First address, last address as a negative number, list: sorted, a network is before its parts."""


class GarbageError(ValueError):
    """A source is no list of networks."""


class Index:
    """The built lists.

    Args:
        memory: what `encoded` gave.
        stamp: of its file.

    Attributes:
        about: by the list's name, what `build` says about each, see `Built`.
        bytes: the size of all.

    Raises:
        ValueError, LookupError: it is no index of this machine.
    """

    def __init__(self, memory: memoryview, stamp: tuple[int, int] = (0, 0)) -> None:
        self.stamp: tuple[int, int] = stamp
        self.bytes: int = len(memory)
        checksum, memory = memory[:_CHECKSUM_SIZE], memory[_CHECKSUM_SIZE:]
        if checksum != _checksum(memory):
            raise ValueError("it is damaged")
        size = int.from_bytes(memory[:8], sys.byteorder)
        header = json.loads(bytes(memory[8 : 8 + size]))
        self.about: dict[str, dict[str, Any]] = header["lists"]
        rest = memory[_aligned(8 + size) :]
        parts = []
        for length, size in zip(header["lengths"], (8, 8, 1, 4, 1), strict=True):
            parts.append(rest[: length * size])
            rest = rest[_aligned(length * size) :]
        self._high, self._low = parts[0].cast("Q"), parts[1].cast("Q")
        self._starts = parts[3].cast("I")
        self._lists_of_6, self._lists_of_4 = parts[2], parts[4]

    @classmethod
    def open(cls, path: Path) -> Index:
        """The index that `build` has written to a file, which is mapped.

        Raises:
            OSError, ValueError, LookupError: there is none.
        """
        with path.open("rb") as file:
            mark = stamp(path)
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return cls(memory, mark)

    def find(self, packed: bytes) -> int:
        """The number of the list that has an address, or `NONE`.

        Args:
            packed: 4 or 16 bytes. An IPv4-mapped IPv6 address is looked up as IPv4.
        """
        if len(packed) == 16:
            if packed[:12] != _MAPPED:
                return self._find_6(packed)
            packed = packed[12:]
        return self._lists_of_4[bisect_right(self._starts, int.from_bytes(packed, "big")) - 1]

    def _find_6(self, packed: bytes) -> int:
        """The last range that begins at the address or before: by its upper half, and where ranges
        begin at the same upper half, by the lower."""
        high = int.from_bytes(packed[:8], "big")
        end = bisect_right(self._high, high)
        if self._high[end - 1] == high:
            low = int.from_bytes(packed[8:], "big")
            end = bisect_right(self._low, low, bisect_left(self._high, high, 0, end), end)
        return self._lists_of_6[end - 1]


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced or written."""
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


def is_feed(source: str) -> bool:
    """Whether a source is fetched, and not a file."""
    return source.startswith(("http://", "https://"))


def digest(text: str) -> str:
    """A part of a file's name that no other text has."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM_SIZE).digest()


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def read_networks(lines: Iterable[bytes]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The IPv4 and the IPv6 networks of a text, as first and last addresses.

    A line has a network or an address as its first word. What follows it is passed over, and so are
    empty lines and comments that begin with "#" or ";".

    Raises:
        GarbageError: there is no network, or too many lines have none.
    """
    of_4: list[tuple[int, int]] = []
    of_6: list[tuple[int, int]] = []
    bad, example = 0, b""
    for line in lines:
        words = line.partition(b"#")[0].partition(b";")[0].replace(b",", b" ").split(None, 1)
        if not words:
            continue
        try:
            family, first, last = parse_network(words[0].decode("ascii"))
        except (ValueError, OSError):
            bad, example = bad + 1, example or line.strip()[:60]
        else:
            (of_4 if family == 4 else of_6).append((first, last))
    found = len(of_4) + len(of_6)
    if not found or bad > MOST_BAD * (found + bad):
        shown = f", as {example.decode(errors='replace')!r}" if bad else ""
        raise GarbageError(f"it has {found} networks and {bad} lines that are none{shown}")
    return of_4, of_6


def parse_network(text: str) -> tuple[int, int, int]:
    """4 or 6, the first and the last address. Bits behind the prefix are passed over.

    Raises:
        ValueError, OSError: it is no network.
    """
    address, slash, length = text.partition("/")
    if ":" in address:
        packed, family = socket.inet_pton(socket.AF_INET6, address), 6
    else:
        packed, family = socket.inet_pton(socket.AF_INET, address), 4
    bits = 8 * len(packed)
    prefix = int(length) if slash else bits
    if slash and not (length.isdecimal() and prefix <= bits):
        raise ValueError(f"{text!r} has no prefix length")
    if packed[:12] == _MAPPED and prefix >= 96:
        packed, family, bits, prefix = packed[12:], 4, 32, prefix - 96
    mask = (1 << bits - prefix) - 1
    last = int.from_bytes(packed, "big") | mask
    return family, last - mask, last


def flatten(ranges: list[Range], last_address: int) -> tuple[list[int], bytearray]:
    """Where disjoint ranges begin, and the list of each. Of several lists the first has a range.

    Networks lie in one another or apart. So one pass over them in order, with a stack of those that
    the present address is in, finds all ranges.
    """
    starts, lists = [0], bytearray([NONE])

    def put(start: int, number: int) -> None:
        if starts[-1] == start:
            lists[-1] = number
        elif lists[-1] != number:
            starts.append(start)
            lists.append(number)

    stack: list[tuple[int, int]] = []

    def leave(before: int) -> None:
        while stack and stack[-1][0] < before:
            last, _ = stack.pop()
            if last < last_address:
                put(last + 1, stack[-1][1] if stack else NONE)

    for first, minus_last, number in sorted(ranges):
        leave(first)
        inner = min(number, stack[-1][1]) if stack else number
        put(first, inner)
        stack.append((-minus_last, inner))
    leave(last_address + 1)
    return starts, lists


class Built(NamedTuple):
    """What became of a list.

    Attributes:
        networks: number of networks that it has.
        updated: when the source was read, in seconds since the epoch; 0: never.
        stamp: of a file, when it was tried last.
        error: why it could not be read now; "" if it was.
        tag: the ETag of a feed.
    """

    networks: int = 0
    updated: int = 0
    stamp: tuple[int, int] = (0, 0)
    error: str = ""
    tag: str = ""


class _List:
    """A list while an index is built. The text of its last good state is kept in a file.

    Args:
        known: what the present index says about it.
    """

    def __init__(self, folder: Path, name: str, source: str, timeout: float, known: Any) -> None:
        self._kept = folder / f"{name}-{digest(source)}.networks"
        self._source = source
        self._timeout = timeout
        self._tried = 0, 0
        self.built = Built(**known) if self._kept.exists() and known else Built()
        self.networks: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])

    def update(self) -> None:
        """Read the source. Where that fails, take what was kept."""
        try:
            text, tag = self._read()
            if text is None:
                self.networks = self._kept_networks()
            else:
                self.networks = read_networks(text.splitlines())
                replace(self._kept, text)
            count = len(self.networks[0]) + len(self.networks[1])
            self.built = Built(count, int(time.time()), self._tried, "", tag)
        except Exception as error:  # Whatever a library raises, the other lists go on.
            what = str(error) or type(error).__name__
            self.built = self.built._replace(error=what, stamp=self._tried)
            if self.built.networks:
                self._take_kept()

    def _take_kept(self) -> None:
        try:
            self.networks = self._kept_networks()
        except (OSError, GarbageError) as error:  # Without its tag a feed is fetched as a whole.
            what = f"{self.built.error}; what was kept: {error}"
            self.built = Built(error=what, stamp=self._tried)

    def _kept_networks(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        return read_networks(self._kept.read_bytes().splitlines())

    def _read(self) -> tuple[bytes | None, str]:
        """The text, None if it is the one that was kept, and the ETag of a feed."""
        if not is_feed(self._source):
            path = Path(self._source)
            self._tried = stamp(path)
            if path.stat().st_size > MOST_BYTES:
                raise GarbageError(f"it has more than {MOST_BYTES} bytes")
            return path.read_bytes(), ""
        import httpx

        ask = {"If-None-Match": self.built.tag} if self.built.tag else {}
        with (
            httpx.Client(timeout=self._timeout, follow_redirects=True) as client,
            client.stream("GET", self._source, headers=ask) as answer,
        ):
            if answer.status_code == httpx.codes.NOT_MODIFIED:
                return None, self.built.tag
            answer.raise_for_status()
            text = bytearray()
            for part in answer.iter_bytes():
                text += part
                if len(text) > MOST_BYTES:
                    raise GarbageError(f"it has more than {MOST_BYTES} bytes")
            return bytes(text), answer.headers.get("ETag", "")


def build(path: str, sources: dict[str, str], timeout: float) -> None:
    """Write an index. What a source gave before is kept where it fails or is garbage.

    Args:
        path: where. The lists' texts are kept in files beside it.
        sources: file or URL of each list, by name, in the order in which they count.
        timeout: seconds for which a feed may send nothing.

    Raises:
        OSError: the files can't be written.
    """
    target = Path(path)
    try:
        known = Index.open(target).about
    except (OSError, ValueError, LookupError):
        known = {}
    lists = {
        name: _List(target.parent, name, source, timeout, known.get(name))
        for name, source in sources.items()
    }
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_List.update, lists.values()))
    families: list[list[Range]] = [[], []]
    for number, each in enumerate(lists.values()):
        for ranges, networks in zip(families, each.networks, strict=True):
            ranges += [(first, -last, number) for first, last in networks]
    about = {name: each.built._asdict() for name, each in lists.items()}
    replace(target, encoded(about, *families))


def encoded(about: dict[str, Any], of_4: list[Range], of_6: list[Range]) -> bytes:
    """An index of these ranges, as `Index` reads it."""
    starts_of_6, lists_of_6 = flatten(of_6, (1 << 128) - 1)
    starts_of_4, lists_of_4 = flatten(of_4, (1 << 32) - 1)
    high = array("Q", (start >> 64 for start in starts_of_6))
    low = array("Q", (start & (1 << 64) - 1 for start in starts_of_6))
    parts = [high, low, lists_of_6, array("I", starts_of_4), lists_of_4]
    header = json.dumps({"lists": about, "lengths": [len(part) for part in parts]}).encode()
    text = len(header).to_bytes(8, sys.byteorder) + header
    for part in (b"", *parts):
        text += bytes(part)
        text += bytes(_aligned(len(text)) - len(text))
    return _checksum(text) + text


def replace(path: Path, text: bytes) -> None:
    """Write a file that others read whole, before or after."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_bytes(text)
    new.replace(path)


if __name__ == "__main__":
    signal.alarm(MOST_SECONDS)  # A feed may send a byte now and then.
    build(**json.load(sys.stdin))
