"""SPOE files: the same verdicts as real HAProxy 2.6 on every file of ``tests/config``."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import haproxy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spop.engine.config import (
    ConfigError,
    Proxy,
    Report,
    Severity,
    check_spoe,
    group_for_rule,
    load_spoe,
    parse_spoe,
    scopes,
)
from spop.engine.config.model import AgentConfig, Event, Location, LogTarget
from spop.engine.config.versions import REPLACED_BY, SINCE
from spop.engine.samples import Place
from spop.engine.stream import Request, Stream

FILES = Path(__file__).with_name("config")

BACKENDS = (
    "agents", "waf-agents", "bouncer-agents", "application-proxy", "spoe_back", "mirror",
)  # fmt: skip

ENVIRONMENT = {"SPOP_ONE": "src", "SPOP_TWO": "src  dst", "SPOP_WRONG": "src wrong"}

AGENT = """[test]
spoe-agent a
    use-backend agents
    timeout hello 1s
    timeout idle 1s
    timeout processing 1s
    messages m
"""

AROUND_AGENT_LINES = """
spoe-message m
    event on-client-session
spoe-message n
    event on-client-session
spoe-message o
spoe-group g
    messages n
spoe-group h
spoe-group shared
    messages o
spoe-group also-shared
    messages o
"""

AROUND_MESSAGE_LINES = """
    acl later always_true
"""


DIGITS = "9" * 5000
"""More than Python's int() takes."""


class Case(NamedTuple):
    """A file, whether HAProxy 2.6 takes it, and how the filter is written."""

    name: str
    good: bool
    data: bytes
    engine: str | None = "test"
    proxy: str = "frontend"


class Verdict(NamedTuple):
    good: bool
    lines: set[int]
    said: str


def table(name: str, before: str, after: str) -> Iterator[Case]:
    for text in (FILES / f"{name}.txt").read_text().splitlines():
        if text[:2] in ("+ ", "- "):
            data = f"{before}    {text[2:]}{after}".encode()
            yield Case(text[2:], text[0] == "+", data)


def whole_files() -> Iterator[Case]:
    text = (FILES / "files.txt").read_text()
    for verdict, name, options, body in re.findall(
        r"^=== ([+-]) ([^|\n]*?)(?: \| (.*))?\n((?:(?!===).*\n)*)", text, re.MULTILINE
    ):
        chosen = dict(option.split("=") for option in options.split())
        engine = {"-": None}.get(chosen.get("engine", ""), "test")
        proxy = chosen.get("proxy", "frontend")
        yield Case(name, verdict == "+", body.encode(), engine, proxy)


def bytes_of_files() -> Iterator[Case]:
    message = AGENT + "spoe-message m\n    event on-client-session\n"
    for good, name, text in [
        (True, "lines that end with CR LF", message.replace("\n", "\r\n")),
        (True, "a CR ends the line", message + "    args src\rwrong\n"),
        (False, "a CR ends the line inside of quotes", message + "    args 'src\rwrong'\n"),
        (True, "tabs and other spaces", message + "\t \v args\t\tsrc \f dst\t\n"),
        (False, "a tab after a backslash", message + "    args src\\\tdst\n"),
        (False, "no end of the last line", message + "    args src"),
        (False, "no end of the last line, a comment", message + "# args src"),
        (False, "a NUL", message + "    args src\0 wrong\n    args dst\n"),
        (False, "a NUL in a comment", message + "# \0\n"),
        (False, "a NUL at the end", message + "    args src\0"),
        (True, "a long line", message + f"    args a=str({'x' * 5000})\n"),
        (False, "a mistake after a long line", message + f"#{'x' * 70000}\n    args wrong\n"),
        (False, "a byte order mark", "\ufeff" + message),
        (
            True,
            "integers of thousands of digits",
            message + f"    args int({DIGITS}) rand({DIGITS})\n",
        ),
        (False, "a pattern of thousands of digits", message + f"    acl x src_port {DIGITS}\n"),
        (False, "a mask of thousands of digits", message + f"    args src,ipmask({DIGITS})\n"),
        (
            False,
            "a size of thousands of digits",
            AGENT + f"    max-frame-size {DIGITS}\nspoe-message m\n",
        ),
        (
            True,
            "a rate of thousands of digits",
            AGENT + f"    maxerrrate {DIGITS}\nspoe-message m\n",
        ),
        (
            False,
            "a length of thousands of digits",
            AGENT + f"    log 127.0.0.1 len {DIGITS} local0\nspoe-message m\n",
        ),
        (
            False,
            "a time of thousands of digits",
            AGENT + f"    timeout processing {DIGITS}\nspoe-message m\n",
        ),
        (False, "a mask in Arabic digits", message + "    args src,ipmask(٣)\n"),
        (False, "a network in Arabic digits", message + "    acl x src 10.0.0.0/٣\n"),
        (True, "bytes that are no UTF-8", message + "    args a=str(\udce9) # \udce9\n"),
        (True, "no continued lines: a backslash is a word", message + "    messages \\\n"),
        (False, "no continued lines", message + "    args src \\\n    dst\n"),
    ]:
        yield Case(name, good, text.encode("utf-8", "surrogateescape"))


