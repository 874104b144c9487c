"""The dissector for Wireshark: its tables are those of `constants.py`, and tshark reads with it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from test_tools import write_conversation

from spop import Message, codec
from spop.constants import (
    FLAGS_END,
    LENGTH_SIZE,
    LONG_VARINT,
    SHORTEST_FRAME,
    TYPE_MASK,
    ActionType,
    DataType,
    FrameFlag,
    FrameType,
    Scope,
    Status,
)

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "contrib" / "wireshark" / "spop.lua"
TEXT = SCRIPT.read_text()
CAPTURES = Path(__file__).parent / "captures"
needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="there is no tshark")

ENUMS = {
    "FRAME_TYPES": FrameType,
    "FRAME_FLAGS": FrameFlag,
    "DATA_TYPES": DataType,
    "ACTION_TYPES": ActionType,
    "SCOPES": Scope,
}


def table(name: str) -> dict[int, str]:
    (body,) = re.findall(rf"local {name} = \{{\n(.*?)\n\}}", TEXT, re.DOTALL)
    return {int(number): text for number, text in re.findall(r'\[(\d+)\] = "(.*?)",', body)}


@pytest.mark.parametrize("name", ENUMS)
def test_its_tables_are_those_of_the_constants(name: str) -> None:
    assert table(name) == {member: member.name.replace("_", "-") for member in ENUMS[name]}


def test_its_statuses_are_those_of_the_constants() -> None:
    assert table("STATUS") == {status: status.message for status in Status}


def test_its_numbers_are_those_of_the_constants() -> None:
    types = (
        "HAPROXY_HELLO",
        "HAPROXY_DISCONNECT",
        "NOTIFY",
        "AGENT_HELLO",
        "AGENT_DISCONNECT",
        "ACK",
    )
    for line in (types[:3], types[3:]):
        assert (
            f"local {', '.join(line)} = {', '.join(str(int(FrameType[n])) for n in line)}\n" in TEXT
        )
    sizes = f"{LENGTH_SIZE}, {SHORTEST_FRAME}, {FLAGS_END}"
    assert f"local LENGTH_SIZE, SHORTEST_FRAME, FLAGS_END = {sizes}\n" in TEXT
    assert f"if first < {LONG_VARINT} then" in TEXT
    assert f"head % {TYPE_MASK + 1}\n" in TEXT


def test_the_source_distribution_contains_it() -> None:
    folder = SCRIPT.relative_to(ROOT).parts[0]
    assert f"graft {folder}\n" in (ROOT / "MANIFEST.in").read_text()


def tshark(capture: Path, *words: str) -> list[str]:
    done = subprocess.run(
        ["tshark", "-X", f"lua_script:{SCRIPT}", "-r", str(capture), *words],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "Lua" not in done.stderr
    return done.stdout.splitlines()


def fields(capture: Path, *names: str) -> list[list[str]]:
    words = [word for name in names for word in ("-e", name)]
    return [line.split("\t") for line in tshark(capture, "-Y", "spop", "-T", "fields", *words)]


@needs_tshark
@pytest.mark.parametrize("version", ["1.8", "2.6", "3.0", "3.4"])
def test_tshark_reads_the_captures(version: str) -> None:
    capture = CAPTURES / f"haproxy-{version}.pcap"
    found = fields(capture, "spop.type", "spop.message", "spop.value", "spop.name")
    counts = Counter(int(type_) for row in found for type_ in row[0].split(","))
    assert counts[FrameType.HAPROXY_HELLO] == counts[FrameType.AGENT_HELLO] >= 2
    assert counts[FrameType.NOTIFY] == counts[FrameType.ACK] == 3
    assert tshark(capture, "-Y", "spop.malformed") == []
    assert any("127.0.0.2" in row[2] and "check" in row[1] for row in found)
    assert any("score" in row[3] for row in found)


@needs_tshark
def test_tshark_shows_each_type_of_data(tmp_path: Path) -> None:
    values = {
        "n": -3,
        "u": 2**63,
        "t": True,
        "x": None,
        "a": "10.0.0.1",
        "b": b"\0\xff",
        "s": "text",
    }
    hello = codec.encode_control(FrameType.HAPROXY_HELLO, {"supported-versions": "2.0"})
    greeting = codec.encode_control(FrameType.AGENT_HELLO, {"version": "2.0"})
    notify = codec.encode_notify(2**40, 7, [Message("m", **values)])
    ack = codec.encode_ack(2**40, 7, {"txn.x": -1, "sess.y": None})
    end = codec.encode_control(FrameType.AGENT_DISCONNECT, {"status-code": 13, "message": "no"})
    pieces = [bytes(piece) for piece in (hello, greeting, notify, ack, b"", end)]
    path = tmp_path / "all.pcap"
    write_conversation(path, pieces)
    shown = "\n".join(tshark(path, "-O", "spop"))
    for line in (
        "Stream-id: 1099511627776", "Frame-id: 7", "Message: m", "n = -3 (INT32)", "t = true (BOOL)",
        "u = 9223372036854775808 (UINT64)", "x = null (NULL)", "a = 10.0.0.1 (STRING)",
        "b = 00ff (BINARY)", "s = text (STRING)", "SET-VAR txn.x", "txn.x = -1 (INT32)",
        "Scope: SESS (1)", "Status: resource allocation error (13)",
    ):  # fmt: skip
        assert line in shown


@needs_tshark
def test_tshark_marks_a_malformed_frame(tmp_path: Path) -> None:
    hello = bytes(codec.encode_control(FrameType.HAPROXY_HELLO, {"supported-versions": "2.0"}))
    ack = bytearray(codec.encode_ack(1, 1, {"txn.x": 1}))
    ack[-2] = 0x0F  # A data type that does not exist.
    path = tmp_path / "bad.pcap"
    write_conversation(path, [hello, bytes(ack)])
    (line,) = tshark(path, "-Y", "spop.malformed")
    assert "malformed" in line
