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
        f"{spoe} is valid\n"
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
    result = validate(spoe)
    assert result.returncode == 1
    assert result.stdout == (
        f"{spoe}:11:9: error: unknown fetch 'pth' (did you mean 'path'?)\n"
        "    \targs b=pth c=?wrong\n"
        "    \t       ^\n"
        f"{spoe}:11:15: error: missing name of a fetch\n"
        "    \targs b=pth c=?wrong\n"
        "    \t             ^\n"
        f"{spoe} is not valid: 2 errors\n"
    )


def test_what_is_wrong_with_the_file_is_said_once(spoe: Path) -> None:
    spoe.write_text(AGENT + AGENT.replace("test", "more") + ".if\n")
    assert validate(spoe).stdout.count("error: an '.if' has no '.endif'") == 1


def test_warnings_leave_it_valid(spoe: Path) -> None:
    result = validate(spoe, "--haproxy-version", "3.1")
    assert result.returncode == 0
    assert f"{spoe}:5:5: warning: HAProxy ignores 'timeout hello' since 3.1\n" in result.stdout
    assert "is valid" in result.stdout
    result = validate(spoe, "--haproxy-version", "1.7")
    assert "warning: HAProxy 1.7 has no 'conditions': new in 1.8" in result.stdout


def test_the_kind_of_proxy(spoe: Path) -> None:
    spoe.write_text(AGENT.replace("src path", "be_name").replace("frontend", "backend"))
    assert validate(spoe).returncode == 1
    assert validate(spoe, "--proxy", "backend").returncode == 0


def test_json(spoe: Path) -> None:
    told = json.loads(validate(REAL / "bouncer.cfg", "--json").stdout)
    assert told["valid"] is True
    assert [d["severity"] for d in told["diagnostics"]] == ["warning"]
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
    result = validate(spoe, "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout) == {
        "file": str(spoe),
        "valid": False,
        "diagnostics": [
            {
                "severity": "error",
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
