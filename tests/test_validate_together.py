"""The SPOE file, the haproxy.cfg and the agent together: right setups, and each wrong in one way."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

import haproxy
import pytest

from spop import Ack, Agent, Headers, Message
from spop.engine.config import Proxy, check_spoe, scopes
from spop.engine.config.diagnostics import Diagnostic, Severity
from spop.engine.config.versions import Version
from spop.engine.validate import (
    ENGINE_RULES,
    RULES,
    EngineSetup,
    Setup,
    check_setup,
    facts_of,
    read_haproxy_cfg,
)

SPOE = """[iprep]
spoe-agent iprep-agent
    messages check
    groups late
    option var-prefix iprep
    option set-on-error error
    timeout processing 50ms
    use-backend agents

spoe-message check
    args ip=src method=method headers=req.hdrs body=req.body
    event on-frontend-http-request

spoe-group late
    messages more

spoe-message more
    args id=unique-id
"""

HAPROXY = """global
    nbthread 2

defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s

frontend www
    bind 127.0.0.1:8080
    option http-buffer-request
    filter spoe engine iprep config {folder}/spoe.cfg
    http-request deny if {{ var(txn.iprep.error) -m found }}
    http-request deny if {{ var(txn.iprep.score) -m int lt 20 }}
    http-request send-spoe-group iprep late
    http-request set-header x-user %[var(txn.iprep.user)]
    default_backend web

backend web
    server one 127.0.0.1:8000

backend agents
    mode {mode}
    option spop-check
    server one 127.0.0.1:9000 check maxconn 2
