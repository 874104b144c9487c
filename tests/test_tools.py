"""The commands that talk to agents: check, notify, decode, bench, completion."""

from __future__ import annotations

import csv
import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import dpkt
import haproxy_1_7
import pytest
from haproxy import wait_until
from hypothesis import example, given
from hypothesis import strategies as st
from odd_agents import Odd, OddAgent, closes, odd_agent, stops_after

from spop import Agent, Message, codec
from spop.cli.decoder import Decoder
from spop.cli.notation import parse_argument
from spop.cli.pasted import read_pasted
from spop.constants import FrameType
from spop.frames import Notify
from spop.load import _acks_py, report
from spop.load import acks as chosen
from spop.load.histogram import Histogram, bounds
from spop.server import Server

CAPTURES = Path(__file__).parent / "captures"


@pytest.fixture
def agent() -> Agent:
    agent = Agent()

    @agent.message("check-client-ip")
    def check(ip: IPv4Address) -> dict[str, Any]:
        return {"sess.ip_score": ip.packed[-1]}

    @agent.message("echo")
    def echo(message: Message) -> dict[str, Any]:
        return {f"txn.{name or 'unnamed'}": value for name, value in message.args}

    @agent.message("check-body", blocking=True)
    def body(body: bytes) -> dict[str, Any]:
        return {"txn.length": len(body)}

    return agent


@pytest.fixture
def server(agent: Agent) -> Iterator[Server]:
    with agent.serve_in_background() as server:
        yield server


def spop(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "spop", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "100"},
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["check"], "Missing argument 'ADDRESS': see python -m spop check --help"),
        (["check", "127.0.0.1:1", "--timeout", "x"], "'x' is not a valid number"),
        (["top", "127.0.0.1:1", "--count", "x"], "'x' is not a valid integer"),
        (["check", "nowhere"], "neither HOST:PORT nor unix:PATH"),
        (["check", "127.0.0.1:1", "--max-frame-size", "4G"], "is not in the range"),
        (["check", "127.0.0.1:1", "--max-frame-size", "-1"], "'-1' is no size"),
        (["notify", "127.0.0.1:1", "x=1"], "a message's name is missing before 'x=1'"),
        (["notify", "127.0.0.1:1", "m", "+"], "a message's name is missing beside '+'"),
        (
            ["notify", "127.0.0.1:1", "m", "x:uin32=1"],
            "'x:uin32=1': 'uin32' is no type: null, bool",
        ),
        (["notify", "127.0.0.1:1", "m", "x"], "'x' is no argument"),
        (["notify", "127.0.0.1:1", "m", "x:int=abc"], "'x:int=abc': 'abc' is no integer"),
        (
            ["notify", "127.0.0.1:1", "m", "x:binary=hex:0g"],
            "'x:binary=hex:0g': hex: is followed by two",
        ),
        (["notify", "127.0.0.1:1", "m", "x:bin=base64:A"], "base64: is followed by base64"),
        (["notify", "127.0.0.1:1", "m", "x=@/nowhere"], "No such file"),
        (["notify", "127.0.0.1:1", "m", "x:uint32=-1"], "-1"),
        (["decode", "/nowhere"], "No such file"),
        (["bench", "nowhere"], "neither HOST:PORT nor unix:PATH"),
        (["bench", "127.0.0.1:1", "--output", "x.jpg"], "must end in .json, .csv, .svg, .png"),
        (["bench", "127.0.0.1:1", "--mode", "x"], "'x' is not one of"),
        (["bench", "compare", __file__, __file__], "is no result of spop bench"),
        (["bench", "127.0.0.1:1", "--pid", "2147483647"], "there is no process 2147483647"),
        (["bench", "127.0.0.1:1", "--duration", "inf"], "inf is not a number up to 1e+06"),
        (["bench", "127.0.0.1:1", "--warm-up", "nan"], "nan is not a number up to 1e+06"),
        (["bench", "127.0.0.1:1", "--messages", sys.executable], "cannot read"),
        (["check", "127.0.0.1:1", "--timeout", "nan"], "nan is not a number up to 1e+06"),
        (["check", "127.0.0.1:1", "--timeout", "1e7"], "1e7 is not a number up to 1e+06"),
        (["check", "127.0.0.1:1", "--watch", "inf"], "inf is not a number up to 1e+06"),
        (["check", "agents..example:9000"], "can't be the name of a host"),
        (["top", "127.0.0.1:1", "--interval", "nan"], "nan is not a number up to 1e+06"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_exit_status_2(arguments: list[str], complaint: str) -> None:
    result = spop(*arguments)
    assert result.returncode == 2
    assert complaint in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command", ["serve", "check", "notify", "decode", "bench", "top", "completion"]
)
def test_every_command_has_help_with_examples(command: str) -> None:
    shown = spop(command, "--help").stdout
    assert re.search(rf"Examples?:\n\s+(?:.*; )?.*spop {command}", shown)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    assert "_SPOP_COMPLETE" in spop("completion", shell).stdout


