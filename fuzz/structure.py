"""Mutates inputs by what they mean: frames, messages, typed data, fragments.

An input is `OPTIONS` bytes, from which a target takes its limits and the sizes of the pieces in
which bytes arrive, and a stream of frames. A mutation keeps most of a stream valid, so that what
lies behind a length or a count is reached. Lengths and counts are made right, but for the
mutations that damage bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from spop._typed_data_py import encode_string, encode_varint, read_span, read_value, read_varint
from spop.constants import FLAGS_END, LENGTH_SIZE, FrameType
from spop.errors import ProtocolError

T = TypeVar("T")

OPTIONS = 8
"""Bytes at the front of an input that are no part of the stream."""


class Options:
    """What an input chooses besides its stream."""

    def __init__(self, data: bytes) -> None:
        self._number = int.from_bytes(data[:OPTIONS], "little")

    def take(self, choices: Sequence[T]) -> T:
        self._number, index = divmod(self._number, len(choices))
        return choices[index]

    def pieces(self, data: bytes) -> list[bytes]:
        """The pieces in which `data` arrives."""
        size = self.take([len(data), len(data), 1, 2, 3, 5, 7, 16, 61, 200])
        size = max(size, len(data) // 100, 1)
        first = self.take([0, 0, 1, 4, 9, 13])
        cuts = [0, *range(first or size, len(data), size), len(data)]
        return [data[a:b] for a, b in itertools.pairwise(cuts)]


class Frame(NamedTuple):
    """A frame without its length: type, flags, encoded stream-id and frame-id, payload."""

    type: int
    flags: bytes
    ids: bytes
    payload: bytes


class Part(NamedTuple):
    """A message, a KV-list or an action: what is in front of its pairs of name and value."""

    head: bytes
    pairs: list[bytes]


NUMBERS = [0, 1, 2, 3, 9, 127, 239, 240, 241, 255, 256, 2287, 2288, 16380, 2**31 - 1, 2**31, 2**32]
NUMBERS += [2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 2**31, 2**64 - 2**31 - 1]
VARINTS = [bytes(encode_varint(number)) for number in NUMBERS]
VARINTS += [b"\xf0" + b"\x80" * 8 + b"\x0f", b"\xff" * 9 + b"\x0f", b"\xff" * 10, b"\xf0\x00"]
TEXTS = [
    *("", "a", "b", "c", "m", "h", "late", "left", "kept", "whole", "large", "ip", "état", "x" * 50),
    *("supported-versions", "max-frame-size", "capabilities", "engine-id", "healthcheck"),
    *("status-code", "message", "version", "1.0", "2.0", "1.0,2.0", "3.0", "1.0, 2.0 "),
    *("fragmentation,pipelining,async", "pipelining", "async", "a: 1\r\nB:2\r\n\r\n", "a:b"),
]  # fmt: skip
STRINGS = [bytes(encode_string(text)) for text in TEXTS]
STRINGS += [b"\x02\xff\xfe", b"\x03\xed\xa0\x80", b"\x03\xe2\x82\xac", b"\x05\x00\x01\x02\r\n"]
STRINGS += [b"\x06\x01a\x01b\x00\x00", b"\x05\x01a\x05b\x00", b"\x05\x01\n\x00\x00\x00"]
IDS = [
    bytes(encode_varint(a)) + bytes(encode_varint(b))
    for a in (0, 1, 2, 300, 2**64 - 1)
    for b in (0, 1, 2)
]
FLAGS = [
    b"\0\0\0\1",
    b"\0\0\0\1",
    b"\0\0\0\0",
    b"\0\0\0\3",
    b"\0\0\0\2",
    b"\1\0\0\0",
    b"\xff\xff\xff\xff",
]
TYPES = [*FrameType, 4, 255]


def split(data: bytes) -> tuple[list[Frame], bytes]:
    """The frames of a stream, and what is left of it."""
    frames, offset = [], 0
    while offset + LENGTH_SIZE <= len(data):
        end = offset + LENGTH_SIZE + int.from_bytes(data[offset : offset + LENGTH_SIZE])
        start = offset + FLAGS_END
        try:
            if end > len(data) or start > end:
                break
            ids = read_varint(data, read_varint(data, start, end)[1], end)[1]
        except ProtocolError:
            break
        flags = data[offset + LENGTH_SIZE + 1 : start]
        frames.append(Frame(data[start - 5], flags, data[start:ids], data[ids:end]))
        offset = end
    return frames, data[offset:]


def join(frames: list[Frame], rest: bytes) -> bytes:
    bodies = [bytes([type_]) + flags + ids + payload for type_, flags, ids, payload in frames]
    return b"".join([len(body).to_bytes(LENGTH_SIZE) + body for body in bodies]) + rest


def parts_of(frame: Frame) -> list[Part]:
    """What a payload consists of.

    Raises:
        ProtocolError: it is malformed.
    """
    data, offset, end, parts = frame.payload, 0, len(frame.payload), []
    while offset < end:
        start, count = offset, 1 << 16
        if frame.type in (FrameType.NOTIFY, FrameType.UNSET):
            offset = read_span(data, offset, end)[1]
            count = data[offset] if offset < end else 0
        elif frame.type == FrameType.ACK:
            offset, count = min(end, offset + 3), 1
        head, pairs = data[start:offset], []
        offset += frame.type in (FrameType.NOTIFY, FrameType.UNSET)
        while offset < end and len(pairs) < count:
            begin = offset
            offset = read_span(data, offset, end)[1]
            if frame.type != FrameType.ACK or head[:1] != b"\x02":
                offset = read_value(data, offset, end, True)[1]
            pairs.append(data[begin:offset])
        parts.append(Part(head, pairs))
    return parts


def payload_of(type_: int, parts: list[Part]) -> bytes:
    counted = type_ in (FrameType.NOTIFY, FrameType.UNSET)
    return b"".join(
        [
            head + (bytes([len(pairs) & 255]) if counted else b"") + b"".join(pairs)
            for head, pairs in parts
        ]
    )


# --- mutations ---


def typed_data(rng: Random) -> bytes:
    type_ = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 9, rng.randrange(16)))
    first = bytes([type_ | rng.choice((0, 0, 0x10, 0x10, 0x20, 0xF0))])
    if 2 <= type_ <= 5:
        return first + rng.choice(VARINTS)
    if 6 <= type_ <= 7:
        return first + rng.randbytes(4 if type_ == 6 else 16)
    return first + rng.choice(STRINGS) if type_ >= 8 else first


def pair(rng: Random) -> bytes:
    return rng.choice(STRINGS) + typed_data(rng)


def head(rng: Random, type_: int) -> bytes:
    if type_ == FrameType.ACK:
        return bytes([rng.choice((1, 1, 1, 2, 9)), rng.choice((2, 3, 3)), rng.randrange(6)])
    return rng.choice(STRINGS) if type_ in (FrameType.NOTIFY, FrameType.UNSET) else b""


def in_list(rng: Random, items: list[T], new: Callable[[], T]) -> None:
    """Replace, repeat, remove, swap or add an item."""
    place = rng.randrange(len(items) + 1)
    kind = rng.randrange(5)
    if place == len(items) or kind == 0:
        items.insert(place, new())
    elif kind == 1:
        items[place] = new()
    elif kind == 2:
        items[place:place] = [items[place]] * rng.choice((1, 1, 2, 20))
    elif kind == 3:
        del items[place]
    else:
        other = rng.randrange(len(items))
        items[place], items[other] = items[other], items[place]


def new_frame(rng: Random) -> Frame:
    type_ = rng.choice((3, 3, 3, 0, 103, 103, 1, 101, 2, 102, rng.randrange(256)))
    parts = [
        Part(head(rng, type_), [pair(rng) for _ in range(rng.choice((0, 1, 1, 2, 5)))])
        for _ in range(rng.choice((0, 1, 1, 2)))
    ]
    return Frame(type_, rng.choice(FLAGS), rng.choice(IDS), payload_of(type_, parts))


def in_payload(rng: Random, frame: Frame) -> Frame:
    """Change the messages, the items or the actions of a frame."""
    try:
        parts = parts_of(frame)
    except (ProtocolError, IndexError):
        return in_bytes(rng, frame)
    if not parts or rng.randrange(4) == 0:
        in_list(rng, parts, lambda: Part(head(rng, frame.type), [pair(rng)]))
    else:
        place = rng.randrange(len(parts))
        in_list(rng, parts[place].pairs, lambda: pair(rng))
        if rng.randrange(6) == 0:
            parts[place] = parts[place]._replace(head=head(rng, frame.type))
    return frame._replace(payload=payload_of(frame.type, parts))


def in_header(rng: Random, frame: Frame) -> Frame:
    kind = rng.randrange(3)
    if kind == 0:
        return frame._replace(type=rng.choice(TYPES))
    if kind == 1:
        return frame._replace(flags=rng.choice(FLAGS))
    return frame._replace(ids=rng.choice(IDS))


def in_bytes(rng: Random, frame: Frame) -> Frame:
    """Damage a payload. The frame's length stays right."""
    payload = bytearray(frame.payload or b"\0")
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.randrange(len(payload) + 1)
        change = rng.choice((b"", bytes([rng.randrange(256)]), rng.choice(VARINTS)))
        payload[place : place + rng.choice((0, 1, 1))] = change
    return frame._replace(payload=bytes(payload))