def real_files() -> Iterator[Case]:
    for path in sorted((FILES / "real").iterdir()):
        for engine in scopes(path):
            yield Case(path.stem, True, path.read_bytes(), engine)


CASES = [
    *table("agent_lines", AGENT, AROUND_AGENT_LINES),
    *table(
        "message_lines",
        f"{AGENT}spoe-message m\n    acl declared src 10.0.0.1\n    event on-client-session\n",
        AROUND_MESSAGE_LINES,
    ),
    *whole_files(),
    *bytes_of_files(),
    *real_files(),
]


def ask(binary: str, folder: Path, case: Case, rule: str = "") -> Verdict:
    """What HAProxy says of a file that a filter names."""
    spoe, config = folder / "spoe.cfg", folder / "haproxy.cfg"
    spoe.write_bytes(case.data)
    engine = f"engine {case.engine} " if case.engine else ""
    mode = "spop" if haproxy.version(binary) >= (3, 1) else "tcp"
    config.write_text(
        "defaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n"
        f"    timeout server 1s\n{case.proxy} p\n    filter spoe {engine}config {spoe}\n    {rule}\n"
        + "".join(f"backend {name}\n    mode {mode}\n" for name in BACKENDS)
    )
    done = subprocess.run(
        [binary, "-c", "-f", str(config)],
        capture_output=True,
        env={**os.environ, **ENVIRONMENT},
        timeout=30,
    )
    said = done.stderr.decode("utf-8", "replace")
    lines = re.findall(rf"ALERT.*?parsing \[{re.escape(str(spoe))}:(\d+)\]", said)
    # Status 2 is for a configuration without a listener; a signal's is negative.
    return Verdict(done.returncode in (0, 2), set(map(int, lines)), said)


def read(case: Case, haproxy_version: str | None = "2.6") -> Report:
    return parse_spoe(
        case.data,
        "spoe.cfg",
        case.engine,
        proxy=Proxy(case.proxy),
        haproxy_version=haproxy_version,
    )


def error_lines(report: Report) -> set[int]:
    return {d.location.line for d in report.diagnostics if d.severity is Severity.ERROR}


def messages(report: Report) -> list[str]:
    return [str(diagnostic) for diagnostic in report.diagnostics]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


KNOWN_TO_DIFFER = {
    # Units of time ended at "us", addresses had no udp@ and ports no limit; variables had no default; bytes behind a NUL were passed over.
    (2, 2): {
        "timeout hello 0us", "timeout hello 1us", "timeout hello 999us",
        "timeout hello 5000000000us", "log udp@127.0.0.1:514 local0",
        "log 127.0.0.1:99999 local0", 'args "${SPOP_TWO[*]}"',
        'args "${SPOP_UNSET-src}"', 'args "${SPOP_ONE-wrong}"', 'args "a=int(${.LINE})"',
        'args "a=str(${.FILE})" "b=str(${.SECTION})"', "a NUL", "a NUL in a comment",
        "a NUL at the end", "an .if and its .else", "an .if and its .elif", "ifs in one another",
        "an empty condition is false", "args src,hmac(sha1,key)",
        "args x=src,hmac(sha1,a2V5=)",
    },
    # 3.0.11 still leaves the last word after "default" twice; other releases of 3.0 do not.
    (3, 0): {"default option pipelining", "default option var-prefix p", "default log global"},
}  # fmt: skip
"""The cases of which a version says something else, or that of other lines, by design."""