# --- check ---


def test_check_tells_what_the_agent_can_do(server: Server) -> None:
    result = spop("check", str(server.address))
    assert result.returncode == 0
    assert (
        f"{server.address} is healthy: SPOP 2.0, max-frame-size 16380, "
        "async,fragmentation,pipelining, " in result.stdout
    )
    shown = json.loads(
        spop("check", str(server.address), "--json", "--max-frame-size", "1K").stdout
    )
    assert shown["healthy"]
    assert shown["well"]
    assert shown["max_frame_size"] == 1024
    assert shown["seconds"] > 0


def test_check_watches(server: Server) -> None:
    result = spop("check", str(server.address), "--watch", "0.05", "--count", "3")
    assert result.stdout.count("is healthy") == 3


def test_check_of_an_unhealthy_agent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        result = spop("check", address, "--timeout", "0.2")
        assert (result.returncode, result.stdout) == (
            1,
            f"{address} is unhealthy: no AGENT-HELLO in 0.2 s; hint: is it an agent's address? "
            "An agent behind TLS does not answer plain SPOP\n",
        )
    result = spop("check", address, "--json")
    assert result.returncode == 1
    shown = json.loads(result.stdout)
    assert (shown["healthy"], shown["well"]) == (False, False)
    assert shown["error"] == "Connection refused"
    assert "hint" not in shown


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("http", "this is not SPOP"),
        ("tls", "this is not SPOP"),
        ("closes-hello", "is it an agent's address?"),
        ("silent-hello", "is it an agent's address?"),
        ("half-a-hello-closed", None),
        ("refuses", None),
        ("version-3.0", None),
    ],
)
def test_check_hints_at_what_does_not_speak_spop(name: str, hint: str | None) -> None:
    timeout = "1" if name == "silent-hello" else "30"
    with odd_agent(name) as odd:
        shown = json.loads(spop("check", odd.address, "--timeout", timeout, "--json").stdout)
    assert shown["healthy"] is False
    assert shown.get("hint", "").startswith(hint or "")
    assert ("hint" in shown) is (hint is not None)


