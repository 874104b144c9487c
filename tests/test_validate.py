"""``spop validate``: SPOE files on the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REAL = Path(__file__).with_name("config") / "real"

AGENT = """[test]
spoe-agent a
    use-backend agents
    messages m
    timeout hello 1s
    timeout idle 1s
    timeout processing 1s
spoe-message m
    args ip=src path
    event on-frontend-http-request unless METH_GET
"""


def validate(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spop", "validate", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.fixture
def spoe(tmp_path: Path) -> Path:
    path = tmp_path / "spoe.cfg"
    path.write_text(AGENT)
    return path


def test_a_valid_file_is_summed_up(spoe: Path) -> None:
    result = validate(spoe)
    assert result.returncode == 0
    assert result.stdout == (
        f"{spoe}:5:5: note: HAProxy ignores 'timeout hello' since 3.1 (in its place: 'timeout "
        "check' and 'timeout server' of the agent's backend) [ignored]\n"
        "        timeout hello 1s\n        ^\n"
        f"{spoe}:6:5: note: HAProxy ignores 'timeout idle' since 3.1 (in its place: 'timeout "
        "server' and 'pool-purge-delay' of the agent's backend) [ignored]\n"
        "        timeout idle 1s\n        ^\n"
        f"{spoe} is valid for HAProxy 3.4\n"
        "engine test\n"
        "  agent    a, variables a.*\n"
        "  backend  agents\n"
        "  on-frontend-http-request\n"
        "    m(ip, path) when its condition fails\n"
    )


def test_every_scope_is_validated(spoe: Path) -> None:
    result = validate(REAL / "proxy.cfg")
    assert re.findall("^engine (.*)", result.stdout, re.MULTILINE) == [
        "request-engine",
        "response-engine",
    ]
    spoe.write_text(AGENT + "[other]\nspoe-agent b\n    wrong\n[third]\nspoe-message m\n")
    result = validate(spoe)
    assert result.returncode == 1
    assert f"{spoe}:13:5: error: unknown keyword 'wrong' in spoe-agent" in result.stdout
    assert "error: there is no spoe-agent in the scope 'third'" in result.stdout
    assert validate(spoe, "--scope", "test").returncode == 0
    assert validate(spoe, "--scope", "none").returncode == 1


def test_errors_show_their_line_with_a_caret(spoe: Path) -> None:
    spoe.write_text(AGENT + "\targs b=pth c=\x1bwrong\n")
    result = validate(spoe, "--haproxy-version", "3.0")
    assert result.returncode == 1
    assert result.stdout == (
        f"{spoe}:11:9: error: unknown fetch 'pth' (did you mean 'path'?)\n"
        "    \targs b=pth c=?wrong\n"
        "    \t       ^\n"
        f"{spoe}:11:15: error: missing name of a fetch\n"
        "    \targs b=pth c=?wrong\n"
        "    \t             ^\n"
        f"{spoe} is not valid for HAProxy 3.0: 2 errors\n"
    )


def test_what_is_wrong_with_the_file_is_said_once(spoe: Path) -> None:
    spoe.write_text(AGENT + AGENT.replace("test", "more") + ".if\n")
    assert validate(spoe).stdout.count("error: an '.if' has no '.endif'") == 1


def test_what_a_version_ignores_is_a_note_with_what_replaces_it(spoe: Path) -> None:
    result = validate(spoe, "--haproxy-version", "3.1")
    assert result.returncode == 0
    assert f"{spoe}:5:5: note: HAProxy ignores 'timeout hello' since 3.1 (in its" in result.stdout
    assert "is valid for HAProxy 3.1" in result.stdout


def test_what_a_version_lacks_is_an_error(spoe: Path) -> None:
    result = validate(spoe, "--haproxy-version", "1.7")
    assert result.returncode == 1
    assert "error: HAProxy 1.7 has no 'conditions': new in 1.8 [version]" in result.stdout


def test_what_haproxy_has_and_the_engine_has_not_is_a_note(spoe: Path) -> None:
    spoe.write_text(AGENT.replace("path", "cert=ssl_c_der"))
    result = validate(spoe)
    assert result.returncode == 0
    assert "note: HAProxy has 'ssl_c_der'; this engine can't evaluate it [missing]" in result.stdout


@pytest.mark.parametrize(
    "fetch, version, status, said",
    [
        ("bc_rtt(us)", "2.8", 0, "note: HAProxy has 'bc_rtt'"),
        ("baseq", "2.2", 1, "error: unknown fetch 'baseq' (HAProxy 2.6 to 3.4 have it)"),
        ("baseq", "2.5", 0, "warning: HAProxy 2.6 has 'baseq' and 2.2 does not: 2.5 may refuse"),
        ("bs.id", "3.1", 0, "note: HAProxy has 'bs.id'"),
        ("baseq", "3.9", 0, "note: there is no table of HAProxy 3.9: that of 3.4 is used"),
        ("baseq", "2.0", 1, "note: there is no table of HAProxy 2.0: that of 2.2 is used"),
    ],
)
def test_the_tables_decide_by_version(
    spoe: Path, fetch: str, version: str, status: int, said: str
) -> None:
    spoe.write_text(AGENT.replace("path", fetch).replace("frontend-http-request", "http-response"))
    spoe.write_text(AGENT.replace("path", fetch) if fetch == "baseq" else spoe.read_text())
    result = validate(spoe, "--haproxy-version", version)
    assert (result.returncode, said in result.stdout) == (status, True), result.stdout


def test_a_haproxy_cfg_given_by_mistake_is_one_line(tmp_path: Path) -> None:
    mistaken = tmp_path / "haproxy.cfg"
    mistaken.write_text(
        "global\n    nbthread 2\nfrontend f\n    filter spoe config /etc/spoe.cfg\n"
    )
    result = validate(mistaken)
    assert result.returncode == 1
    assert result.stdout.splitlines()[0] == (
        f"{mistaken}:1:1: error: this is a haproxy.cfg, not an SPOE file (give the file that its "
        "line 'filter spoe … config /etc/spoe.cfg' names) [file]"
    )
    assert "1 error" in result.stdout


def test_a_last_line_without_end_is_refused(spoe: Path) -> None:
    spoe.write_text(AGENT.rstrip())
    assert "error: the last line has no end" in validate(spoe).stdout
    assert validate(spoe).returncode == 1
    assert validate(spoe, "--haproxy-version", "2.2").returncode == 0


def test_of_several_event_lines_the_last_one_counts(spoe: Path) -> None:
    spoe.write_text(AGENT + "    event on-client-session\n")
    result = validate(spoe)
    assert result.returncode == 1  # The path can't be had there.
    assert "warning: another 'event' line: the last one counts" in result.stdout


def test_the_haproxy_cfg_and_the_agent_are_checked_with_it(spoe: Path, tmp_path: Path) -> None:
    config, module = tmp_path / "haproxy.cfg", tmp_path / "checked_app.py"
    config.write_text("defaults\n    mode http\nfrontend f\n    filter spoe engine test config x\n")
    module.write_text("from spop import Agent\nagent = Agent()\n")
    result = validate(spoe, "--haproxy-cfg", config, "--agent", f"{module}:agent", "--json")
    told = json.loads(result.stdout)
    assert result.returncode == 1
    assert told["haproxy_version"] == "3.4"
    found = {(d["rule"], d["severity"], d["file"]) for d in told["diagnostics"]}
    assert ("backend-missing", "error", str(spoe)) in found
    assert ("message-without-handler", "warning", str(spoe)) in found
    assert ("ignored", "note", str(spoe)) in found


def test_the_kind_of_proxy(spoe: Path) -> None:
    spoe.write_text(AGENT.replace("src path", "be_name").replace("frontend", "backend"))
    assert validate(spoe).returncode == 1
    assert validate(spoe, "--proxy", "backend").returncode == 0


def test_json(spoe: Path) -> None:
    told = json.loads(validate(REAL / "bouncer.cfg", "--json").stdout)
    assert told["valid"] is True
    assert {d["severity"] for d in told["diagnostics"]} == {"note"}
    assert told["engines"] == [
        {
            "engine": "bouncer",
            "agent": "bouncer-agent",
            "backend": "bouncer-agents",
            "var_prefix": "bouncer",
            "events": {"on-client-session": ["bouncer-ip"]},
            "groups": {
                "bouncer-http-body": ["bouncer-body"],
                "bouncer-http-no-body": ["bouncer-no-body"],
            },
        }
    ]
    spoe.write_text(AGENT.replace("path", "pth"))
    result = validate(spoe, "--json", "--haproxy-version", "3.0")
    assert result.returncode == 1
    assert json.loads(result.stdout) == {
        "file": str(spoe),
        "haproxy_version": "3.0",
        "valid": False,
        "diagnostics": [
            {
                "severity": "error",
                "rule": "syntax",
                "file": str(spoe),
                "line": 9,
                "column": 17,
                "message": "unknown fetch 'pth'",
                "hint": "did you mean 'path'?",
            }
        ],
        "engines": [],
    }


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["/none/such"], "File '/none/such' does not exist"),
        ([REAL], "is a directory"),
        ([REAL / "waf.cfg", "--haproxy-version", "new"], "'new' is no version of HAProxy"),
        ([REAL / "waf.cfg", "--proxy", "x"], "'x' is not one of"),
        ([], "Missing argument 'FILE'"),
    ],
)
def test_mistakes_in_the_command_are_one_line_and_exit_status_2(
    arguments: list[object], complaint: str
) -> None:
    result = validate(*arguments)
    assert result.returncode == 2
    assert complaint in result.stderr.splitlines()[-1]


def test_help_has_examples() -> None:
    assert re.search(r"Examples:\n\s+spop validate spoe.cfg", validate("--help").stdout)
