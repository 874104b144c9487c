"""``spop decode``: captured bytes as readable frames."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from spop.address import MAX_PORT
from spop.cli import tree
from spop.cli.decoder import Decoder, Flags, Found, begins_frame
from spop.cli.parameters import Whole
from spop.cli.pasted import read_pasted
from spop.cli.source import PIECE, CutOffError, Source, is_text, kind_of, unzipped
from spop.constants import LENGTH_SIZE, FrameType

if TYPE_CHECKING:
    from spop.cli.capture import Conversation, Piece


@click.command(short_help="Print the frames of a capture, of text or of bytes.")
@click.argument("file", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each frame.")
@click.option("--port", type=Whole(1, MAX_PORT), help="Only connections to this port.")
@click.option("--hex", "as_hex", is_flag=True, help="Print the bytes of each frame, too.")
@click.option(
    "--format", "format_", type=click.Choice(["auto", "hex", "raw", "pcap"]), default="auto",
    show_default=True, help="What the file is; pcap means pcapng, too, and hex any text.",
)  # fmt: skip
def decode(file: BinaryIO, as_json: bool, port: int | None, as_hex: bool, format_: str) -> None:
    """Print the frames of FILE, or of standard input where it is "-".

    FILE is a packet capture (pcap, pcapng), the bytes of a connection, or text that shows
    bytes: hex, dumps of Wireshark, xxd, hexdump -C, tcpdump and gdb, arrays and literals of
    C, Go, Rust and Python, base64. Each can be zipped with gzip. In a capture all connections
    that speak SPOP are shown, in order of time. A damaged frame is marked where it breaks, and
    decoding goes on with the next. A pipe is read as it grows.

    The exit status is 0 when all frames were good, 1 when some were damaged, the end is missing
    or there were no frames, 2 for a mistake in the command.

    \b
    Examples:
      tcpdump -i lo -w agent.pcap port 9000; spop decode agent.pcap
      spop decode --json agent.pcapng | jq 'select(.type == "ACK")'
      tshark -i lo -w - port 9000 | spop decode -
      echo 00000008 67 00000001 01 01 … | spop decode -
    """
    good = damaged = 0
    for found in _frames(file, format_, port):
        good, damaged = good + (not found.damage), damaged + bool(found.damage)
        if as_json:
            click.echo(json.dumps(_as_object(found, as_hex)))
        else:
            _print(found, as_hex)
    if not good and not damaged:
        click.echo("Error: there is no SPOP in it", err=True)
    raise SystemExit(0 if good and not damaged else 1)


def _frames(file: Any, kind: str, port: int | None) -> Iterator[Found]:
    """The frames of a file.

    Raises:
        CutOffError: its end could not be read. What was before it has been returned.
        click.UsageError: it can't be read.
    """
    source = unzipped(file)
    kind = kind_of(source) if kind == "auto" else kind
    if kind == "pcap":
        yield from _captured(source, port)
    elif kind == "raw":
        yield from _connection(source)
    else:
        yield from _text(source.readall(), port)
    if source.damage:
        raise CutOffError(source.damage)


def _text(data: bytes, port: int | None) -> Iterator[Found]:
    """The frames of a text, or of what it says: a capture, zipped bytes."""
    if not is_text(data):
        yield from _connection(Source(io.BytesIO(data), False))
        return
    text = data.decode("utf-8-sig")
    pasted = read_pasted(text)
    if begins_frame(pasted):
        yield from _plain(b"".join(map(_with_length, _lines(text) or [pasted])))
    else:
        yield from _frames(io.BytesIO(pasted), "raw" if is_text(pasted) else "auto", port)


def _lines(text: str) -> list[bytes]:
    """The frames without their lengths that a text has on each of its lines, if it has."""
    try:
        frames = [read_pasted(line) for line in text.splitlines() if line.strip()]
    except click.UsageError:
        return []
    return frames if all(map(begins_frame, frames)) else []


def _connection(source: Source) -> Iterator[Found]:
    """The frames of a connection's bytes, as they come."""
    if begins_frame(source.peek(LENGTH_SIZE + 1)):
        yield from _plain(_with_length(source.readall()))
        return
    decoder = Decoder()
    while data := source.read(PIECE):
        yield from decoder.feed(data)
    yield from decoder.finish()


def _plain(data: bytes) -> Iterator[Found]:
    decoder = Decoder()
    yield from decoder.feed(data)
    yield from decoder.finish()


def _with_length(frame: bytes) -> bytes:
    """A frame, and its length that is missing in front of it."""
    length = len(frame).to_bytes(LENGTH_SIZE, "big")
    hint = f"taken for a frame without its length, which would be {length.hex()}"
    click.echo(f"Hint: {frame[:5].hex()}… ({len(frame)} bytes) is {hint}", err=True)
    return length + frame


def _captured(source: Source, port: int | None) -> Iterator[Found]:
    try:
        from spop.cli.capture import Capture, CaptureError
    except ModuleNotFoundError:
        message = "captures need an extra: pip install 'haproxy-spop[cli]'"
        raise click.UsageError(message) from None
    capture = Capture(io.BufferedReader(source))
    views: dict[Conversation, View] = {}
    try:
        for conversation, piece in capture.pieces(source.live):
            if conversation not in views:
                views[conversation] = View(conversation, port)
            yield from views[conversation].feed(piece)
    except CaptureError as error:
        raise click.UsageError(str(error)) from None
    for view in views.values():
        yield from view.finish()
    if capture.damage and not source.damage:
        raise CutOffError(capture.damage)


class View:
    """The frames of a connection in a capture.

    Args:
        port: only a connection to or from this port has any. Without it, one whose first bytes are
            the beginning of a frame.
    """

    def __init__(self, conversation: Conversation, port: int | None) -> None:
        first, second = conversation.first, conversation.second
        flags = Flags()
        self._directions = {first: f"{first} → {second}", second: f"{second} → {first}"}
        self._decoders = {end: Decoder(flags) for end in self._directions}
        self._time: float | None = None
        self._held: list[Piece] = []
        self._shown = port in (first.port, second.port) if port else None

    def feed(self, piece: Piece) -> Iterator[Found]:
        """The frames that a piece completes."""
        self._held.append(piece)
        if self._shown is None:
            self._shown = self._speaks_spop(piece)
        if self._shown is None:
            return
        pieces, self._held = self._held, []
        for time, source, data in pieces if self._shown else ():
            self._time, decoder = time, self._decoders[source]
            for found in decoder.skip(data) if isinstance(data, int) else decoder.feed(data):
                yield found._replace(direction=self._directions[source], time=time)

    def finish(self) -> Iterator[Found]:
        """Partial frames at the end."""
        for end, decoder in self._decoders.items():
            for found in decoder.finish():
                yield found._replace(direction=self._directions[end], time=self._time)

    def _speaks_spop(self, piece: Piece) -> bool | None:
        """Whether the first bytes of the side that spoke first are a frame; None: too few."""
        data = b"".join(
            each.data
            for each in self._held
            if each.source == piece.source and isinstance(each.data, bytes)
        )
        if len(data) <= 2 * LENGTH_SIZE:
            return None
        return data[:1] == b"\0" and begins_frame(data[LENGTH_SIZE:], {*FrameType})


def _print(found: Found, as_hex: bool) -> None:
    time = "" if found.time is None else f"{_clock(found.time)} "
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


def _clock(seconds: float) -> str:
    """The time of a day. A damaged capture has times of no day: they stay seconds."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S.%f}"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.6f} s"


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
