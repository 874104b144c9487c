"""`spop decode` reads what tools, debuggers and programs print of bytes, and captures as they are."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import dpkt
import pytest
from click.testing import CliRunner, Result
from test_tools import write_conversation

from spop import Message, codec
from spop.cli.decode import decode
from spop.cli.pasted import read_pasted

CAPTURES = Path(__file__).parent / "captures"
NOTIFY = bytes(
    codec.encode_notify(5, 1, [Message("check", ip="10.0.0.1", text="a|b \"c\" 'd' \\ 00 11", n=7)])
)
ACK = bytes(codec.encode_ack(5, 1, {"sess.score": 10}))
DATA = NOTIFY + ACK


def run(data: bytes, *options: str) -> Result:
    result = CliRunner().invoke(decode, [*options, "-"], input=data)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def frames(data: bytes, status: int = 0) -> list[dict[str, Any]]:
    result = run(data, "--json")
    assert result.exit_code == status, result.output
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def readable(data: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 else "." for b in data)


def rows(data: bytes, size: int = 16) -> list[tuple[int, bytes]]:
    return [(at, data[at : at + size]) for at in range(0, len(data), size)]


def halves(row: bytes) -> str:
    return row[:8].hex(" ") + "  " + row[8:].hex(" ")


def grouped(row: bytes) -> str:
    return " ".join(row[i : i + 2].hex() for i in range(0, len(row), 2))


def quoted(data: bytes) -> str:
    """As Rust and C print it: with escapes where they are needed."""
    special = {0: "\\0", 10: "\\n", 34: '\\"', 92: "\\\\"}
    octal_next = b"01234567"
    parts = []
    for at, byte in enumerate(data):
        follows = data[at + 1 : at + 2]
        if byte in special and not (byte == 0 and follows in [bytes([d]) for d in octal_next]):
            parts.append(special[byte])
        else:
            parts.append(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}")
    return "".join(parts)


def c_rows(data: bytes) -> str:
    return "".join(
        "".join(f"0x{byte:02x}, " for byte in row) + f"/* {readable(row).replace('*/', '..')} */\n"
        for _, row in rows(data, 8)
    )


NOTATIONS: dict[str, Callable[[bytes], str]] = {
    "wireshark": lambda d: "\n".join(
        f"{at:04x}   {row.hex(' '):<47}   {readable(row)}" for at, row in rows(d)
    ),
    "wireshark without text": lambda d: "\n".join(f"{at:04x}   {row.hex(' ')}" for at, row in rows(d)),
    "wireshark without offsets": lambda d: "\n".join(
        f"{row.hex(' '):<47}   {readable(row)}" for _, row in rows(d)
    ),
    "wireshark from inside of a packet": lambda d: "\n".join(
        f"{at + 0x42:04x}   {row.hex(' '):<47}   {readable(row)}" for at, row in rows(d)
    ),
    "wireshark follows a stream": lambda d: "\n".join(
        f"    {at:08x}  {halves(row):<48}   {readable(row[:8])} {readable(row[8:])}"
        for at, row in rows(d)
    ),
    "wireshark hex stream": lambda d: d.hex(),
    "wireshark colons": lambda d: d.hex(":"),
    "wireshark escaped string": lambda d: "\\\n".join(
        '"' + "".join(f"\\x{b:02x}" for b in row) + '"' for _, row in rows(d)
    ),
    "wireshark c array": lambda d: (
        f"char peer0_0[] = {{ /* Packet 4 */\n{c_rows(d).rstrip()} }};\n"
    ),
    "tshark -x": lambda d: "\n".join(
        f"{at:04x}  {row.hex(' '):<47}  {readable(row)}" for at, row in rows(d)
    ),
    "xxd": lambda d: "\n".join(f"{at:08x}: {grouped(row):<39}  {readable(row)}" for at, row in rows(d)),
    "xxd -g1 -u": lambda d: "\n".join(
        f"{at:08x}: {row.hex(' ').upper():<47}  {readable(row)}" for at, row in rows(d)
    ),
    "xxd -p": lambda d: "\n".join(row.hex() for _, row in rows(d, 30)),
    "xxd -i": lambda d: (
        "unsigned char frame_bin[] = {\n  "
        + ",\n  ".join(", ".join(f"0x{b:02x}" for b in row) for _, row in rows(d, 12))
        + f"\n}};\nunsigned int frame_bin_len = {len(d)};\n"
    ),
    "hexdump -C": lambda d: "".join(
        f"{at:08x}  {halves(row):<49} |{readable(row)}|\n" for at, row in rows(d)
    ) + f"{len(d):08x}\n",
    "od -tx1": lambda d: "".join(f"{at:07o} {row.hex(' ')}\n" for at, row in rows(d))
    + f"{len(d):07o}\n",
    "od -An -tx1": lambda d: "".join(f" {row.hex(' ')}\n" for _, row in rows(d)),
    "tcpdump -X": lambda d: "\n".join(
        f"\t0x{at:04x}:  {grouped(row):<39}  {readable(row)}" for at, row in rows(d)
    ),
    "gdb x/32xb": lambda d: "(gdb) x/32xb buf\n" + "\n".join(
        f"0x7fffffffe{at:03x}:\t" + "\t".join(f"0x{b:02x}" for b in row) for at, row in rows(d, 8)
    ),
    "gdb with symbols": lambda d: "\n".join(
        f"0x5555555{at:05x} <buf+{at}>:\t" + "\t".join(f"0x{b:02x}" for b in row)
        for at, row in rows(d, 8)
    ),
    "gdb print": lambda d: "$1 = {" + ", ".join(f"0x{b:x}" for b in d) + "}",
    "c array": lambda d: (
        f"static const unsigned char buf[{len(d)}] = {{\n{c_rows(d)}}};  // {len(d)} bytes, as sent"
    ),
    "c array in decimal": lambda d: "uint8_t buf[] = {" + ", ".join(map(str, d)) + "};",
    "c literal": lambda d: f'const char *frame = "{quoted(d)}";',
    "hex escapes in quotes": lambda d: '"' + "".join(f"\\x{b:02x}" for b in d) + '"',
    "hex escapes for printf": lambda d: "".join(f"\\x{b:02x}" for b in d),
    "go array": lambda d: "data := []byte{" + ", ".join(f"{b:#x}" for b in d) + "}",
    "go lines": lambda d: "[]byte{\n"
    + "".join("\t" + " ".join(f"0x{b:02x}," for b in row) + "\n" for _, row in rows(d, 8)) + "}",
    "go slice": lambda d: "[" + " ".join(map(str, d)) + "]",
    "go % x": lambda d: d.hex(" "),
    "rust debug": lambda d: "[" + ", ".join(map(str, d)) + "]",
    "rust debug in hex": lambda d: "[" + ", ".join(f"{b:02x}" for b in d) + "]",
    "rust literal": lambda d: f'let frame = b"{quoted(d)}";',
    "rust array": lambda d: (
        f"let frame: [u8; {len(d)}] = [" + ", ".join(f"0x{b:02X}" for b in d) + "];"
    ),
    "python repr": repr,
    "python bytearray": lambda d: repr(bytearray(d)),
    "python list": lambda d: f"bytes({list(d)})",
    "python fromhex": lambda d: f'bytes.fromhex("{d.hex()}")',
    "javascript": lambda d: json.dumps({"type": "Buffer", "data": list(d)}),
    "java": lambda d: str([b - 256 if b > 127 else b for b in d]),
    "dashes": lambda d: d.hex("-").upper(),
    "colons in lines": lambda d: "".join(f"    {row.hex(':')}:\n" for _, row in rows(d, 15)),
    "base64": lambda d: base64.b64encode(d).decode(),
    "base64 in lines": lambda d: base64.encodebytes(d).decode(),
    "base64 of urls": lambda d: base64.urlsafe_b64encode(d).decode().rstrip("="),
    "base64 in quotes": lambda d: f'"{base64.b64encode(d).decode()}"',
}  # fmt: skip


@pytest.mark.parametrize("name", NOTATIONS)
def test_a_notation_is_read(name: str) -> None:
    text = NOTATIONS[name](DATA)
    if name == "python fromhex":
        assert [frame["type"] for frame in frames(text.encode())] == ["NOTIFY", "ACK"]
    assert read_pasted(text) == DATA
    assert read_pasted(text.replace("\n", "\r\n")) == DATA
    for data in (text.encode(), b"\xef\xbb\xbf" + text.encode(), gzip.compress(text.encode())):
        assert [frame["type"] for frame in frames(data)] == ["NOTIFY", "ACK"]


@pytest.mark.parametrize("seed", range(30))
def test_a_notation_is_read_whatever_the_bytes(seed: int) -> None:
    chance = random.Random(seed)
    letters = b"ab01 |:.,\\\"'[]{}-\0\x08\xff*/"
    body = bytes(chance.choices(letters, k=chance.randrange(1, 60)))
    data = bytes(codec.encode_notify(1, 1, [Message("m", x=body)]))
    for name, show in NOTATIONS.items():
        assert read_pasted(show(data)) == data, name


def test_lines_that_a_dump_leaves_out_are_put_back() -> None:
    data = bytes(codec.encode_notify(1, 1, [Message("m", x=bytes(200))]))
    shown, before = [], b""
    for line, (_, row) in zip(NOTATIONS["hexdump -C"](data).splitlines(), rows(data), strict=False):
        if row != before:
            shown.append(line)
        elif shown[-1] != "*":
            shown.append("*")
        before = row
    assert "*" in shown
    assert read_pasted("\n".join([*shown, f"{len(data):08x}"])) == data


@pytest.mark.parametrize("name", ["raw", "xxd", "python repr", "go slice", "base64", "c array"])
def test_a_frame_without_its_length_is_taken_with_a_hint(name: str) -> None:
    bare = NOTIFY[4:]
    data = bare if name == "raw" else NOTATIONS[name](bare).encode()
    assert [frame["type"] for frame in frames(data)] == ["NOTIFY"]
    assert f"a frame without its length, which would be {NOTIFY[:4].hex()}" in run(data).output


def test_each_line_can_have_a_frame_without_its_length() -> None:
    text = f"{NOTIFY[4:].hex()}\n{ACK[4:].hex()}\n"
    assert [frame["type"] for frame in frames(text.encode())] == ["NOTIFY", "ACK"]


@pytest.mark.parametrize("inside", ["raw", "pcap", "hex"])
def test_gzip_of_anything_is_unzipped(inside: str) -> None:
    capture = (CAPTURES / "haproxy-3.4.pcap").read_bytes()
    data = {"raw": DATA, "pcap": capture, "hex": DATA.hex().encode()}[inside]
    expected = frames(data)
    assert expected
    assert frames(gzip.compress(data)) == expected
    assert frames(gzip.compress(gzip.compress(data))) == expected
    assert frames(base64.b64encode(gzip.compress(data))) == expected


def test_text_of_a_capture_is_read_as_the_capture() -> None:
    capture = (CAPTURES / "haproxy-3.4.pcap").read_bytes()
    expected = frames(capture)
    assert frames(NOTATIONS["xxd"](capture).encode()) == expected
    assert frames(base64.b64encode(capture)) == expected


def test_gzip_that_is_cut_off_is_told_and_what_there_was_is_shown() -> None:
    acks = b"".join(bytes(codec.encode_ack(n, 1, {"sess.x": n})) for n in range(20_000))
    result = run(gzip.compress(acks)[:-2000], "--json")
    assert result.exit_code == 1
    assert "Error: the gzip file is cut off or damaged: " in result.output
    assert result.output.count('"ACK"') > 1000


# --- captures ---


def as_pcapng(packets: list[tuple[float, bytes]]) -> bytes:
    file = io.BytesIO()
    writer = dpkt.pcapng.Writer(file)
    for time, packet in packets:
        writer.writepkt(packet, time)
    return file.getvalue()


def packets(version: str = "2.6") -> list[tuple[float, bytes]]:
    with (CAPTURES / f"haproxy-{version}.pcap").open("rb") as file:
        return list(dpkt.pcap.Reader(file))


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
@pytest.mark.parametrize("left", [5, 20, 26, 70, 5000, -3, -20])
def test_a_capture_that_is_cut_off_is_told_and_what_there_was_is_shown(
    form: str, left: int
) -> None:
    whole = (CAPTURES / "haproxy-2.6.pcap").read_bytes()
    data = (whole if form == "pcap" else as_pcapng(packets()))[:left]
    result = run(data, "--json")
    assert result.exit_code == 1
    assert "Error: the capture is cut off: " in result.output
    assert "there is no SPOP" not in result.output
    count = result.output.count('"offset"')
    assert count > 1 if left == 5000 or left < 0 else count == 0


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_a_capture_with_an_impossible_size_is_damaged(form: str) -> None:
    whole = (CAPTURES / "haproxy-2.6.pcap").read_bytes()
    data = bytearray(whole if form == "pcap" else as_pcapng(packets()))
    data[-400:] = b"\xff" * 400
    result = run(bytes(data))
    assert result.exit_code in (0, 1)
    broken = struct.pack("<II", 6, 3) if form == "pcapng" else struct.pack("<4I", 0, 0, 2**31, 0)
    result = run((whole if form == "pcap" else as_pcapng(packets())) + broken + bytes(50))
    assert result.exit_code == 1
    assert "Error: the capture is damaged: " in result.output


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_time_that_no_clock_shows_is_shown_as_it_is(arguments: tuple[str, ...]) -> None:
    data = bytearray(as_pcapng(packets()))
    for found in re.finditer(rb"\x06\0\0\0....\0\0\0\0", bytes(data), re.DOTALL):
        data[found.end() : found.end() + 8] = b"\xff" * 8
    result = run(bytes(data), *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "18446744073709.55" in result.output


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" + random.Random(1).randbytes(4 << 20),
        bytes(4 << 20),
        b"00 " * 300_000,
        b"00  " * 300_000,
        b"[" + b"1, " * 100_000,
    ],
    ids=["garbage", "zeros", "hex", "columns", "array"],
)
def test_long_files_take_no_time_in_the_square(data: bytes) -> None:
    """Each takes a second, and took minutes when each byte was looked at again and again."""
    began = process_time()
    run(data)
    assert process_time() - began < 20


def test_frames_of_several_connections_are_shown_in_order_of_time() -> None:
    disordered = packets()[::2] + packets()[1::2]
    file = io.BytesIO()
    writer = dpkt.pcap.Writer(file)
    for time, packet in disordered:
        writer.writepkt(packet, time)
    expected = frames((CAPTURES / "haproxy-2.6.pcap").read_bytes())
    times = [frame["time"] for frame in expected]
    assert len({frame["direction"] for frame in expected}) > 2
    assert times == sorted(times)
    assert sorted(map(str, frames(file.getvalue()))) == sorted(map(str, expected))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nano", [False, True])
def test_any_byte_order_and_any_resolution_of_pcap(order: str, nano: bool) -> None:
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    for time, packet in packets():
        part = round(time % 1 * (1e9 if nano else 1e6))
        data += struct.pack(order + "4I", int(time), part, len(packet), len(packet)) + packet
    expected = frames((CAPTURES / "haproxy-2.6.pcap").read_bytes())
    found = frames(data)
    assert [f["time"] for f in found] == pytest.approx([f["time"] for f in expected], abs=1e-5)
    assert [f["type"] for f in found] == [f["type"] for f in expected]


@pytest.mark.parametrize("form", ["pcap", "pcapng", "pcap.gz", "raw"])
def test_a_capture_is_followed_as_it_grows(form: str) -> None:
    """The second frame is shown before the pipe has ended."""
    capture = (CAPTURES / "haproxy-2.6.pcap").read_bytes()
    data = {"pcap": capture, "pcapng": as_pcapng(packets()), "raw": DATA * 2}.get(form, capture)
    if form == "pcap.gz":
        zipper = zlib.compressobj(wbits=31)
        data = zipper.compress(data) + zipper.flush(zlib.Z_SYNC_FLUSH)
    process = subprocess.Popen(
        [sys.executable, "-m", "spop", "decode", "--json", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(data)
        process.stdin.flush()
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert first["type"] in ("NOTIFY", "HAPROXY-HELLO")
        assert second["type"] in ("ACK", "AGENT-HELLO")
        process.stdin.close()
        process.stdout.read()


def test_a_connection_of_another_protocol_is_not_shown(tmp_path: Path) -> None:
    """The frames of Kafka begin with a length, too."""
    kafka = bytes.fromhex("00000020 0003 0009 00000001 0009") + b"x" * 22
    write_conversation(tmp_path / "kafka.pcap", [kafka, kafka])
    result = run((tmp_path / "kafka.pcap").read_bytes())
    assert result.exit_code == 1
    assert result.output == "Error: there is no SPOP in it\n"


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    file = str(CAPTURES / "haproxy-2.6.pcap")
    line = f"{sys.executable} -m spop decode --hex {file} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert re.fullmatch(r"\d\d:.* @0\n0\n", done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "words",
    [
        ["notify", "127.0.0.1:1", "m", "x=@/dev/zero", "--dry-run"],
        ["notify", "127.0.0.1:1", "m", "x:bin=@/dev/zero", "--dry-run"],
        ["engine", "EXAMPLE", "--agent", "127.0.0.1:1", "body=@/dev/zero"],
        ["engine", "EXAMPLE", "--agent", "127.0.0.1:1", "var:txn.a=@/dev/zero"],
    ],
)
def test_a_file_without_an_end_is_no_value(words: list[str]) -> None:
    example = str(Path(__file__).parent.parent / "examples" / "spoe.cfg")
    words = [example if word == "EXAMPLE" else word for word in words]
    command = [sys.executable, "-m", "spop", *words]
    if "engine" in words:
        command += ["--event", "on-frontend-http-request"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "/dev/zero has more than 64 MiB" in done.stderr
    assert done.stderr.count("\n") == 1