def test_check_tells_the_status_of_an_agent_that_refuses(agent: Agent) -> None:
    refusal = codec.encode_control(102, {"status-code": 13, "message": "no room"})

    def refuse(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(4096)
            sock.sendall(refusal)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        result = spop("check", f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert result.returncode == 1
    assert "is unhealthy: no room (status 13)" in result.stdout


# --- notify ---


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("n=5", "n", 5),
        ("n=-7", "n", -7),
        ("n=18446744073709551615", "n", 2**64 - 1),
        ("flag=true", "flag", True),
        ("flag=False", "flag", False),
        ("x=null", "x", None),
        ("ip=10.0.0.1", "ip", IPv4Address("10.0.0.1")),
        ("ip=::1", "ip", ipaddress.IPv6Address("::1")),
        ("s=text", "s", "text"),
        ("s=", "s", ""),
        ("s=a=b", "s", "a=b"),
        ("s:str=5", "s", "5"),
        ("s:s:int=5", "s:s", 5),
        ("x:binary=hex:00ff", "x", b"\x00\xff"),
        ("x:bin=base64:AP8=", "x", b"\x00\xff"),
        ("x:binary=text", "x", b"text"),
        ("n:uint32=0x10", "n", 16),
        ("x:null=", "x", None),
        ("=1", "", 1),
        ("n=0", "n", 0),
        ("zip=01234", "zip", "01234"),
        ("n:int=007", "n", 7),
        ("n=٣", "n", "٣"),
    ],
)
def test_values_in_natural_notation(word: str, name: str, value: object) -> None:
    found = parse_argument(word)
    assert found == (name, value)
    assert type(found[1]) is type(value) or isinstance(found[1], int)


def test_types_that_are_said_are_sent() -> None:
    shown = spop(
        "notify", "127.0.0.1:1", "m", "a:int32=1", "b:uint32=1", "c:int64=1", "d:uint64=1", "e=1",
        "--dry-run",
    ).stdout  # fmt: skip
    expected = codec.encode_notify(1, 1, [Message("m")])
    values = bytes.fromhex(shown.strip())[len(expected) :]
    assert [values[index] for index in range(2, 20, 4)] == [2, 3, 4, 5, 4]


