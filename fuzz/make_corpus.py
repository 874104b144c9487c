"""Makes the corpus anew: inputs out of what real HAProxys sent and were answered.

    python fuzz/make_corpus.py [HAPROXY...]

It captures each HAProxy as `ci/make_captures.py` does, which needs tcpdump. What fuzzing found is
in files whose names begin with ``found-``; they stay.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "ci"), str(HERE.parent / "tests")]

from haproxy import installed  # noqa: E402
from make_captures import SPOE, capture  # noqa: E402
from structure import OPTIONS, Frame, join, split  # noqa: E402
from targets import TARGETS  # noqa: E402

from spop._typed_data_py import encode_string  # noqa: E402
from spop.cli.capture import Capture  # noqa: E402
from spop.constants import FrameType  # noqa: E402

CORPUS = HERE / "corpus"
ARGUMENTS = "args bin=req.hdrs_bin b=req.hdrs a=src c=bool(true) "
"""Of the handlers that are fuzzed, in front of those that the captures have."""
HANDLED = ("m", "h", "whole", "late", "left", "kept", "large")
LARGEST = 1500
FROM_ENGINE = ("codec", "dispatcher", "intake", "server_connection")
FROM_AGENT = ("codec", "acks", "client_connection")
PACKETS = (3, 6, 12)


def main() -> None:
    for target in TARGETS:
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not path.name.startswith("found-"):
                path.unlink()
    keep_config()
    spoe = SPOE.replace("args ", ARGUMENTS)
    with tempfile.TemporaryDirectory() as folder:
        for binary in sys.argv[1:] or installed():
            path = Path(folder) / "capture.pcap"
            capture(binary, path, spoe)
            keep_capture(path.read_bytes())
            for stream in streams(path):
                keep_stream(stream)
    for target in TARGETS:
        print(f"{target}: {len(list((CORPUS / target).iterdir()))} inputs")


def keep(target: str, stream: bytes, options: bytes = b"") -> None:
    data = options.ljust(OPTIONS, b"\0") + stream
    name = hashlib.sha256(data).hexdigest()[:16]
    (CORPUS / target / name).write_bytes(data)


def streams(path: Path) -> Iterator[bytes]:
    """What each side of each connection sent."""
    sides: dict[tuple[int, object], bytearray] = {}
    with path.open("rb") as file:
        for conversation, piece in Capture(file).pieces(live=False):
            assert isinstance(piece.data, bytes)
            sides.setdefault((id(conversation), piece.source), bytearray()).extend(piece.data)
        yield from map(bytes, sides.values())


_known: set[tuple[object, ...]] = set()


def keep_stream(stream: bytes) -> None:
    """A connection as it was, and each kind of frame once, for each handler."""
    frames = [smaller(frame) for frame in split(stream)[0]]
    kinds = tuple((frame.type, frame.flags, len(frame.payload)) for frame in frames)
    if not frames or kinds in _known:
        return
    _known.add(kinds)
    targets = FROM_ENGINE if frames[0].type == FrameType.HAPROXY_HELLO else FROM_AGENT
    for target in targets:
        keep(target, join(frames[:8], b""))
    for frame in frames:
        kind = (frame.type, frame.flags, len(frame.payload) // 50)
        if kind in _known:
            continue
        _known.add(kind)
        keep("codec", join([frame], b""))
        keep("acks" if frame.type == FrameType.ACK else "intake", join([frame], b""), b"\1")
        if frame.type == FrameType.NOTIFY and frame.flags[-1] == 1:
            keep_notify(frame)


def keep_notify(frame: Frame) -> None:
    name = bytes(encode_string("check"))
    for handled in HANDLED:
        renamed = frame.payload.replace(name, bytes(encode_string(handled)))
        keep("dispatcher", join([frame._replace(payload=renamed)] * 2, b""))
    keep("headers", frame.payload[-300:])
    for start, end in ((b"\x01b\x08", b"\r\n\r\n"), (b"\x03bin\x09", b"\0\0")):
        at = frame.payload.find(start)
        if at >= 0:
            begin = at + len(start) + 1
            keep("headers", frame.payload[begin : frame.payload.find(end, begin) + len(end)], b"\6")


def smaller(frame: Frame) -> Frame:
    """A frame without most of a long run of one byte: the body of a request."""
    payload = frame.payload
    if len(payload) > LARGEST and frame.type in (FrameType.NOTIFY, FrameType.UNSET):
        payload = payload[:LARGEST]
    return frame._replace(payload=payload)


def keep_capture(data: bytes) -> None:
    """The first packets of a capture, as pcap and as pcapng."""
    offset, packets = 24, []
    while offset + 16 <= len(data) and len(packets) < max(PACKETS):
        size = struct.unpack_from("<I", data, offset + 8)[0]
        packets.append(data[offset : offset + 16 + size])
        offset += 16 + size
    for count in PACKETS:
        keep("capture", data[:24] + b"".join(packets[:count]))
    ng = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    ng += block(1, struct.pack("<HHIHHB3xHH", 1, 0, 65535, 9, 1, 6, 0, 0))
    for packet in packets[:6]:
        seconds, micro, size, length = struct.unpack_from("<4I", packet)
        time = seconds * 1_000_000 + micro
        ng += block(
            6, struct.pack("<5I", 0, time >> 32, time & 0xFFFFFFFF, size, length) + packet[16:]
        )
    keep("capture", ng)


def block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def keep_config() -> None:
    """The SPOE files of the tests."""
    config = HERE.parent / "tests" / "config"
    for path in sorted((config / "real").iterdir()):
        keep("spoe_file", path.read_bytes())
    for text in (config / "files.txt").read_text().split("\n=== ")[1:]:
        keep("spoe_file", text.partition("\n")[2].replace("[test]", "[engine]").encode(), b"\2")
    for name in ("agent_lines.txt", "message_lines.txt"):
        kind = "spoe-" + name.partition("_")[0]
        lines = [
            line[2:]
            for line in (config / name).read_text().splitlines()
            if line[:2] in ("+ ", "- ")
        ]
        for at in range(0, len(lines), 12):
            keep("spoe_file", "\n    ".join([f"{kind} a", *lines[at : at + 12], ""]).encode())


if __name__ == "__main__":
    main()