def test_verdicts_and_lines_are_haproxys(haproxy_binary: str, tmp_path: Path) -> None:
    assert len(CASES) >= 350
    branch = haproxy.version(haproxy_binary)[:2]

    def judge(numbered: tuple[int, Case]) -> Verdict:
        folder = tmp_path / str(numbered[0])
        folder.mkdir()
        return ask(haproxy_binary, folder, numbered[1])

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(judge, enumerate(CASES)))
    wrong = {}
    for case, verdict in zip(CASES, verdicts, strict=True):
        report = read(case, ".".join(map(str, branch)))
        # HAProxy reports some errors for the filter's line, without one of the file.
        same_lines = verdict.lines in (set(), error_lines(report))
        if (report.config is not None) != verdict.good or not same_lines:
            wrong[case.name] = f"{verdict.said} but we say {messages(report)}"
    assert wrong.keys() == KNOWN_TO_DIFFER.get(branch, set()), wrong


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[:60])
def test_verdict(case: Case) -> None:
    report = read(case)
    assert (report.config is not None) is case.good, messages(report)


def test_what_versions_lack_and_ignore(haproxy_binary: str, tmp_path: Path) -> None:
    """Each HAProxy refuses the keywords that we say it lacks."""
    version = haproxy.version(haproxy_binary)
    lines = {
        "log": "log global",
        "groups": "groups",
        "max-frame-size": "max-frame-size 256",
        "max-waiting-frames": "max-waiting-frames 5",
        "register-var-names": "register-var-names x",
        "option set-process-time": "option set-process-time x",
        "option set-total-time": "option set-total-time x",
        "timeout hello": "timeout hello 1s",
        "timeout idle": "timeout idle 1s",
        "maxconnrate": "maxconnrate 5",
        "maxerrrate": "maxerrrate 5",
    }
    keywords = SINCE.keys() | REPLACED_BY.keys()
    lines |= {name: name for name in keywords if name.startswith("option") and name not in lines}
    for keyword, line in lines.items():
        data = f"{AGENT}    {line}\nspoe-message m\n    event on-client-session\n".encode()
        report = read(case := Case(keyword, True, data), f"{version.major}.{version.minor}")
        # A first release lacks what its branch got later.
        lacks = version[:2] < SINCE.get(keyword, (1, 7))
        assert ask(haproxy_binary, tmp_path, case).good is not lacks, keyword
        said = {d.rule for d in report.diagnostics if f"'{keyword}'" in d.message}
        ignored = keyword in REPLACED_BY and version.rewritten
        assert said == ({"version"} if lacks else {"ignored"} if ignored else set()), keyword
        assert (report.config is None) is lacks


@pytest.mark.parametrize(
    "line", ["timeout hello x", "timeout idle x", "max-waiting-frames 0", "maxconnrate 1 2", "maxerrrate 1 2"]
)  # fmt: skip
def test_what_is_ignored_may_have_any_value(haproxy_binary: str, line: str, tmp_path: Path) -> None:
    version = haproxy.version(haproxy_binary)
    data = f"{AGENT}    {line}\nspoe-message m\n    event on-client-session\n".encode()
    report = read(case := Case(line, True, data), f"{version.major}.{version.minor}")
    assert ask(haproxy_binary, tmp_path, case).good is version.rewritten
    assert (report.config is not None) is version.rewritten