"""


def agent() -> Agent:
    it = Agent()

    @it.message("check")
    def check(
        ip: IPv4Address | IPv6Address, method: str, headers: Headers, body: bytes = b""
    ) -> dict[str, object]:
        return {"txn.score": 99}

    @it.message("more")
    def more(id: str, ack: Ack) -> None:
        ack.set("txn", "user", id)

    return it


def wrong_name() -> Agent:
    it = agent()

    @it.message("chek")
    def handler(message: Message) -> None: ...

    return it


def with_default() -> Agent:
    it = Agent(on_error={"txn.failed": True})
    it.handlers.update(agent().handlers)
    return it


def changed(name: str, handler: object, **options: object) -> Agent:
    it = agent()
    del it.handlers[name]
    it.message(name, **options)(handler)  # type: ignore[arg-type, call-overload]
    return it


def needs_more(ip: IPv4Address, country: str) -> dict[str, object]:
    return {"txn.score": 1}


def other_type(method: bytes) -> dict[str, object]:
    return {"txn.score": 1}


def other_variable(ip: IPv4Address | IPv6Address) -> dict[str, object]:
    return {"txn.scores": 1}


def one_more_variable(ip: IPv4Address | IPv6Address) -> dict[str, object]:
    return {"txn.score": 1, "txn.unread": 1}


def of_the_process(ip: IPv4Address | IPv6Address) -> dict[str, object]:
    return {"txn.score": 1, "proc.count": 1}


class Case(NamedTuple):
    """A setup, by how it differs from the right one, and the rule that finds it."""

    rule: str
    name: str
    spoe: tuple[str, str] = ("", "")
    haproxy: tuple[str, str] = ("", "")
    agent: Agent | None = None
    version: str = "3.4"


WRONG = [
    Case("group-unused", "a group is not sent", haproxy=("send-spoe-group iprep late", "set-header a b")),
    Case("group-unknown", "a rule's group is mistyped", haproxy=("group iprep late", "group iprep lat")),
    Case("group-unknown", "a rule's engine is mistyped", haproxy=("group iprep late", "group ipreb late")),
    Case("group-engine", "a proxy without filter sends a group", haproxy=(
        "backend web\n", "backend web\n    http-request send-spoe-group iprep late\n")),
    Case("group-place", "a group of the response is sent at a request", spoe=("id=unique-id", "id=unique-id status=status")),
    Case("filter-missing", "no filter names the engine", haproxy=("filter spoe engine iprep", "#")),
    Case("filter-unknown", "a filter names another scope", haproxy=("engine iprep config", "engine ipreb config")),
    Case("filter-unknown", "a filter names no scope", haproxy=("engine iprep config", "config")),
    Case("filter-line", "a filter has no file", haproxy=("    http-request send", "    filter spoe engine other\n    http-request send")),
    Case("filter-line", "a filter's keyword is mistyped", haproxy=("spoe engine", "spoe engin")),
    Case("filter-line", "a filter's file is missing", haproxy=("    http-request send", "    filter spoe engine other config\n    http-request send")),
    Case("filter-line", "a filter is there twice", haproxy=(
        "    http-request send", "    filter spoe engine iprep config {folder}/spoe.cfg\n    http-request send")),
    Case("group-rule", "a rule of a session sends a group", haproxy=("http-request send", "tcp-request session send")),
    Case("group-rule", "a rule of a frontend sends a group behind the response", haproxy=("http-request send", "tcp-response content send")),
    Case("group-rule", "a rule sends two groups", haproxy=("iprep late", "iprep late late")),
    Case("backend-missing", "the backend is mistyped", spoe=("use-backend agents", "use-backend agent")),
    Case("backend-servers", "the backend has no server", haproxy=("    server one 127.0.0.1:9000 check maxconn 2\n", "")),
    Case("backend-mode", "the backend has HTTP's mode", haproxy=("mode {mode}\n", "")),
    Case("backend-check", "the checks only connect", haproxy=("option spop-check", "")),
    Case("timeout-server", "the server's timeout is short", haproxy=("option spop-check", "option spop-check\n    timeout server 40ms")),
    Case("timeout-client", "the client's timeout is short", haproxy=("timeout client 30s", "timeout client 40ms")),
    Case("maxconn", "a thread has no connection", haproxy=("nbthread 2", "nbthread 4")),
    Case("body", "nothing waits for the body", haproxy=("option http-buffer-request", "")),
    Case("fail-open", "nothing denies without an agent", haproxy=(
        "deny if {{ var(txn.iprep.error) -m found }}", "set-header a b")),
    Case("fail-open", "a header shows whether the agent has answered", haproxy=(
        "deny if {{ var(txn.iprep.error) -m found }}", "set-header a b if {{ var(txn.iprep.score) -m found }}")),
    Case("fail-open", "a rule shows the error", haproxy=(
        "deny if {{ var(txn.iprep.error) -m found }}", "return status 200 hdr a %[var(txn.iprep.error)] if METH_GET")),
    Case("headers-bin", "lists of headers are newer", haproxy=(
        "    default_backend", "    http-request add-headers-bin var(txn.iprep.score)\n    default_backend"), version="3.2"),
    Case("frame-size", "frames are larger than buffers", spoe=("use-backend", "max-frame-size 16380\n    use-backend"),
         haproxy=("nbthread 2", "nbthread 2\n    tune.bufsize 8192")),
    Case("variable-prefix", "a rule's prefix is mistyped", haproxy=("txn.iprep.score", "txn.ipreb.score")),
    Case("variable-never-set", "a rule's variable is mistyped", haproxy=("txn.iprep.user", "txn.iprep.usr")),
    Case("variable-early", "a rule reads too early", haproxy=(
        "    http-request deny if {{ var(txn.iprep.score)", "    tcp-request session reject if {{ var(txn.iprep.score)")),
    Case("variable-early", "a rule reads before the group is sent", haproxy=(
        "    http-request send", "    http-request set-header y %[var(txn.iprep.user)]\n    http-request send")),
    Case("variable-never-read", "nothing reads a variable", agent=changed("check", one_more_variable)),
    Case("variable-registered", "a variable of the process", agent=changed("check", of_the_process)),
    Case("message-without-handler", "a message has no handler", spoe=(
        "messages check\n", "messages check other\n"), haproxy=("", "")),
    Case("handler-without-message", "a handler's message is mistyped", agent=wrong_name()),
    Case("argument-missing", "an argument is missing", agent=changed("check", needs_more)),
    Case("argument-object", "an argument names no backend", spoe=("ip=src", "ip=src n=nbsrv(agent)")),
    Case("argument-object", "an argument names no table", spoe=("ip=src", "ip=src n=src_conn_cnt(web)")),
    Case("argument-object", "an argument names no server", spoe=("ip=src", "ip=src n=srv_conn(agents/two)")),
    Case("argument-object", "an argument names no userlist", spoe=("ip=src", "ip=src n=http_auth(users)")),
    Case("argument-object", "an argument names no table of peers", spoe=("ip=src", "ip=src n=src_conn_cnt(p/t)")),
    Case("argument-object", "an agent logs to no ring", spoe=("use-backend", "log ring@nowhere local0\n    use-backend")),
    Case("argument-object", "the proxy has no table", spoe=("ip=src", "ip=src n=src_conn_cnt")),
    Case("argument-type", "an argument has another type", agent=changed("check", other_type)),
]  # fmt: skip

OTHER = "spoe-message other\n    event on-client-session\n"

RIGHT = [
    Case("", "as it is"),
    Case("", "in a listen section", haproxy=("frontend www", "listen www")),
    Case("", "the agent's own backend after others", haproxy=("\nbackend web\n", "\nbackend other\n\nbackend web\n")),
    Case("", "a longer processing timeout", spoe=("50ms", "29s")),
    Case("", "sets= in place of literals", agent=changed("check", lambda ip: {}, sets=["txn.score"])),
    Case("", "sets= names more than rules read", agent=changed("check", lambda ip: {}, sets=["txn.score", "txn.unread"])),
    Case("", "a variable below one that is set", haproxy=("    default_backend", "    http-request set-header x %[var(txn.iprep.score.reason)]\n    default_backend")),
    Case("", "larger frames with larger buffers", haproxy=("nbthread 2", "nbthread 2\n    tune.bufsize 65536")),
    Case("", "smaller frames", spoe=("use-backend", "max-frame-size 4096\n    use-backend")),
    Case("", "a rule waits for the body", haproxy=("option http-buffer-request", "http-request wait-for-body time 1s")),
    Case("", "variables of the session", haproxy=("nbthread 2", "nbthread 2")),
    Case("", "a variable that rules set", haproxy=(
        "    default_backend", "    http-request set-var(txn.iprex.a) src\n    http-request set-header a %[var(txn.iprex.a)]\n    default_backend")),
    Case("", "servers from defaults of their own", haproxy=("backend agents\n", "defaults own\n    timeout connect 1s\n    timeout server 1m\nbackend agents from own\n")),
    Case("", "a template of servers", haproxy=("server one 127.0.0.1:9000 check maxconn 2", "server-template one 2 127.0.0.1:9000 check")),
    Case("", "a line for newer versions", haproxy=("    option spop-check\n", "    option spop-check\n.if version_atleast(3.0)\n    timeout server 1m\n.else\n    timeout server 1ms\n.endif\n")),
    Case("", "arguments that name what there is", spoe=("ip=src", "ip=src a=nbsrv(agents) b=srv_conn(agents/one) c=src_conn_cnt(web) d=http_auth(users)"),
         haproxy=("\nbackend web\n", "\nuserlist users\n    user a insecure-password b\n\nbackend web\n    stick-table type ip size 10 store conn_cnt\n")),
    Case("", "a table of peers", spoe=("ip=src", "ip=src c=src_conn_cnt(p/t)"),
         haproxy=("\nbackend web\n", "\npeers p\n    peer localhost 127.0.0.1:10000\n    table t type ip size 10 store conn_cnt\n\nbackend web\n")),
    Case("", "an agent logs to a ring", spoe=("use-backend", "log ring@there local0\n    use-backend"), haproxy=("\nbackend web\n", "\nring there\n    size 32768\n\nbackend web\n")),
    Case("", "sections of other kinds", haproxy=("\nbackend web\n", "\nnamespace_list\n\nbackend web\n")),
    Case("", "a variable of the environment, set before", spoe=("ip=src", 'ip="$SPOP_FETCH"'), haproxy=("nbthread 2", "nbthread 2\n    setenv SPOP_FETCH src")),
    Case("", "a variable of the environment, unless it is set", spoe=("ip=src", 'ip="$SPOP_FETCH"'), haproxy=("nbthread 2", "nbthread 2\n    presetenv SPOP_FETCH src\n    presetenv SPOP_FETCH wrong")),
    Case("", "a variable of the environment that is unset", spoe=("ip=src", 'ip="$SPOP_FETCH"'), haproxy=(
        "nbthread 2", "nbthread 2\n    setenv SPOP_FETCH wrong\n    unsetenv SPOP_FETCH\n    presetenv SPOP_FETCH src")),
    Case("", "no maxconn", haproxy=(" maxconn 2", "")),
    Case("", "a default of the agent's", haproxy=("var(txn.iprep.error) -m found", "var(txn.iprep.failed) -m found"), agent=with_default()),
    Case("", "a registered variable of the process", spoe=("use-backend", "register-var-names count\n    use-backend"),
         haproxy=("    default_backend", "    http-request set-header n %[var(proc.iprep.count)]\n    default_backend"), agent=changed("check", of_the_process)),
    Case("", "headers that the agent answers", haproxy=(
        "    default_backend", "    http-request add-headers-bin var(txn.iprep.unread)\n    default_backend"), agent=changed("check", one_more_variable)),
    Case("", "a rule denies what was not allowed", haproxy=(
        "deny if {{ var(txn.iprep.error) -m found }}", "deny if METH_GET !{{ var(txn.iprep.score) -m int gt 0 }}")),
    Case("", "an acl asks for the answer", haproxy=(
        "http-request deny if {{ var(txn.iprep.error) -m found }}",
        "acl known var(txn.iprep.score) -m found\n    http-request deny unless known")),
    Case("", "rules ask for the number of servers", haproxy=("var(txn.iprep.error) -m found", "nbsrv(agents) lt 1")),
]  # fmt: skip


def replaced(text: str, change: tuple[str, str]) -> str:
    assert change[0] in text
    return text.replace(*change) if change[0] else text


def setup(case: Case, folder: Path, version: str = "3.4") -> Setup:
    mode = "spop" if Version.of_haproxy(version).branch >= (3, 1) else "tcp"
    spoe, cfg = folder / "spoe.cfg", folder / "haproxy.cfg"
    spoe.write_text(replaced(SPOE, case.spoe) + OTHER * ("other" in case.spoe[1]))
    cfg.write_text(replaced(HAPROXY, case.haproxy).format(folder=folder, mode=mode))
    config = read_haproxy_cfg(cfg, Version.of_haproxy(version))
    report = check_spoe(
        spoe, "iprep", proxy=Proxy.FRONTEND, haproxy_version=version, environment=config.environment
    )
    return Setup(
        str(spoe),
        [EngineSetup(report.result(), report.sections)],
        config,
        facts_of(case.agent or agent()),
        Version.of_haproxy(version),
        scopes(spoe),
    )


def found(case: Case, folder: Path) -> list[Diagnostic]:
    return list(check_setup(setup(case, folder, case.version)))


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_what_is_wrong_in_one_way_is_found_by_its_rule(case: Case, tmp_path: Path) -> None:
    rules = [diagnostic.rule for diagnostic in found(case, tmp_path)]
    assert case.rule in rules
    # What is wrong at one place may have consequences at another.
    assert len(rules) <= 3, rules


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_what_is_right_has_no_finding(case: Case, tmp_path: Path) -> None:
    assert found(case, tmp_path) == []


@pytest.mark.parametrize("is_set", [True, False])
def test_the_advice_to_fail_closed_is_what_the_file_lacks(is_set: bool, tmp_path: Path) -> None:
    case = next(case for case in WRONG if case.rule == "fail-open")
    if not is_set:
        case = case._replace(spoe=("    option set-on-error error\n", ""))
    (note,) = [each for each in found(case, tmp_path) if each.rule == "fail-open"]
    assert note.hint is not None
    assert ("set 'option set-on-error'" in note.hint) is not is_set
    assert ("deny if { var(txn.iprep.error) -m found }" in note.hint) is is_set


def test_every_rule_has_a_setup_that_it_is_for() -> None:
    assert {case.rule for case in WRONG} == RULES.keys() | ENGINE_RULES.keys()


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_each_finding_says_where_and_what_to_do(case: Case, tmp_path: Path) -> None:
    for diagnostic in found(case, tmp_path):
        line = Path(diagnostic.location.file).read_text().splitlines()[diagnostic.location.line - 1]
        assert line[diagnostic.location.column - 1 :].strip()
        assert diagnostic.hint


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_haproxy_starts_with_what_is_right(haproxy_binary: str, case: Case, tmp_path: Path) -> None:
    version = haproxy.version(haproxy_binary)
    setup(case, tmp_path, f"{version.major}.{version.minor}")
    new_in_2_4 = any(word in case.haproxy[1] for word in ("from own", "wait-for-body", ".if"))
    done = subprocess.run(
        [haproxy_binary, "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, text=True
    )
    new_in_3_4 = "headers-bin" in case.haproxy[1]
    is_new = (new_in_2_4 and version < (2, 4)) or (new_in_3_4 and version < (3, 4))
    assert done.returncode == (1 if is_new else 0), done.stderr


@pytest.mark.parametrize(
    "rule",
    ["argument-object", "backend-missing", "backend-mode", "filter-line", "filter-unknown", "group-engine", "group-place", "group-rule", "group-unknown",
     "frame-size"],
)  # fmt: skip
def test_what_haproxy_refuses_is_an_error(haproxy_binary: str, rule: str, tmp_path: Path) -> None:
    version = haproxy.version(haproxy_binary)
    for case in WRONG:
        if "log ring" in case.spoe[1] and version < (2, 4):
            continue
        if case.rule == rule:
            whole = setup(case, tmp_path, f"{version.major}.{version.minor}")
            done = subprocess.run(
                [haproxy_binary, "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True
            )
            assert done.returncode == 1, case.name
            assert any(d.severity is Severity.ERROR for d in check_setup(whole)), case.name