def fragmented(rng: Random, frame: Frame) -> list[Frame]:
    """A NOTIFY in fragments, sometimes aborted."""
    size = len(frame.payload)
    cuts = sorted(rng.randrange(size + 1) for _ in range(rng.choice((1, 1, 2, 4))))
    parts = [frame.payload[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    last = rng.choice((b"\0\0\0\1", b"\0\0\0\1", b"\0\0\0\1", b"\0\0\0\3"))
    return [
        Frame(0 if n else 3, last if n == len(parts) - 1 else bytes(4), frame.ids, part)
        for n, part in enumerate(parts)
    ]


def in_stream(rng: Random, frames: list[Frame]) -> None:
    kind = rng.randrange(8)
    if not frames or kind == 0:
        in_list(rng, frames, lambda: new_frame(rng))
        return
    place = rng.randrange(len(frames))
    if kind == 1:
        frames[place : place + 1] = fragmented(rng, frames[place])
    elif kind == 2:
        frames[place] = in_header(rng, frames[place])
    elif kind == 3:
        frames[place] = in_bytes(rng, frames[place])
    else:
        frames[place] = in_payload(rng, frames[place])


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """One to four mutations of a stream, and sometimes other options."""
    rng = Random(seed)
    options = data[:OPTIONS].ljust(OPTIONS, b"\0")
    if rng.randrange(4) == 0:
        options = rng.randbytes(OPTIONS)
    frames, rest = split(data[OPTIONS:])
    for _ in range(rng.choice((1, 1, 2, 4))):
        in_stream(rng, frames)
    if rng.randrange(8) == 0:
        rest = rng.randbytes(rng.randrange(12)) if rng.randrange(2) else b""
    return (options + join(frames, rest))[:max_size]