@pytest.mark.parametrize(
    "line",
    ["timeout hello 1 2", "timeout idle", "max-waiting-frames 1 2", "max-waiting-frames",
     "maxconnrate", "option async x"],
)  # fmt: skip
def test_the_words_of_what_is_ignored_are_counted(
    haproxy_binary: str, line: str, tmp_path: Path
) -> None:
    version = haproxy.version(haproxy_binary)
    data = f"{AGENT}    {line}\nspoe-message m\n    event on-client-session\n".encode()
    report = read(case := Case(line, True, data), f"{version.major}.{version.minor}")
    assert (report.config is not None) is ask(haproxy_binary, tmp_path, case).good


def test_the_end_of_the_last_line_is_judged_by_version(haproxy_binary: str, tmp_path: Path) -> None:
    version = haproxy.version(haproxy_binary)
    case = Case("", True, f"{AGENT}spoe-message m\n    event on-client-session".encode())
    report = read(case, f"{version.major}.{version.minor}")
    assert (report.config is not None) is ask(haproxy_binary, tmp_path, case).good


def test_without_a_version_a_last_line_without_end_is_a_warning() -> None:
    report = parse_spoe(f"{AGENT}spoe-message m\n    event on-client-session", "f", "test")
    assert report.result().name == "a"
    assert messages(report) == [
        "f:9:28: warning: the last line has no end (HAProxy refuses it since 2.3)"
    ]


# --- what shipped agents have ---


def test_a_firewalls_groups() -> None:
    config = load_spoe(FILES / "real" / "waf.cfg", "waf")
    assert (config.name, config.engine, config.backend) == ("waf-agent", "waf", "waf-agents")
    assert config.events == {}
    assert list(config.groups) == ["waf-request", "waf-response"]
    (request,) = config.groups["waf-request"].messages
    assert [argument.name for argument in request.arguments] == [
        "app", "src-ip", "src-port", "dst-ip", "dst-port", "method", "path", "query", "version",
        "headers", "body", "flag",
    ]  # fmt: skip
    assert request.arguments[-1].expression.evaluate(Stream()) is False
    assert config.set_on_error == "txn.waf.error"
    assert config.known_variables == {"txn.waf.app", "txn.waf.error"}
    assert (config.continue_on_error, config.log_global) == (True, True)


def test_a_bouncers_event_and_groups() -> None:
    config = load_spoe(FILES / "real" / "bouncer.cfg", "bouncer")
    assert [m.name for m in config.events[Event.ON_CLIENT_SESSION]] == ["bouncer-ip"]
    assert {name: [m.name for m in group.messages] for name, group in config.groups.items()} == {
        "bouncer-http-body": ["bouncer-body"],
        "bouncer-http-no-body": ["bouncer-no-body"],
    }
    assert (config.hello_timeout, config.idle_timeout) == (0.2, 55.0)


def test_two_engines_of_one_agent() -> None:
    path = FILES / "real" / "proxy.cfg"
    assert scopes(path) == ["request-engine", "response-engine"]
    request, response = (load_spoe(path, engine) for engine in scopes(path))
    assert request.name == response.name == "application-proxy"
    (message,) = request.events[Event.ON_FRONTEND_HTTP_REQUEST]
    stream = Stream(request=Request(headers=[("Cookie", "name=x")]))
    assert message.arguments[1].expression.evaluate(stream) == "x"
    assert response.known_variables == {"txn.proxy.token", "txn.proxy.session"}


def test_arguments_without_names_and_the_anonymous_scope() -> None:
    path = FILES / "real" / "unnamed.cfg"
    config = load_spoe(path)
    assert scopes(path) == [None]
    assert (config.engine, config.var_prefix) == ("unnamed", "unnamed")
    (first,) = config.events[Event.ON_FRONTEND_HTTP_REQUEST]
    assert {argument.name for argument in first.arguments} == {""}
    assert [argument.expression.text for argument in first.arguments] == [
        "always_true", "int(1234)", "src", "ipv6(::55)", "req.fhdr(host)",
    ]  # fmt: skip


# --- what is in the configuration ---


