"""Each command on outputs that can't take all it prints."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from odd_agents import Odd, OddAgent, closes, disconnect, odd_agent, replies

from spop import codec
from spop.frames import Message

SPOE = """
[check]
spoe-agent check
    messages check
    option var-prefix odd
    timeout processing 5s
    use-backend agents
spoe-message check
    args text=str(\udcffé→)
    event on-client-session
"""
STRANGE = "no\udcff \x1b[31m é → 漢"
ENCODINGS = ["utf-8:strict", "ascii:strict"]


AGENT = """from spop import Agent
agent = Agent()
@agent.message("check", sets=["txn.a"])
def check(ip): return {"txn.a": 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output") / "caf\udce9 →"
    folder.mkdir()
    frame = codec.encode_notify(1, 1, [Message(STRANGE, {STRANGE: STRANGE, "b": b"\xff" * 9})])
    (folder / "frames.bin").write_bytes(bytes(frame) * 3000)
    (folder / "spoe.cfg").write_text(SPOE, "utf-8", "surrogateescape")
    (folder / "bad.cfg").write_text("\udcff →\n", "utf-8", "surrogateescape")
    (folder / "serving.py").write_text(AGENT)
    return folder


@pytest.fixture(scope="module")
def good() -> Iterator[str]:
    with odd_agent("good") as agent:
        yield agent.address


@pytest.fixture(scope="module")
def strange() -> Iterator[str]:
    """The address of an agent that refuses with text from another world."""
    goodbye = disconnect(13, STRANGE)
    with OddAgent(Odd(answer=replies(lambda ids: goodbye, then=closes))) as agent:
        yield agent.address


COMMANDS = {
    "help": "--help",
    "check": "check {good}",
    "check-strange": "check {strange} --json",
    "notify": "notify {good} check -v --hex",
    "notify-strange": "notify {strange} check\udcff -v",
    "decode": "decode {folder}/frames.bin",
    "decode-json": "decode {folder}/frames.bin --json",
    "decode-none": "decode {folder}/nothing",
    "decode-stdin": "decode -",
    "bench": "bench {good} check --count 5 --warm-up 0 --connections 1",
    "bench-strange": "bench {strange} check --duration 0.5 --warm-up 0 --connections 1",
    "engine": "engine {folder}/spoe.cfg --agent {good} --event on-client-session -v",
    "engine-strange": "engine {folder}/spoe.cfg --agent {strange} --event on-client-session",
    "validate": "validate {folder}/spoe.cfg",
    "validate-bad": "validate {folder}/bad.cfg",
    "completion": "completion bash",
    "check-config": "serve {folder}/serving.py:agent --check-config",
    "config": "config {folder}/serving.py:agent",
}


def words(command: str, folder: Path, good: str, strange: str) -> list[str]:
    return [
        sys.executable, "-m", "spop",
        *(word.format(folder=folder, good=good, strange=strange) for word in COMMANDS[command].split()),
    ]  # fmt: skip


@functools.cache
def printed(*words: str) -> tuple[int, bool]:
    """The exit status of a command that can print all, and whether it prints anything."""
    null = subprocess.DEVNULL
    done = subprocess.run(words, stdin=null, stdout=subprocess.PIPE, stderr=null, timeout=60)
    return done.returncode, bool(done.stdout)


def run(words: Sequence[str], output: int = subprocess.DEVNULL, **more: str) -> tuple[int, str]:
    """The exit status, and what came on standard error."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, timeout=60,
        env={**os.environ, **more},
    )  # fmt: skip
    errors = done.stderr.decode("latin-1")
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    return done.returncode, errors


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_an_encoding_lacks_is_escaped(
    command: str, encoding: str, folder: Path, good: str, strange: str
) -> None:
    line = words(command, folder, good, strange)
    assert run(line, PYTHONIOENCODING=encoding)[0] == printed(*line)[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_an_error_in_one_line(
    command: str, folder: Path, good: str, strange: str
) -> None:
    line = words(command, folder, good, strange)
    with open("/dev/full", "wb") as full:
        status, errors = run(line, full.fileno())
    if printed(*line)[1]:
        assert status == 1
        assert "Error: cannot write to standard output: No space left on device\n" in errors
    else:
        assert status == printed(*line)[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_seen_enough_is_no_failure(
    command: str, folder: Path, good: str, strange: str
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    line = words(command, folder, good, strange)
    status, errors = run(line, write_end)
    os.close(write_end)
    assert "Broken pipe" not in errors
    assert status == (0 if printed(*line)[1] else printed(*line)[0])


@pytest.mark.parametrize(
    ("command", "closed"),
    [*((each, "<&- >&-") for each in COMMANDS), ("bench", "2>&-"), ("notify", "2>&-")],
)
def test_a_command_without_standard_streams_ends_as_it_would(
    command: str, closed: str, folder: Path, good: str, strange: str
) -> None:
    line = words(command, folder, good, strange)
    status, _ = run(["sh", "-c", f'exec "$@" {closed}', "sh", *line])
    assert status == printed(*line)[0]


def test_no_socket_gets_the_descriptor_of_a_closed_stream(folder: Path) -> None:
    code = "import os, sys; from spop.cli.output import _open_missing as o; o(); "
    code += "sys.exit(0 if {os.readlink(f'/proc/self/fd/{n}') for n in range(3)} == {'/dev/null'} else 1)"
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code])
    assert done.returncode == 0
