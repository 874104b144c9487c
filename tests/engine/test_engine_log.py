"""The engine's log: HAProxy's lines, to Python's logging, standard output and syslog servers."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_agent import ScriptedAgent, Told, Wire, answers

from spop.engine import Engine, Request
from spop.engine.config import parse_spoe
from spop.engine.log import NOTICE

SPOE = """spoe-agent test
    messages session fe
    groups all
    use-backend agents
    timeout hello 10s
    timeout idle 1m
    timeout processing 10s
    no option async
    {lines}
spoe-message session
    args src
    event on-client-session
spoe-message fe
    args path=path
    event on-frontend-http-request
spoe-message grouped
    args path=path
spoe-group all
    messages grouped
"""

LINE = re.compile(
    r"SPOE: \[test\] <(EVENT:on-client-session|EVENT:on-frontend-http-request|GROUP:all)> "
    r"sid=\d+ st=(\d+) -?\d+/-?\d+/-?\d+/-?\d+/-?\d+ \d+/\d+ \d+/\d+ (\d+/\d+)"
)
SHORT_LINE = re.compile(
    r"SPOE: \[test\] <(EVENT:[a-z-]+|GROUP:all)> sid=\d+ st=(\d+) -?\d+ (\d+/\d+)"
)


def fails_at_fe(wire: Wire, told: Told) -> None:
    wire.disconnect(13) if told.names == ["fe"] else answers(wire, told)


def run(folder: Path, lines: str = "", **settings: Any) -> None:
    """A stream with an event and a group that go well, and an event that fails."""
    file = folder / "spoe.cfg"
    file.write_text(SPOE.format(lines=lines))
    with (
        ScriptedAgent(fails_at_fe) as agent,
        Engine.from_file(file, backends={"agents": agent.address}, **settings) as engine,
    ):
        stream = engine.stream(request=Request())
        stream.event("on-client-session")
        stream.send_group("all")
        stream.event("on-frontend-http-request")


EXPECTED = [
    ("EVENT:on-client-session", "0", "0/1"),
    ("GROUP:all", "0", "0/2"),
    ("EVENT:on-frontend-http-request", "269", "1/3"),
]


def parsed(lines: list[str], pattern: re.Pattern[str] = LINE) -> list[tuple[str, ...]]:
    matches = [pattern.fullmatch(line) for line in lines]
    assert all(matches), lines
    return [match.groups() for match in matches if match is not None]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(NOTICE, "spop.engine.test"):
        yield caplog


def test_lines_have_haproxys_form(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    run(tmp_path)
    assert parsed([record.getMessage() for record in log.records]) == EXPECTED
    assert [record.levelname for record in log.records] == ["NOTICE", "NOTICE", "WARNING"]
    assert {record.name for record in log.records} == {"spop.engine.test"}


def test_lines_are_shorter_since_3_1(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    run(tmp_path, haproxy_version="3.1")
    assert parsed([record.getMessage() for record in log.records], SHORT_LINE) == EXPECTED


def test_dontlog_normal_leaves_the_errors(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    run(tmp_path, "option dontlog-normal\n    log stdout format raw daemon")
    assert [record.levelname for record in log.records] == ["WARNING"]


def test_lines_go_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "log stdout format raw daemon\n    log stderr format raw daemon warning")
    captured = capsys.readouterr()
    assert parsed(captured.out.splitlines()) == EXPECTED
    assert parsed(captured.err.splitlines()) == EXPECTED[2:]


def test_of_a_sample_only_its_lines_are_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "log stdout format raw sample 1,3:3 daemon")
    assert parsed(capsys.readouterr().out.splitlines()) == [EXPECTED[0], EXPECTED[2]]


def test_lines_are_as_long_as_the_file_allows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "option var-prefix x\n    log stdout len 80 format raw daemon")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) == 79


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("log stdout format raw daemon", None),
        ("log stdout format rfc5424 daemon", "the engine writes 'raw' there, not 'rfc5424'"),
        ("log 127.0.0.1 format rfc5424 daemon", "the engine writes 'priority' there, not"),
        ("log tcp@127.0.0.1 daemon", "the engine can't log to 'tcp@127.0.0.1:514'"),
        ("log fd@7 daemon", "the engine can't log to 'fd@7'"),
    ],
)
def test_what_the_engine_logs_otherwise_is_a_note(line: str, note: str | None) -> None:
    report = parse_spoe(SPOE.format(lines=line), haproxy_version="3.0")
    notes = [d.message for d in report.diagnostics if d.rule == "log"]
    assert len(notes) == (note is not None)
    assert all(text.startswith(note or "") for text in notes)


@pytest.fixture(params=["udp", "unix", "relative"])
def syslog(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, socket.socket]]:
    """A syslog server: its address as the file has it, and its socket."""
    monkeypatch.chdir(tmp_path)
    family = socket.AF_INET if request.param == "udp" else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.settimeout(10)
        if request.param == "udp":
            server.bind(("127.0.0.1", 0))
            yield f"127.0.0.1:{server.getsockname()[1]}", server
        else:
            server.bind("log")
            yield "unix@log" if request.param == "relative" else str(tmp_path / "log"), server


DAEMON, NOTICE_SEVERITY, WARNING_SEVERITY = 3 << 3, 5, 4


def received(server: socket.socket, count: int) -> list[tuple[int, str]]:
    """Priorities and texts."""
    lines = []
    for _ in range(count):
        match = re.fullmatch(r"<(\d+)>(?:.*?)(SPOE: .*?)[\0\n]*", server.recv(65536).decode())
        assert match
        lines.append((int(match[1]), match[2]))
    return lines


def test_lines_go_to_syslog(syslog: tuple[str, socket.socket], tmp_path: Path) -> None:
    address, server = syslog
    run(tmp_path, f"log {address} daemon")
    lines = received(server, 3)
    assert parsed([line for _, line in lines]) == EXPECTED
    severities = [NOTICE_SEVERITY, NOTICE_SEVERITY, WARNING_SEVERITY]
    assert [priority - DAEMON for priority, _ in lines] == severities


def test_levels_of_a_log_line_bound_what_is_sent(
    syslog: tuple[str, socket.socket], tmp_path: Path
) -> None:
    address, server = syslog
    run(tmp_path, f"log {address} daemon warning")
    ((priority, line),) = received(server, 1)
    assert (priority, parsed([line])) == (DAEMON + WARNING_SEVERITY, EXPECTED[2:])
    run(tmp_path, f"log {address} daemon info notice")
    assert {priority for priority, _ in received(server, 3)} == {DAEMON + NOTICE_SEVERITY}


def test_a_syslog_server_that_is_not_there_is_no_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, f"log {tmp_path}/nobody daemon\n    log stdout format raw daemon")
    assert parsed(capsys.readouterr().out.splitlines()) == EXPECTED