def agent(lines: str, **kwargs: str) -> AgentConfig:
    text = f"{AGENT}{lines}\nspoe-message m\n    event on-client-session\n"
    return parse_spoe(text, "f", "test", **kwargs).result()  # type: ignore[arg-type]


def test_numbers_are_read_as_by_c() -> None:
    config = agent(
        "maxconnrate -5\nmaxerrrate 7x\nmax-frame-size 4294967552\nmax-waiting-frames 99999999999999999999"
    )
    assert (config.maxconnrate, config.maxerrrate) == (2**32 - 5, 7)
    assert (config.max_frame_size, config.max_waiting_frames) == (256, 2**32 - 1)


@pytest.mark.parametrize(
    "text, seconds",
    [("1", 0.001), ("1us", 0.001), ("1001us", 0.002), ("15ms", 0.015), ("2s", 2), ("2m", 120),
     ("2h", 7200), ("1d", 86400), ("5sec", 5), ("0", None)],
)  # fmt: skip
def test_times(text: str, seconds: float | None) -> None:
    assert agent(f"timeout processing {text}").processing_timeout == seconds


def test_options() -> None:
    config = agent("")
    assert (config.pipelining, config.asynchronous, config.send_frag_payload) == (True, True, True)
    assert (config.dontlog_normal, config.continue_on_error, config.force_set_var) == (
        False, False, False,
    )  # fmt: skip
    config = agent(
        "no option pipelining\nno option async\nno option send-frag-payload\n"
        "option dontlog-normal\noption continue-on-error\noption force-set-var"
    )
    assert (config.pipelining, config.asynchronous, config.send_frag_payload) == (
        False, False, False,
    )  # fmt: skip
    assert (config.dontlog_normal, config.continue_on_error, config.force_set_var) == (
        True, True, True,
    )  # fmt: skip


def test_variables_that_are_set_and_registered() -> None:
    config = agent(
        "option set-on-error e\noption set-process-time p\noption set-total-time t\n"
        "option var-prefix x\nregister-var-names r"
    )
    assert config.set_on_error == "txn.x.e"
    assert config.set_process_time == "txn.x.p"
    assert config.set_total_time == "txn.x.t"
    registered = {f"{scope}.x.r" for scope in ("proc", "sess", "txn", "req", "res")}
    assert config.known_variables == {"txn.x.e", "txn.x.p", "txn.x.t", *registered}


def test_variables_that_arguments_acls_and_conditions_mention() -> None:
    config = parse_spoe(
        f"{AGENT}spoe-message m\n    args var(txn.a) int(1),add(sess.b)\n"
        "    acl c var(req.c) -m found\n    event on-client-session if { var(res.d) -m str x }\n",
        "f",
        "test",
    ).result()
    assert config.known_variables == {"txn.a", "sess.b", "req.c", "res.d"}


def test_log_lines() -> None:
    config = agent(
        "log global\nlog 10.0.0.1 local7\nno log\nlog udp@10.0.0.1 local0 info err\n"
        "log [::1]:5140 len 2000 format rfc5424 sample 1,3-4:5 daemon\n"
        "log unix@/dev/log user\nlog fd@1 local1"
    )
    assert not config.log_global
    assert config.log_targets == (
        LogTarget("10.0.0.1:514", "local0", "info", "err"),
        LogTarget("[::1]:5140", "daemon", format="rfc5424", length=2000,
                  sample_ranges=((1, 1), (3, 4)), sample_size=5),
        LogTarget("/dev/log", "user"),
        LogTarget("stdout", "local1"),
    )  # fmt: skip


def test_conditions_hold_or_fail() -> None:
    text = f"{AGENT}spoe-message m\n    acl api path_beg /api\n    event on-frontend-http-request "
    for words, expected in [
        ("if api", [True, False]),
        ("unless api", [False, True]),
        ("if or", [False, False]),
        ("unless", [True, True]),
    ]:
        config = parse_spoe(f"{text}{words}\n", "f", "test").result()
        (message,) = config.events[Event.ON_FRONTEND_HTTP_REQUEST]
        streams = [Stream(request=Request(uri=uri)) for uri in ("/api/x", "/")]
        assert [message.applies(stream) for stream in streams] == expected, words