def test_notify_prints_the_actions(server: Server, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\0\xff")
    result = spop(
        "notify", str(server.address), "echo", f"body=@{tmp_path}/body", "n=5", "t=x\x1b[31m",
        "nothing=null", "yes=true", "+", "check-client-ip", "ip=10.0.0.9",
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "set txn.body = hex:00ff (binary)",
        "set txn.n = 5 (int)",
        r"set txn.t = 'x\x1b[31m' (string)",
        "unset txn.nothing",
        "set txn.yes = true (bool)",
        "set sess.ip_score = 9 (int)",
    ]
    assert spop("notify", str(server.address), "nobody").stdout == "no actions\n"


def test_notify_json(server: Server) -> None:
    result = spop("notify", str(server.address), "echo", "ip=10.0.0.9", "--json")
    assert json.loads(result.stdout) == {
        "aborted": False,
        "actions": [{"variable": "txn.ip", "type": "ipv4", "value": "10.0.0.9"}],
    }


def test_notify_shows_frames_of_both_directions(server: Server) -> None:
    shown = spop("notify", str(server.address), "echo", "n=5", "-v", "--hex").stderr
    for line in ("→ HAPROXY-HELLO", "← AGENT-HELLO", "→ NOTIFY stream 1 frame 1", "→     n = 5 (int)",
                 "← ACK stream 1 frame 1", "←   set txn.n = 5 (int)", "→ HAPROXY-DISCONNECT"):  # fmt: skip
        assert line in shown.splitlines()
    assert codec.encode_notify(1, 1, [Message("echo", n=5)]).hex()[:20] in shown


def test_notify_of_an_agent_that_is_not_there() -> None:
    result = spop("notify", "127.0.0.1:1", "m")
    assert result.returncode == 1
    assert result.stderr == "Error: 127.0.0.1:1: Connection refused\n"


# --- decode ---


def decoded(*arguments: str, stdin: bytes = b"") -> list[dict[str, Any]]:
    result = spop("decode", "--json", *arguments, stdin=stdin)
    assert "Traceback" not in result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("version", ["1.8", "2.6", "3.0", "3.4"])
def test_captures_of_real_haproxys(version: str) -> None:
    frames = decoded(str(CAPTURES / f"haproxy-{version}.pcap"))
    counts = Counter(frame["type"] for frame in frames)
    assert "damaged" not in counts
    assert counts["HAPROXY-HELLO"] == counts["AGENT-HELLO"] >= 2
    assert counts["NOTIFY"] == counts["ACK"] == 3
    (hello, *_) = (f for f in frames if "engine-id" in f.get("items", {}))
    assert hello["items"]["supported-versions"]["value"] == ("1.0" if version == "1.8" else "2.0")
    whole = [f.get("payload", f) for f in frames if "messages" in f.get("payload", f)]
    (arguments,) = (
        found
        for each in whole
        if (found := {arg["name"]: arg["value"] for arg in each["messages"][0]["args"]})["method"]
        == "POST"
    )
    assert arguments["missing"] is None
    assert bytes.fromhex(arguments["body"]) == b"x" * 6000
    acks = [frame for frame in frames if frame["type"] == "ACK"]
    assert {"variable": "txn.length", "type": "int", "value": 6000} in [
        action for ack in acks for action in ack["actions"]
    ]
    assert ("payload" in "".join(map(str, frames))) == (version != "3.4")


def test_the_tree_of_a_capture() -> None:
    shown = spop("decode", str(CAPTURES / "haproxy-2.6.pcap")).stdout
    assert re.search(
        r"\d\d:\d\d:\d\d\.\d+ 127\.0\.0\.1:\d+ → 127\.0\.0\.1:\d+ @\d+\n  NOTIFY stream", shown
    )
    assert "ip = 127.0.0.2 (ipv4)" in shown
    assert "with its fragments:" in shown
    assert "\x1b" not in shown


def test_only_the_port_that_was_asked_for() -> None:
    capture = str(CAPTURES / "haproxy-3.4.pcap")
    assert decoded(capture, "--port", "1") == []
    assert spop("decode", capture, "--port", "1").returncode == 1


def packets(path: Path) -> list[tuple[float, bytes]]:
    with path.open("rb") as file:
        return list(dpkt.pcap.Reader(file))


def strip(frames: list[dict[str, Any]]) -> list[Any]:
    """Frames by direction, without the times at which they were whole."""
    return sorted(
        (f["direction"], f["offset"], f["type"], str(f.get("messages", f.get("actions"))))
        for f in frames
    )


@pytest.mark.parametrize("disorder", ["shuffled", "repeated", "overlapping", "pcapng", "cut short"])
def test_streams_are_put_together_again(tmp_path: Path, disorder: str) -> None:
    source = CAPTURES / "haproxy-2.6.pcap"
    original = packets(source)
    path = tmp_path / "changed.pcap"
    with path.open("wb") as file:
        new = dpkt.pcapng.Writer if disorder == "pcapng" else dpkt.pcap.Writer
        writer = new(file)
        if disorder == "shuffled":  # The first ones are SYN and SYN+ACK.
            original = [
                p for pair in zip(original[1::2], original[::2], strict=False) for p in pair
            ] + (original[-1:] if len(original) % 2 else [])
        for time, packet in original:
            writer.writepkt(packet, time)
            if disorder == "repeated":
                writer.writepkt(packet, time)
            elif disorder == "overlapping":
                writer.writepkt(shifted(packet), time)
    if disorder == "cut short":
        path.write_bytes(path.read_bytes()[:-5])
        assert len(decoded(str(path))) >= len(decoded(str(source))) - 1
    else:
        assert strip(decoded(str(path))) == strip(decoded(str(source)))


def shifted(packet: bytes) -> bytes:
    """The second half of a packet's data once more, as if it had been sent again."""
    frame = dpkt.ethernet.Ethernet(packet)
    tcp = frame.data.data
    half = len(tcp.data) // 2
    tcp.seq += half
    tcp.data = tcp.data[half:]
    tcp.sum = frame.data.sum = frame.data.len = 0
    frame.data.len = len(frame.data)
    return bytes(frame)


def test_a_gap_in_a_capture_is_marked_and_decoding_goes_on(tmp_path: Path) -> None:
    original = packets(CAPTURES / "haproxy-2.6.pcap")
    data = [n for n, (_, p) in enumerate(original) if b"check" in p and b"\x06method" in p]
    path = tmp_path / "gap.pcap"
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number, (time, packet) in enumerate(original):
            if number != data[0]:
                writer.writepkt(packet, time)
    frames = decoded(str(path))
    counts = Counter(frame["type"] for frame in frames)
    assert counts["ACK"] == 3
    assert counts["NOTIFY"] < 3


def test_the_frames_of_haproxy_1_7() -> None:
    """It sets no flags: without FIN each frame is whole all the same."""
    notify = haproxy_1_7.notify(1, Message("m", n=1))
    data = haproxy_1_7.HEALTH_CHECK + haproxy_1_7.hello() + notify + haproxy_1_7.DISCONNECT
    types = ["HAPROXY-HELLO", "HAPROXY-HELLO", "NOTIFY", "HAPROXY-DISCONNECT"]
    frames = decoded("-", stdin=data.hex().encode())
    assert [frame["type"] for frame in frames] == types
    assert frames[2]["messages"][0]["name"] == "m"


def test_a_hello_of_spop_2_0_without_fin_is_damaged() -> None:
    (frame,) = decoded("-", stdin=haproxy_1_7.hello(supported_versions="2.0").hex().encode())
    assert frame["error"] == "HELLO and DISCONNECT may not be fragmented"


@pytest.mark.parametrize("agents_flags", [0, 1])
def test_a_capture_of_haproxy_1_7(tmp_path: Path, agents_flags: int) -> None:
    """Agents of its time set no flags either; later ones may."""
    items = {"version": "1.0", "max-frame-size": 16384, "capabilities": ""}
    answer = codec.encode_control(FrameType.AGENT_HELLO, items)
    ack = codec.encode_ack(1, 1, {"txn.n": 1})
    answer[8] = ack[8] = agents_flags
    notify = haproxy_1_7.notify(1, Message("m", n=1))
    path = tmp_path / "old.pcap"
    write_conversation(path, [haproxy_1_7.hello(), answer, notify, ack, notify, ack])
    frames = decoded(str(path))
    types = ["HAPROXY-HELLO", "AGENT-HELLO", *["NOTIFY", "ACK"] * 2]
    assert [frame["type"] for frame in frames] == types
    assert frames[-1]["actions"][0]["variable"] == "txn.n"


def write_conversation(path: Path, pieces: list[bytes]) -> None:
    """A capture of a connection whose ends speak in turn, the engine first."""
    ports, sent = (40000, 9000), [1, 1]
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number, data in enumerate(pieces):
            mine = number % 2
            tcp = dpkt.tcp.TCP(
                sport=ports[mine],
                dport=ports[1 - mine],
                seq=sent[mine],
                ack=sent[1 - mine],
                flags=dpkt.tcp.TH_ACK,
                data=bytes(data),
            )
            sent[mine] += len(data)
            host = b"\x7f\0\0\1"
            ip = dpkt.ip.IP(src=host, dst=host, p=dpkt.ip.IP_PROTO_TCP, data=tcp)
            writer.writepkt(bytes(dpkt.ethernet.Ethernet(data=ip)), float(number))


NOTIFY = codec.encode_notify(5, 1, [Message("m", n=1)])
TEXTS = {
    "plain": NOTIFY.hex(),
    "spaced": NOTIFY.hex(" "),
    "lines": "\n".join(NOTIFY.hex()[i : i + 10] for i in range(0, len(NOTIFY) * 2, 10)),
    "upper": NOTIFY.hex(" ").upper(),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_hex_text(text: str) -> None:
    assert read_pasted(text) == NOTIFY
    (frame,) = decoded("-", stdin=text.encode())
    assert frame["stream_id"] == 5


@pytest.mark.parametrize(
    "command", [["xxd"], ["hexdump", "-C"], ["xxd", "-p"], ["od", "-An", "-tx1"]]
)
def test_what_tools_print(tmp_path: Path, command: list[str]) -> None:
    data = bytes(NOTIFY) * 5 + b"|:  "
    (tmp_path / "frame").write_bytes(data)
    try:
        shown = subprocess.run(
            [*command, str(tmp_path / "frame")], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        shown = printed_as(command[0], data)
    assert read_pasted(shown) == data


def printed_as(tool: str, data: bytes) -> str:
    """What xxd and hexdump would print, where they are not installed."""
    lines = []
    for offset in range(0, len(data), 16):
        part = data[offset : offset + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        if tool == "xxd":
            digits = " ".join(part[i : i + 2].hex() for i in range(0, 16, 2)).rstrip()
            lines.append(f"{offset:08x}: {digits:<39}  {text}")
        else:
            halves = part[:8].hex(" ") + "  " + part[8:].hex(" ")
            lines.append(f"{offset:08x}  {halves:<49} |{text}|")
    return "\n".join(lines) + ("" if tool == "xxd" else f"\n{len(data):08x}\n")


def test_text_that_is_no_hex_is_told_with_its_line() -> None:
    result = spop("decode", "-", stdin=b"00 01\nhello\n")
    assert result.returncode == 2
    assert "line 2 is no hex: 'hello'" in result.stderr


def test_text_whose_literals_are_no_hex_is_told_with_a_line_of_its_own() -> None:
    result = spop("decode", "-", stdin=b'import os\n\nNAMES = ["00 01", "10.0.0.1/32"]\n')
    told = (result.returncode, result.stderr)
    assert told == (2, "Error: line 1 is no hex: 'import os'\n")


def test_a_damaged_frame_is_marked_and_decoding_goes_on() -> None:
    damaged = bytearray(NOTIFY)
    damaged[-2] = 0x0F  # A data type that does not exist.
    found = list(Decoder().feed(bytes(NOTIFY + damaged + NOTIFY)))
    assert [frame.frame is None for frame in found] == [False, True, False]
    assert "data type" in found[1].damage
    assert found[2].offset == 2 * len(NOTIFY)


@pytest.mark.parametrize("last", [NOTIFY, codec.encode_ack(1, 1)], ids=["long", "shortest"])
def test_bytes_between_frames_are_marked_and_decoding_goes_on(last: bytearray) -> None:
    found = list(Decoder().feed(bytes(NOTIFY) + b"GET / HTTP/1.1\r\n\r\n" + bytes(last)))
    assert [frame.frame is None for frame in found] == [False, True, False]
    assert found[1].data == b"GET / HTTP/1.1\r\n\r\n"


def fragment(
    data: bytes, stream_id: int = 1, flags: int = 0, first: bool = False, *, little: bool = False
) -> bytes:
    type_ = 3 if first else 0
    return bytes(codec.encode_raw_frame(type_, flags, stream_id, 1, data, little_endian=little))


@pytest.mark.parametrize("little", [False, True])
def test_fragments_are_put_together_until_one_that_does_not_belong(little: bool) -> None:
    payload = bytes(codec.encode_messages([Message("m", n=1)] * 2000))
    items = {"supported-versions": "1.0" if little else "2.0"}
    frames = [
        bytes(codec.encode_control(1, items, little_endian=little)),
        fragment(b"no beginning", flags=1, little=little),
        fragment(b"lost", 7, first=True, little=little),  # Its other fragments did not come.
        fragment(payload[:5000], first=True, little=little),
        fragment(payload[5000:], flags=1, little=little),
        fragment(b"nor any more", flags=1, little=little),
        fragment(b"aborted", first=True, little=little),
        fragment(b"", flags=3, little=little),
        fragment(payload[:500], first=True, little=little),
        fragment(b"of another", 9, flags=1, little=little),
        fragment(payload[500:], flags=1, little=little),
        fragment(b"\xff", first=True, little=little),
        fragment(b"no messages", flags=1, little=little),
    ]
    found = list(Decoder().feed(b"".join(frames)))
    assert [each.damage for each in found] == [""] * len(frames)
    (whole,) = [each for each in found if each.payload is not None]
    assert whole is found[4]
    assert whole.payload == Notify(1, 1, [Message("m", n=1)] * 2000)


def test_raw_bytes_that_end_inside_of_a_frame() -> None:
    frames = decoded("-", stdin=bytes(NOTIFY + NOTIFY[:7]))
    assert [frame["type"] for frame in frames] == ["NOTIFY", "damaged"]
    assert spop("decode", "-", stdin=bytes(NOTIFY + NOTIFY[:7])).returncode == 1


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_make_the_decoder_fail(data: bytes, cut: int) -> None:
    decoder = Decoder()
    found = [*decoder.feed(data[:cut]), *decoder.feed(data[cut:]), *decoder.finish()]
    assert b"".join(each.data for each in found) == data


# --- bench ---


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ({"frames": 1, "seconds": 1, "rate": 1, "latency": []}, "is no result of spop bench"),
        ([], "is no result of spop bench"),
        (5, "is no result of spop bench"),
        ({"stages": []}, "has several runs, and one is compared with one"),
        ({"first": {}, "second": {}}, "has several runs, and one is compared with one"),
    ],
    ids=str,
)
def test_what_can_t_be_compared_is_told(written: object, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=complaint):
        report.load(file)


@pytest.mark.parametrize("text", ["p99>1.2.3ms", "p99>.", "p99>", "rate<5s"])
def test_a_limit_is_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="is no limit: FIGURE>LIMIT"):
        report.Limit.parse(text)


def test_a_frame_for_a_frame_is_measured(server: Server, tmp_path: Path) -> None:
    files = [f"{tmp_path}/result.json", f"{tmp_path}/latency.csv", f"{tmp_path}/plot.svg"]
    result = spop(
        "bench", str(server.address), "--duration", "0.3", "--warm-up", "0.1",
        "--expect", "sess.ip_score=10", "--pid", str(os.getpid()),
        "--output", files[0], "--output", files[1], "--output", files[2],
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    shown = json.loads(Path(files[0]).read_text())
    assert shown["frames"] > 100
    assert shown["errors"] == {}
    assert 0 < shown["latency"]["p50"] <= shown["latency"]["p99"] <= shown["latency"]["max"]
    assert shown["agent_cpu_per_frame"] > 0
    with open(files[1]) as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["share"]) == 1
    assert Path(files[2]).read_text().lstrip().startswith("<?xml")
    compared = spop("bench", "compare", files[0], files[0], "--plot", f"{tmp_path}/both.png")
    assert "1.00 ×" in compared.stdout
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("mode", ["ping-pong", "pipelined", "async"])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_modes_and_counts(server: Server, mode: str, processes: str) -> None:
    result = spop(
        "bench", str(server.address), "--mode", mode, "--count", "500", "--processes", processes,
        "--connections", "4", "--depth", "3", "--warm-up", "0", "--expect", "sess.ip_score=10",
        "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    assert shown["frames"] >= 500
    assert shown["errors"] == {}


def test_an_open_loop_keeps_its_rate(server: Server) -> None:
    """Again where the machine stood still for a part of the second."""

    def keeps_it() -> bool:
        result = spop(
            "bench", str(server.address), "--rate", "500", "--duration", "1", "--warm-up", "0.2",
            "--json",
        )  # fmt: skip
        shown = json.loads(result.stdout)
        return 350 <= shown["frames"] <= 650 and not shown["generator"]["is_the_bottleneck"]

    wait_until(keeps_it, "500 frames in a second", timeout=15)


def test_an_open_loop_counts_the_wait_for_a_slow_agent(agent: Agent) -> None:
    """Ten frames are due in the time of one; each waits for those before it."""
    gate = threading.Event()

    @agent.message("slow")
    def slow() -> None:
        gate.wait(0.05)

    with agent.serve_in_background() as server:
        result = spop(
            "bench", str(server.address), "slow", "--mode", "ping-pong", "--connections", "1",
            "--rate", "200", "--duration", "1", "--warm-up", "0", "--json",
        )  # fmt: skip
    shown = json.loads(result.stdout)
    assert shown["latency"]["p90"] > 5 * 0.05


def test_a_payload_in_fragments_is_sent(server: Server) -> None:
    result = spop(
        "bench", str(server.address), "--profile", "body", "--count", "50", "--warm-up", "0",
        "--expect", "txn.length=65536",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


def test_messages_from_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "messages").write_text("# Both in one NOTIFY.\necho n=5\necho m=x\n")
    result = spop(
        "bench", str(server.address), "--messages", f"{tmp_path}/messages", "--count", "10",
        "--expect", "txn.n=5", "--expect", "txn.m=x", "--warm-up", "0",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


def test_answers_that_are_not_as_expected_are_errors(server: Server) -> None:
    result = spop(
        "bench", str(server.address), "--count", "20", "--warm-up", "0",
        "--expect", "sess.ip_score=11", "--json",
    )  # fmt: skip
    assert result.returncode == 1
    shown = json.loads(result.stdout)
    assert shown["errors"]["not as expected"] == shown["frames"]


def test_an_agent_that_is_not_there_is_one_line() -> None:
    result = spop("bench", "127.0.0.1:1")
    assert result.returncode == 1
    assert result.stderr == "Error: 127.0.0.1:1: Connection refused\n"


def test_connections_that_are_lost_are_counted_and_opened_again() -> None:
    with OddAgent(Odd(answer=stops_after(50, closes))) as agent:
        result = spop(
            "bench", agent.address, "--connections", "2", "--count", "300", "--warm-up", "0",
            "--json",
        )  # fmt: skip
    shown = json.loads(result.stdout)
    assert result.returncode == 1
    assert shown["errors"]["disconnected"] >= 4
    assert shown["frames"] >= 300


# --- the twins that match ACKs ---

acks = st.lists(
    st.builds(
        lambda stream, value: bytes(codec.encode_ack(stream, 1, {"sess.x": value})),
        st.integers(0, 12),
        st.sampled_from([1, 2, "too long" * 5]),
    )
    | st.just(bytes(codec.encode_raw_frame(103, 0, 1, 1, b"")))
    | st.binary(max_size=12),
    max_size=8,
)


@example([bytes(4)], 0, False)
@given(acks, st.integers(0, 3), st.booleans())
def test_twins_match_the_same_acks(frames: list[bytes], cut: int, expecting: bool) -> None:
    data = b"".join(frames)
    data = data[: len(data) - cut]
    expected = bytes(codec.encode_actions({"sess.x": 1})) if expecting else None
    outcomes = []
    for take in (_acks_py.take_acks, chosen.take_acks):
        sent, histogram, answered = array("q", [0, *range(1, 10)]), Histogram(), []  # type: ignore[var-annotated]
        try:
            result: Any = take(
                data, len(data), 40, 1, sent, 10_000, histogram.counts, expected, answered
            )
        except codec_errors as error:
            result = str(error)
        outcomes.append((result, list(sent), list(histogram.items()), answered))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("end", [-1, 12])
def test_acks_are_matched_inside_of_the_buffer_alone(end: int) -> None:
    sent, counts = array("q", [0, 1]), Histogram().counts
    for take in (_acks_py.take_acks, chosen.take_acks):
        with pytest.raises(ValueError, match=f"^end is {end}, outside a buffer of 11 bytes$"):
            take(codec.encode_ack(1, 1), end, 40, 1, sent, 1, counts, None, [])


codec_errors = (__import__("spop").ProtocolError,)


@given(st.integers(0, 2**62))
def test_a_bucket_holds_its_latency_within_three_percent(nanoseconds: int) -> None:
    index = chosen.bucket(nanoseconds)
    assert index == _acks_py.bucket(nanoseconds)
    low, high = bounds(index)
    assert low <= nanoseconds < high
    assert high - low <= max(1, nanoseconds / 31)
