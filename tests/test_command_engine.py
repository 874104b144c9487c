"""`spop engine`: one stream through an SPOE file, from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from spop import UNSET, Agent, Message
from spop.cli import main

ROOT = Path(__file__).parents[1]

SPOE = """\
[waf]
spoe-agent waf
    messages check
    groups answer
    option var-prefix waf
    register-var-names action size
    option set-on-error error
    timeout processing 5s
    use-backend agents

spoe-message check
    args src=src method=method url=url agent=req.hdr(user-agent) body=req.body tls=ssl_fc_sni
    args user=var(txn.user)
    event on-frontend-http-request if { path_beg /api }

spoe-message response
    args status=status type=res.hdr(content-type) body=res.body

spoe-group answer
    messages response
"""


@pytest.fixture
def waf() -> Iterator[tuple[str, list[Message]]]:
    """An agent's address, and what it gets."""
    agent, messages = Agent(), []

    @agent.message("check")
    def check(message: Message) -> dict[str, object]:
        messages.append(message)
        return {"txn.action": "deny", "txn.other": 5, "sess.gone": UNSET}

    @agent.message("response")
    def response(message: Message) -> dict[str, object]:
        messages.append(message)
        return {"res.size": len(message.get("body") or b"")}

    with agent.serve_in_background() as server:
        yield str(server.address), messages


@pytest.fixture
def spoe(tmp_path: Path) -> Path:
    path = tmp_path / "spoe.cfg"
    path.write_text(SPOE)
    return path


def run(path: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["engine", str(path), *words])


WHY = "ignored: the SPOE file and the rules do not name it, as HAProxy before 2.5 wants"