def test_messages_are_in_the_order_of_the_messages_lines() -> None:
    config = agent("messages o\nmessages n\nspoe-message n\n event on-client-session\nspoe-message o\n event on-client-session")  # fmt: skip
    assert [m.name for m in config.events[Event.ON_CLIENT_SESSION]] == ["m", "o", "n"]


def test_in_listen_the_backends_events_are_the_frontends() -> None:
    text = f"{AGENT}spoe-message m\n    event on-backend-http-request\n"
    events = {proxy: parse_spoe(text, "f", "test", proxy=proxy).result().events for proxy in Proxy}
    assert list(events[Proxy.FRONTEND]) == [Event.ON_BACKEND_HTTP_REQUEST]
    assert list(events[Proxy.BACKEND]) == [Event.ON_BACKEND_HTTP_REQUEST]
    assert list(events[Proxy.LISTEN]) == [Event.ON_FRONTEND_HTTP_REQUEST]


@pytest.mark.parametrize(
    "rule, place",
    [
        ("http-request send-spoe-group test g", Place.FE_HRQ_HDR),
        ("http-response send-spoe-group test g", Place.BE_HRS_HDR),
        ("tcp-request content send-spoe-group test g", Place.FE_REQ_CNT),
        ("tcp-response content send-spoe-group test g", Place.BE_RES_CNT),
        ("http-request send-spoe-group test nowhere", Place.FE_HRQ_HDR),
    ],
)
@pytest.mark.parametrize("fetch", ["src", "path", "status", "be_name"])
def test_groups_for_rules(
    haproxy_2_6: str, rule: str, place: Place, fetch: str, tmp_path: Path
) -> None:
    data = f"{AGENT}groups g\nspoe-group g\n messages n\nspoe-message m\n event on-client-session\nspoe-message n\n args {fetch}\n"  # fmt: skip
    case = Case(rule, True, data.encode(), proxy="listen")
    config = read(case).result()
    try:
        group_for_rule(config, rule.split()[-1], place)
    except ConfigError:
        good = False
    else:
        good = True
    assert good is ask(haproxy_2_6, tmp_path, case, rule).good


# --- errors ---


@pytest.mark.parametrize(
    "line, expected",
    [
        ("mesages x", "8:5: error: unknown keyword 'mesages' in spoe-agent (did you mean 'messages'?)"),
        ("option asinc", "8:12: error: unknown option 'asinc' (did you mean 'async'?)"),
        ("timeout ack 1s", "8:13: error: there is no 'timeout ack' any more: all it did is done by "
         "'timeout processing' (delete the line)"),
        ("timeout hello 1x", "8:19: error: '1x' is no time: a number and one of us, ms, s, m, h, d"),
        ("messages  m", "8:15: error: spoe-message 'm' is already used in line 7"),
        ("messages mm", "8:14: error: there is no spoe-message 'mm' (did you mean 'm'?)"),
        ("groups chek", "8:12: error: there is no spoe-group 'chek' (did you mean 'check'?)"),
        ("option var-prefix a\"-\"b", "8:25: error: '-' in 'a-b': a variable's name has letters, "
         "digits, '_' and '.' only"),
        ("log stdout locl0", "8:16: error: unknown facility 'locl0' (did you mean 'local0'?)"),
        ("spoe-agent b", "8:16: error: a scope has one spoe-agent; 'a' is in line 2"),
    ],
)  # fmt: skip
def test_an_agents_errors_say_where_and_what_was_meant(line: str, expected: str) -> None:
    text = f"{AGENT}    {line}\nspoe-message m\n event on-client-session\nspoe-group check\n"
    with pytest.raises(ConfigError) as caught:
        parse_spoe(text, "f", "test").result()
    assert str(caught.value) == f"f:{expected}"


