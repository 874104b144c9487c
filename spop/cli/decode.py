"""``spop decode``: captured bytes as readable frames."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import click

from spop import codec
from spop.cli import tree
from spop.constants import FrameType
from spop.dispatch import Dispatcher, Intake
from spop.errors import ProtocolError
from spop.frames import Control, Frame, Notify, RawFrame
from spop.handshake import flags_of_hello
from spop.values import Buffer

if TYPE_CHECKING:
    from spop.cli.capture import Conversation

MAX_FRAME_SIZE = 64 * 1024 * 1024
"""Bytes above which the length of a frame counts as damage."""
PCAP_MAGIC = (
    b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1",
    b"\x0a\x0d\x0d\x0a",
)  # fmt: skip


class Found(NamedTuple):
    """A frame, or damaged bytes in its place.

    Attributes:
        offset: its offset in the bytes of its direction.
        damage: what is wrong. `frame` is then what HAProxy takes of it, if anything.
        payload: the NOTIFY that a last fragment completed.
        direction: from where to where; empty if not known.
        time: when its last packet was captured, if known.
    """

    offset: int
    data: bytes
    frame: Frame | None
    damage: str = ""
    payload: Frame | None = None
    direction: str = ""
    time: float | None = None


@dataclass
class Flags:
    """How a connection writes flags, as its HELLO frames show.

    Attributes:
        little_endian: in the order of SPOP 1.0 on x86 (HAProxy 1.7 and early 1.8).
        whole: there are no flags, as with HAProxy 1.7, and each frame is whole.
    """

    little_endian: bool = False
    whole: bool = False


class Decoder:
    """Reads the frames in the bytes of one direction. It goes on behind damaged ones.

    Args:
        flags: shared with the decoder of the other direction.
    """

    def __init__(self, flags: Flags | None = None) -> None:
        self._flags = flags or Flags()
        self._data = bytearray()
        self._offset = 0
        self._intake = Intake(MAX_FRAME_SIZE)
        self._dispatcher = Dispatcher(max_messages=MAX_FRAME_SIZE, max_arguments=MAX_FRAME_SIZE)

    def feed(self, data: bytes) -> Iterator[Found]:
        """The frames that these bytes complete."""
        self._data += data
        while len(self._data) >= 4:
            length = int.from_bytes(self._data[:4], "big")
            if not 7 <= length <= MAX_FRAME_SIZE:
                if not (yield from self._search(f"{length} is no length of a frame")):
                    return
            elif len(self._data) < 4 + length:
                return
            else:
                yield self._frame(4 + length)

    def skip(self, size: int) -> Iterator[Found]:
        """Skip bytes that are missing."""
        yield from self.finish(f"{size} bytes are missing here")
        self._offset += size

    def finish(self, why: str = "the bytes end inside of a frame") -> Iterator[Found]:
        """End the bytes. A partial frame is damage."""
        if self._data:
            yield Found(self._offset, self._take(len(self._data)), None, why)

    def _take(self, size: int) -> bytes:
        data = bytes(self._data[:size])
        del self._data[:size]
        self._offset += size
        return data

    def _frame(self, size: int) -> Found:
        offset, data = self._offset, self._take(size)
        if data[4] in (FrameType.HAPROXY_HELLO, FrameType.AGENT_HELLO):
            self._see_flags(data)
        try:
            ((frame,), _) = _decode(data, self._flags)
        except ProtocolError as error:
            return Found(offset, data, self._taken(data), str(error))
        return Found(offset, data, frame, "", self._payload(frame, data))

    def _see_flags(self, hello: bytes) -> None:
        self._flags.little_endian, none = flags_of_hello(hello, 4)
        # HAProxy 1.7 sets no flags. In a HELLO of SPOP 2.0 that is damage.
        if none and _speaks_1_0(hello):
            self._flags.whole = True

    def _taken(self, data: bytes) -> Frame | None:
        """What HAProxy takes of a damaged frame; None: nothing."""
        try:
            ((frame,), _) = _decode(data, self._flags, lenient=True)
        except ProtocolError:
            return None
        return frame

    def _payload(self, frame: Frame, data: bytes) -> Notify | None:
        """The NOTIFY that a fragment completes, put together as an agent does it."""
        if not isinstance(frame, RawFrame):
            return None
        if frame.type == FrameType.NOTIFY:
            self._intake = _open_intake(self._flags)
        try:
            frames, _ = self._dispatcher.receive(self._intake, data)
        except ProtocolError:
            self._intake.close()
            return None
        return next((each for each in frames if isinstance(each, Notify)), None)

    def _search(self, why: str) -> Generator[Found, None, bool]:
        """Look for the next frame behind damaged bytes. Returns whether there is one."""
        for start in range(1, len(self._data) - 11):
            length = int.from_bytes(self._data[start : start + 4], "big")
            end = start + 4 + length
            if length >= 7 and end <= len(self._data) and self._is_frame(self._data[start:end]):
                yield Found(self._offset, self._take(start), None, why)
                return True
        return False

    def _is_frame(self, data: bytearray) -> bool:
        if data[4] not in set(FrameType):
            return False
        try:
            return bool(_decode(data, self._flags)[0])
        except ProtocolError:
            return False


def _decode(data: Buffer, flags: Flags, lenient: bool = False) -> tuple[list[Frame], int]:
    return codec.decode_frames(
        data,
        max_frame_size=MAX_FRAME_SIZE,
        little_endian=flags.little_endian,
        whole=flags.whole,
        lenient=lenient,
    )


def _speaks_1_0(hello: bytes) -> bool:
    """Whether a HELLO announces version 1."""
    try:
        ((frame,), _) = _decode(hello, Flags(whole=True))
    except ProtocolError:
        return False
    assert isinstance(frame, Control)
    versions = frame.items.get("supported-versions", frame.items.get("version"))
    return any(each.strip().startswith("1.") for each in str(versions).split(","))


def _open_intake(flags: Flags) -> Intake:
    """An intake that takes a payload in fragments."""
    intake = Intake(MAX_FRAME_SIZE, MAX_FRAME_SIZE)
    intake.is_open = intake.takes_fragments = True
    intake.little_endian = flags.little_endian
    return intake


@click.command(short_help="Print the frames of a capture, of hex or of bytes.")
@click.argument("file", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each frame.")
@click.option("--port", type=click.IntRange(1, 65535), help="Only connections to this port.")
@click.option("--hex", "as_hex", is_flag=True, help="Print the bytes of each frame, too.")
@click.option(
    "--format", "format_", type=click.Choice(["auto", "hex", "raw", "pcap"]), default="auto",
    show_default=True, help="What the file is; pcap means pcapng, too.",
)  # fmt: skip
def decode(file: BinaryIO, as_json: bool, port: int | None, as_hex: bool, format_: str) -> None:
    """Print the frames of FILE, or of standard input where it is "-".

    FILE is a packet capture (pcap, pcapng), the bytes of a connection as they are, or as hex
    text: plain, or as xxd, hexdump -C and tcpdump print it. In a capture all connections that
    speak SPOP are shown, both directions in the order of time. A damaged frame is marked
    where it breaks, and decoding goes on with the next.

    The exit status is 0 when all frames were good, 1 when some were damaged or there were
    none, 2 for a mistake in the command.

    \b
    Examples:
      tcpdump -i lo -w agent.pcap port 9000; spop decode agent.pcap
      spop decode --json agent.pcapng | jq 'select(.type == "ACK")'
      echo 00000008 67 00000001 01 01 … | spop decode -
    """
    data = file.read()
    kind = _kind(data) if format_ == "auto" else format_
    good = damaged = 0
    for found in _captured(data, port) if kind == "pcap" else _plain(data, kind):
        good, damaged = good + (not found.damage), damaged + bool(found.damage)
        if as_json:
            click.echo(json.dumps(_as_object(found, as_hex)))
        else:
            _print(found, as_hex)
    if not good and not damaged:
        click.echo("Error: there is no SPOP in it", err=True)
    raise SystemExit(0 if good and not damaged else 1)


def _kind(data: bytes) -> str:
    if data[:4] in PCAP_MAGIC:
        return "pcap"
    return "hex" if re.fullmatch(rb"[\x20-\x7e\s]*", data) else "raw"


def _plain(data: bytes, kind: str) -> Iterator[Found]:
    decoder = Decoder()
    yield from decoder.feed(data if kind == "raw" else read_hex(data.decode("ascii", "replace")))
    yield from decoder.finish()


def read_hex(text: str) -> bytes:
    """The bytes of hex text, without offsets and readable columns.

    Raises:
        click.UsageError: a line has something else. The message names it.
    """
    columns = _columns(text)
    data = bytearray()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            data += bytes.fromhex("".join(columns(line).split()))
        except ValueError:
            raise click.UsageError(f"line {number} is no hex: {line.strip()[:60]!r}") from None
    return bytes(data)


def _columns(text: str) -> Callable[[str], str]:
    """The function that finds the digits in a line, for the tool whose output this is."""
    if re.search(r"(?m)^[0-9a-fA-F]{7,}  .*\|$", text):
        return _hexdump_columns
    if re.search(r"(?m)^\s*(?:0x)?[0-9a-fA-F]+:\s", text):
        return _xxd_columns
    return str


def _hexdump_columns(line: str) -> str:
    """``hexdump -C``: an offset, two spaces, the digits, the text between bars."""
    return line.partition("  ")[2].partition("|")[0]


def _xxd_columns(line: str) -> str:
    """``xxd`` and ``tcpdump -x``: an offset, a colon, the digits, two spaces, the text."""
    return line.partition(":")[2].strip().partition("  ")[0]


def _captured(data: bytes, port: int | None) -> Iterator[Found]:
    try:
        from spop.cli.capture import CaptureError, read_conversations
    except ModuleNotFoundError:
        message = "captures need an extra: pip install 'haproxy-spop[cli]'"
        raise click.UsageError(message) from None
    try:
        conversations = read_conversations(io.BytesIO(data))
    except CaptureError as error:
        raise click.UsageError(str(error)) from None
    for each in conversations:
        if port in (each.first.port, each.second.port) if port else _speaks_spop(each):
            yield from _conversation(each)


def _conversation(conversation: Conversation) -> Iterator[Found]:
    first, second = conversation.first, conversation.second
    directions = {first: f"{first} → {second}", second: f"{second} → {first}"}
    flags = Flags()
    time: float | None = None
    decoders = {end: Decoder(flags) for end in directions}
    for time, source, data in conversation.pieces:
        decoder = decoders[source]
        for found in decoder.skip(data) if isinstance(data, int) else decoder.feed(data):
            yield found._replace(direction=directions[source], time=time)
    for end, decoder in decoders.items():
        for found in decoder.finish():
            yield found._replace(direction=directions[end], time=time)


def _speaks_spop(conversation: Conversation) -> bool:
    """Whether the first bytes of either side are a frame."""
    for end in (conversation.first, conversation.second):
        data = b"".join(
            data
            for _, source, data in conversation.pieces[:20]
            if source == end and isinstance(data, bytes)
        )
        if data and not (len(data) > 8 and data[4] in set(FrameType) and data[:1] == b"\0"):
            return False
    return bool(conversation.pieces)


def _print(found: Found, as_hex: bool) -> None:
    time = "" if found.time is None else f"{datetime.fromtimestamp(found.time, UTC):%H:%M:%S.%f} "
    direction = f"{found.direction} " if found.direction else ""
    click.echo(click.style(f"{time}{direction}@{found.offset}", dim=True))
    if as_hex:
        click.echo(f"  {found.data.hex()}")
    if found.damage:
        marked = click.style("damaged", fg="red", bold=True)
        click.echo(
            f"  {marked}: {found.damage} ({len(found.data)} bytes: {found.data[:32].hex()}…)"
        )
    if found.frame is None:
        return
    for line in tree.lines(found.frame):
        click.echo(f"  {line}")
    if found.payload is not None:
        click.echo("  with its fragments:")
        for line in tree.lines(found.payload):
            click.echo(f"    {line}")


def _as_object(found: Found, as_hex: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"offset": found.offset}
    if found.direction:
        shown |= {"direction": found.direction, "time": found.time}
    if found.damage:
        shown |= {"type": "damaged", "error": found.damage, "hex": found.data.hex()}
    if found.frame is not None:
        shown |= tree.as_object(found.frame)
    if found.payload is not None:
        shown["payload"] = tree.as_object(found.payload)
    if as_hex:
        shown["hex"] = found.data.hex()
    return shown