def test_a_request_and_its_variables(spoe: Path, waf: tuple[str, list[Message]]) -> None:
    address, messages = waf
    (spoe.parent / "body").write_bytes(b"a=1")
    result = run(
        spoe, "--agent", address, "--event", "on-frontend-http-request", "method=POST",
        "path=/api/x", "query=y=z", "hdr:User-Agent=curl", f"body=@{spoe.parent / 'body'}",
        "src=2001:db8::1", "ssl:sni=www.example.org", "var:txn.user=42",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert re.fullmatch(
        r"SPOE: \[waf\] <EVENT:on-frontend-http-request> sid=1 st=0 \d+/\d+/\d+/\d+/\d+ 1/1 0/0 0/1",
        lines[0],
    )
    assert lines[1:] == [
        "txn.user = 42 (int)",
        "txn.waf.action = 'deny' (string)",
        f"sess.waf.gone = null (null) {WHY}",
        f"txn.waf.other = 5 (int) {WHY}",
        "  to let it in: 'register-var-names gone other' in the spoe-agent, or 'option force-set-var' "
        "there, or a rule that reads it (--haproxy-cfg), or --haproxy-version 2.5",
    ]
    assert {name: messages[0][name] for name in ("method", "url", "agent", "body", "tls")} == {
        "method": "POST",
        "url": "/api/x?y=z",
        "agent": "curl",
        "body": b"a=1",
        "tls": "www.example.org",
    }
    assert str(messages[0]["src"]) == "2001:db8::1"
    assert messages[0]["user"] == 42


def test_a_group_of_the_response(spoe: Path, waf: tuple[str, list[Message]]) -> None:
    address, messages = waf
    result = run(
        spoe, "--scope", "waf", "--agent", address, "--group", "answer", "-v", "--haproxy-version",
        "2.6", "status=404", "res.hdr:Content-Type=text/html", "res.body=gone",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "    status = 404 (int)" in result.output
    assert "<GROUP:answer>" in result.output
    assert "res.waf.size = 4 (int)" in result.output
    assert messages[0]["type"] == "text/html"


def test_events_happen_in_haproxys_order_and_may_send_nothing(
    spoe: Path, waf: tuple[str, list[Message]]
) -> None:
    result = run(
        spoe, "--agent", waf[0], "--event", "on-http-response", "--event",
        "on-frontend-http-request", "path=/other", "status=200", "--json",
    )  # fmt: skip
    found = json.loads(result.output)
    assert [(each["name"], each["sent"]) for each in found["processed"]] == [
        ("on-frontend-http-request", False),
        ("on-http-response", False),
    ]
    assert found["variables"] == {}
    assert not waf[1]


def test_what_is_not_answered_is_status_1_and_an_error_variable(spoe: Path) -> None:
    result = run(spoe, "--agent", "127.0.0.1:1", "--event", "on-frontend-http-request", "path=/api")
    assert result.exit_code == 1
    assert re.search(r" st=2 (-1|\d+)/-1/-1/-1/\d+ 0/0 0/0 1/1\n", result.output)
    assert "txn.waf.error = 2 (int)" in result.output


def test_the_agent_is_where_haproxys_configuration_has_it(
    spoe: Path, waf: tuple[str, list[Message]]
) -> None:
    haproxy_cfg = spoe.parent / "haproxy.cfg"
    haproxy_cfg.write_text(
        f"frontend www\n    http-request deny if {{ var(txn.waf.other) -m int 5 }}\n"
        f"backend agents\n    mode tcp\n    server a {waf[0]}\n"
    )
    result = run(
        spoe, "--haproxy-cfg", str(haproxy_cfg), "--event", "on-frontend-http-request", "path=/api"
    )
    assert "txn.waf.other = 5 (int)\n" in result.output


@pytest.mark.parametrize(
    "words, error",
    [
        ((), "nothing happens: name an --event or a --group"),
        (("--event", "on-client-session"), "where is the agent? --agent ADDRESS or --haproxy-cfg"),
        (("--agent", "h:1", "--event", "on-client-sesion"), "there are on-client-session, on-f"),
        (("--agent", "h:1", "--group", "answers"), "unknown group 'answers': answer"),
        (("--agent", "h:1", "--event", "on-client-session", "path"), "'path' is no part of a st"),
        (("--agent", "h:1", "--event", "on-client-session", "src=x"), "'x' does not appear to be"),
        (("--agent", "h:1", "--event", "on-client-session", "foo=x"), "unknown; there are src, "),
        (("--agent", "h:1", "--event", "on-client-session", "ssl:foo=x"), "unknown; there are pro"),
        (("--agent", "h:1", "--event", "on-client-session", "ssl=x"), "true or false is wanted"),
        (("--agent", "h:1", "--event", "on-client-session", "var:x=1"), "a variable has a scope"),
        (("--agent", "h:1", "--event", "on-client-session", "body=@/no"), "No such file"),
        (("--agent", "h:1", "--event", "on-client-session", "--scope", "x"), "the scopes 'waf'"),
        (
            ("--agent", "h:1", "--event", "on-client-session", "--haproxy-version", "x"),
            "no version",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(spoe: Path, words: tuple[str, ...], error: str) -> None:
    result = run(spoe, *words)
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert error in line


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("    register-var-names gone other\n", ()),
        ("    option force-set-var\n", ()),
        ("", ("--haproxy-version", "2.5")),
    ],
)
def test_each_way_to_let_a_variable_in_that_is_named_works(
    spoe: Path, waf: tuple[str, list[Message]], how: str, words: tuple[str, ...]
) -> None:
    spoe.write_text(
        SPOE.replace("    timeout processing 5s\n", f"    timeout processing 5s\n{how}")
    )
    event = ("--event", "on-frontend-http-request", "path=/api")
    result = run(spoe, "--agent", waf[0], *event, *words)
    assert result.exit_code == 0, result.output
    assert "ignored" not in result.output
    assert "txn.waf.other = 5 (int)\n" in result.output


def test_events_and_groups_are_completed(spoe: Path) -> None:
    def completed(*words: str) -> list[str]:
        complete = ShellComplete(main, {}, "spop", "_SPOP_COMPLETE")
        items = complete.get_completions(["engine", str(spoe), *words[:-1]], words[-1])
        return [item.value for item in items]

    assert completed("--event", "on-ht") == ["on-http-response"]
    assert len(completed("--event", "")) == 8
    assert completed("--group", "") == ["answer"]
    assert completed("--scope", "waf", "--group", "an") == ["answer"]
    spoe.write_text("nonsense")
    assert completed("--group", "") == []


def test_help_is_not_cut_off() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    assert "..." not in shown.partition("Commands:")[2]


def test_a_mistake_in_the_file_is_told_with_its_place(spoe: Path) -> None:
    spoe.write_text(SPOE.replace("path_beg", "path_bgg").replace("src=src", "src=scr"))
    result = run(spoe, "--agent", "h:1", "--event", "on-client-session")
    assert result.exit_code == 2
    last = result.output.splitlines()[-1]
    assert f"{spoe}:12:14: error: unknown fetch 'scr'" in last
    assert "(and 1 more: spop validate shows them)" in last


def test_a_sample_that_the_engine_lacks_is_an_error_or_unavailable(
    spoe: Path, waf: tuple[str, list[Message]]
) -> None:
    address, messages = waf
    spoe.write_text(SPOE.replace("src=src", "src=src cert=ssl_c_der"))
    words = ("--agent", address, "--event", "on-frontend-http-request", "path=/api")
    refused = run(spoe, *words)
    assert refused.exit_code == 2
    assert "HAProxy has 'ssl_c_der'; this engine can't evaluate it" in refused.output
    result = run(spoe, *words, "--missing", "unavailable")
    assert result.exit_code == 0, result.output
    assert messages[0]["cert"] is None