@pytest.mark.parametrize(
    "line, expected",
    [
        ("args a=pth", "9:12: error: unknown fetch 'pth' (did you mean 'path'?)"),
        ("args a=src b=path,lowr", "9:23: error: unknown converter 'lowr' (did you mean 'lower'?)"),
        ("args 'a=\"src' \"b\"=s\\x72c,wrong", "9:13: error: missing name of a fetch"),
        ("args a=int(\"$SPOP_ONE\")", "9:17: error: 'src' is not an integer"),
        ("args é=wrong", "9:12: error: unknown fetch 'wrong'"),
        ("event on-http-respose", "9:11: error: unknown event 'on-http-respose' (did you mean "
         "'on-http-response'?)"),
        ("event on-client-session if METH_GTE", "9:32: error: unknown ACL 'METH_GTE' (did you mean "
         "'METH_GET'?)"),
        ("acl x src 10.0.0.0/33", "9:15: error: '33' is not an IPv4 mask"),
        ("args 'src", "9:10: error: unmatched quote"),
        ("args path", "9:10: error: 'path' can't be had at 'on-client-session' in a frontend"),
    ],
)  # fmt: skip
def test_a_messages_errors_say_where_and_what_was_meant(line: str, expected: str) -> None:
    text = f"{AGENT}spoe-message m\n    {line}\n    event on-client-session\n"
    with pytest.raises(ConfigError) as caught:
        parse_spoe(text, "f", "test").result()
    assert f"f:{expected}" in str(caught.value).splitlines()


def test_all_errors_at_once_in_order_and_warnings_apart() -> None:
    report = parse_spoe(
        f"{AGENT}    option wrong\n    timeout hello\n"
        "spoe-message m\n    args a=wrong src b=wrong\n    arg x\n    event wrong\n",
        "f",
        "test",
        haproxy_version="3.2",
    )
    assert report.config is None
    found = [(d.severity.value, d.location.line, d.location.column) for d in report.diagnostics]
    assert found == [
        ("note", 4, 5),
        ("note", 5, 5),
        ("error", 8, 12),
        ("note", 9, 5),
        ("warning", 10, 14),
        ("error", 11, 12),
        ("error", 11, 24),
        ("warning", 12, 5),
        ("error", 13, 11),
    ]
    with pytest.raises(ConfigError) as caught:
        report.result()
    assert caught.value.diagnostics == report.diagnostics
    assert len(str(caught.value).splitlines()) == 4


def test_a_scope_that_is_not_there_is_named_beside_those_that_are() -> None:
    path = FILES / "real" / "proxy.cfg"
    with pytest.raises(ConfigError, match=r"'request-engin' \(did you mean 'request-engine'\?\)"):
        load_spoe(path, "request-engin")
    with pytest.raises(ConfigError, match="has the scopes 'request-engine' and 'response-engine'"):
        load_spoe(path)
    with pytest.raises(ConfigError, match="the file's agent is in no scope"):
        load_spoe(FILES / "real" / "unnamed.cfg", "x")


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.cfg:1:1: error: can't be read: No such file"):
        load_spoe(tmp_path / "none.cfg")
    assert check_spoe(tmp_path).diagnostics[0].location == Location(str(tmp_path), 1)
    with pytest.raises(ConfigError):
        scopes(tmp_path)


def test_a_binary_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ConfigError):
        load_spoe(path)


def test_a_version_that_is_none() -> None:
    with pytest.raises(ValueError, match="'new' is no version of HAProxy"):
        parse_spoe("", haproxy_version="new")


@given(st.lists(st.sampled_from([*"abc\"'\\$#{}[]-=.\t\r\0 ", "\\x4", "${", "[*]", "\udcff"])))
def test_no_line_makes_it_fail_otherwise(parts: list[str]) -> None:
    line = "".join(parts)
    text = f"{AGENT}spoe-message m\n    event on-client-session\n    args {line}\n{line}\n"
    report = parse_spoe(text, "f", "test")
    assert (report.config is None) == bool(error_lines(report))


def test_conditions_inside_of_one_another_end_in_an_error() -> None:
    report = parse_spoe(f"[test]\n.if {'(' * 5000}1{')' * 5000}\n.endif\n", "f", "test")
    assert "f:2:105: error: too many parentheses inside of one another" in messages(report)


# --- what HAProxy has and the engine has not ---

CERTIFICATE = """[test]
spoe-agent a
    use-backend agents
    timeout hello 1s
    timeout idle 1s
    timeout processing 1s
    messages m
spoe-message m
    args cert=ssl_c_der n=str(x),hmac(sha256,a2V5) ip=src
    acl known src_conn_cnt gt 1
    event on-frontend-tcp-request unless { sc_http_req_rate(0) gt 5 }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "spoe.cfg"
    path.write_text(text)
    return path


def test_a_sample_that_is_missing_is_an_error_at_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_spoe(write(tmp_path, CERTIFICATE), "test")
    text = str(caught.value)
    assert "spoe.cfg:9:15: error: HAProxy has 'ssl_c_der'; this engine can't evaluate it" in text
    for name in ("hmac", "src_conn_cnt", "sc_http_req_rate"):
        assert f"HAProxy has '{name}'; this engine can't evaluate it" in text


def test_a_sample_that_is_missing_may_be_unavailable(tmp_path: Path) -> None:
    config = load_spoe(write(tmp_path, CERTIFICATE), "test", missing="unavailable")
    (message,) = config.events[Event.ON_FRONTEND_TCP_REQUEST]
    assert [argument.expression.evaluate(Stream()) for argument in message.arguments[:2]] == [
        None,
        None,
    ]
    assert message.applies(Stream())


def test_missing_is_one_of_two(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ignore"):
        load_spoe(write(tmp_path, CERTIFICATE), "test", missing="ignore")


@pytest.mark.parametrize("version", ["2.6", "2.8", "3.0", "3.2", "3.4"])
@pytest.mark.parametrize("name", [path.name for path in sorted((FILES / "real").iterdir())])
def test_files_of_real_agents_are_valid(name: str, version: str) -> None:
    path = FILES / "real" / name
    for engine in scopes(path):
        report = check_spoe(path, engine, haproxy_version=version)
        assert error_lines(report) == set(), messages(report)


def test_an_argument_that_the_engine_does_not_take_is_missing(tmp_path: Path) -> None:
    text = CERTIFICATE.replace("ssl_c_der", "urlp(a,?,i)")
    report = parse_spoe(text, "f", "test", haproxy_version="3.0")
    assert any("HAProxy has 'urlp'" in said for said in messages(report))
    assert parse_spoe(text, "f", "test", haproxy_version="2.6").config is None


def test_the_engines_own_converters_are_refused_by_haproxys_verdict(tmp_path: Path) -> None:
    path = write(tmp_path, CERTIFICATE.replace("ssl_c_der", "str(x),md5"))
    assert load_spoe(path, "test", missing="unavailable").name == "a"
    assert check_spoe(path, "test").config is None


@pytest.mark.parametrize(
    "words, at",
    [
        (r"args a=path,regsub(^/a\K/b,)", "args"),
        (r"acl odd path_reg ^/\p{L}+$", "acl"),
        (r"event on-frontend-http-request if { path -m reg (?|a|b)c\G }", "event"),
    ],
)
def test_a_regular_expression_of_pcre2_alone_is_missing(
    haproxy_binary: str, words: str, at: str, tmp_path: Path
) -> None:
    version = haproxy.version(haproxy_binary)
    quoted = " ".join(f"'{word}'" for word in words.split())
    data = f"{AGENT}spoe-message m\n    event on-frontend-http-request\n    {quoted}\n".encode()
    case = Case(words, True, data)
    assert ask(haproxy_binary, tmp_path, case).good
    report = read(case, f"{version.major}.{version.minor}")
    assert [d.severity for d in report.diagnostics if d.rule == "missing"] == [Severity.NOTE]
    assert report.config is not None
    with pytest.raises(ConfigError, match="this engine can't"):
        parse_spoe(data, "f", "test", missing="error").result()
