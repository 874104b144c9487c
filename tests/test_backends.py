"""Backends of a ``haproxy.cfg``: what is read of files that real HAProxy takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from spop.engine.config import (
    BackendConfig,
    ConfigError,
    backend_of,
    load_backends,
    parse_backends,
    parse_spoe,
)
from spop.engine.config.model import ServerConfig

FILES = Path(__file__).with_name("config") / "proxies"


def backend(lines: str) -> BackendConfig:
    return parse_backends(f"backend b\n{lines}\n")["b"]


def server(parameters: str) -> ServerConfig:
    (only,) = backend(f"server s 127.0.0.1:1 {parameters}").servers
    return only


@pytest.mark.parametrize("path", sorted(FILES.iterdir()), ids=lambda path: path.stem)
def test_haproxy_takes_the_files_that_are_read_here(haproxy_2_6: str, path: Path) -> None:
    done = subprocess.run([haproxy_2_6, "-c", "-f", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_backends(path)


def test_a_sites_backends() -> None:
    backends = load_backends(FILES / "agents.cfg")
    assert list(backends) == ["web", "api", "agents", "dice", "statistics"]
    agents = backends["agents"]
    assert (agents.balance, agents.spop_check, agents.mode) == ("leastconn", True, "tcp")
    assert (agents.connect_timeout, agents.server_timeout, agents.check_timeout) == (0.5, 180, 2)
    common = {"rise": 1, "fall": 5, "maxconn": 40}
    assert agents.servers == (
        ServerConfig("a1", "127.0.0.1:9000", check=True, inter=1, **common),
        ServerConfig("a2", "[::1]:9001", weight=10, backup=True, check=True, inter=1, **common),
        ServerConfig("a3", "unix:/run/agent.sock", inter=0.25, **(common | {"maxconn": 5})),
        ServerConfig("a4", "unix:/run/other.sock", disabled=True, inter=0.25, **common),
        ServerConfig(
            "a5", "127.0.0.1:9002", check=True, inter=0.25, ssl=True, verify=False,
            sni="agent.internal", **common,
        ),
    )  # fmt: skip
    assert (backends["dice"].balance, backends["dice"].random_draws) == ("random", 3)
    assert backends["dice"].servers[0].inter == 60
    # The value of a keyword isn't mistaken for a keyword.
    assert not backends["web"].servers[0].backup
    assert backends["api"].servers[0].sni is None
    assert backends["statistics"].servers == ()


def test_the_last_defaults_apply_and_quotes_and_variables_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = FILES / "plain.cfg"
    agents = load_backends(path)["agents"]
    assert agents.servers == (ServerConfig("one", "127.0.0.1:9000", weight=0),)
    assert (agents.balance, agents.server_timeout) == ("roundrobin", 60)
    assert load_backends(path)["front"].servers[0].address == "0.0.0.0:8082"
    monkeypatch.setenv("SPOP_MORE_AGENTS", "")
    assert [s.name for s in load_backends(path)["agents"].servers] == ["one", "two"]


@pytest.mark.parametrize(
    "written, read",
    [
        ("127.0.0.1:5", "127.0.0.1:5"), ("agent.local:5", "agent.local:5"), ("[::1]:5", "[::1]:5"),
        ("2001:db8::5:9000", "[2001:db8::5]:9000"), ("ipv4@10.0.0.1:5", "10.0.0.1:5"),
        ("ipv6@[::1]:5", "[::1]:5"), ("ipv6@:::5", "[::]:5"), ("*:5", "0.0.0.0:5"),
        ("unix@/a/b", "unix:/a/b"), ("unix@relative", "unix:relative"), ("/a/b", "unix:/a/b"),
    ],
)  # fmt: skip
def test_addresses(written: str, read: str) -> None:
    assert backend(f"server s {written}").servers[0].address == read


def test_later_parameters_count_and_lines_before_a_default_are_not_changed() -> None:
    assert server("weight 5 weight 6x check no-check").weight == 6
    read = backend("server a :1\ndefault-server weight 7 backup\nserver b :2 no-backup").servers
    assert [(s.weight, s.backup) for s in read] == [(1, False), (7, False)]


def test_balance_and_checks() -> None:
    for words, expected in [
        ("roundrobin", "roundrobin"), ("static-rr", "roundrobin"), ("leastconn", "leastconn"),
        ("random", "random"), ("random(4)", "random"), ("first", "first"), ("", "roundrobin"),
    ]:  # fmt: skip
        assert backend(f"balance {words}").balance == expected
    assert backend("option spop-check").spop_check
    assert not backend("option spop-check\noption httpchk").spop_check
    assert backend("option tcp-check\noption spop-check").spop_check


def test_files_of_tls_are_under_the_base_of_global() -> None:
    text = "global\nca-base /ca\ncrt-base /crt\nbackend b\nserver s :1 ssl ca-file x.pem crt y.pem"
    (read,) = parse_backends(text)["b"].servers
    assert (read.ca_file, read.crt, read.verify) == ("/ca/x.pem", "/crt/y.pem", True)
    text = "global\nssl-server-verify none\nbackend b\nserver s :1 ssl ca-file /x.pem"
    (read,) = parse_backends(text)["b"].servers
    assert (read.ca_file, read.verify) == ("/x.pem", False)


def test_defaults_by_name() -> None:
    text = (
        "defaults one\n mode http\n timeout check 1s\n"
        "defaults two from one\n balance first\n"
        "defaults from two\n mode tcp\n"
        "backend a from one\nbackend b from two\nbackend c\n"
    )
    read = parse_backends(text)
    assert [(b.mode, b.balance, b.check_timeout) for b in read.values()] == [
        ("http", "roundrobin", 1), ("http", "first", 1), ("tcp", "first", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, error",
    [
        ("backend b\n  balance source", "2:11: error: an engine has no 'balance source' (it has "
         "'roundrobin', 'static-rr', 'leastconn', 'random' and 'first')"),
        ("backend b\n  balance random(0)", "2:11: error: 'random' compares one server or more"),
        ("backend b\n  balance random(x)", "2:11: error: 'random(x)' is not as 'random(2)'"),
        ("backend", "1:8: error: 'backend' needs a name"),
        ("backend a/b", "1:10: error: a backend's name can't have '/'"),
        ("backend b\nlisten b", "2:8: error: another backend has the name 'b', in line 1"),
        ("backend b from x", "1:16: error: no section 'defaults x'"),
        ("defaults xy\nbackend b from xyz", "2:16: error: no section 'defaults xyz' (did you mean "
         "'xy'?)"),
        ("defaults x\ndefaults x\nbackend b from x", "3:16: error: several sections 'defaults x'"),
        ("backend b\n server", "2:8: error: a server needs a name and an address"),
        ("backend b\n server s", "2:10: error: a server needs a name and an address"),
        ("backend b\n server a/b :1", "2:10: error: a server's name can't have '/'"),
        ("backend b\n server s :1\n server s :2", "3:9: error: another server has the name 's'"),
        ("backend b\n server s 10.0.0.1", "2:11: error: '10.0.0.1' has no port"),
        ("backend b\n server s 10.0.0.1:x", "2:11: error: 'x' in '10.0.0.1:x' is no port"),
        ("backend b\n server s 10.0.0:1", "2:11: error: '10.0.0' in '10.0.0:1' is no address"),
        ("backend b\n server s fd@3", "2:11: error: 'fd@3': fd@NUMBER is an inherited socket to listen "
         "on, nothing to connect to"),
        ("backend b\n server s :1 weight", "2:20: error: 'weight' needs a value"),
        ("backend b\n server s :1 cookie", "2:20: error: 'cookie' needs a value"),
        ("backend b\n server s :1 weight 257", "2:21: error: 'weight' is a number from 0 to 256, "
         "not '257'"),
        ("backend b\n server s :1 rise 0", "2:19: error: 'rise' is a number from 1, not '0'"),
        ("backend b\n server s :1 fall x", "2:19: error: 'fall' is a number from 1, not 'x'"),
        ("backend b\n server s :1 inter 0", "2:20: error: 'inter' is more than 0"),
        ("backend b\n server s :1 inter x", "2:20: error: 'x' is no time: a number and one of us, "
         "ms, s, m, h, d"),
        ("backend b\n server s :1 ssl verify maybe", "2:25: error: 'verify' is 'none' or "
         "'required', not 'maybe'"),
        ("backend b\n server s :1 ssl", "2:9: error: nothing verifies the certificate of server "
         "'s' (add 'ca-file FILE' or 'verify none')"),
        ("backend b\n server s :1 sni str(x", "2:18: error: missing closing ')' after arguments"),
        ("backend b\n timeout connect", "2:17: error: 'timeout connect' needs a time, as '5s'"),
        ("backend b\n timeout server 1 s", "2:19: error: unexpected 's' after 'timeout server 1'"),
        ("backend b\n option spop-check x", "2:20: error: unexpected 'x' after 'option "
         "spop-check'"),
        ("backend b\n no option spop-check", "2:12: error: 'no' is not for 'option spop-check'"),
        ("backend 'b", "1:9: error: unmatched quote"),
    ],
)  # fmt: skip
def test_errors_say_where(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_backends(text, "f")
    assert str(caught.value) == f"f:{error}"


def test_all_errors_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_backends("backend a\n balance uri\n server s x\nbackend b\n server s :1 ssl\n", "f")
    assert [d.location.line for d in caught.value.diagnostics] == [2, 3, 5]


def test_what_is_wrong_with_other_backends_does_not_matter() -> None:
    text = "backend web\n balance uri depth 3\n server s\nbackend agents\n server s :1\n"
    assert list(parse_backends(text, names=["agents"])) == ["agents"]


def test_an_agents_backend() -> None:
    text = "[t]\nspoe-agent a\n use-backend {}\n"
    backends = parse_backends("backend agents\nbackend web\n mode http\nbackend new\n mode spop\n")
    for name in ("agents", "new"):
        agent = parse_spoe(text.format(name), "f", "t").result()
        assert backend_of(agent, backends) is backends[name]
    with pytest.raises(ConfigError, match=r"'agent', which there isn't \(did you mean 'agents'\?"):
        backend_of(parse_spoe(text.format("agent"), "f", "t").result(), backends)
    with pytest.raises(ConfigError, match="2:9: error: backend 'web' is in mode http"):
        backend_of(parse_spoe(text.format("web"), "f", "t").result(), backends)


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.cfg:1:1: error: can't be read: No such file"):
        load_backends(tmp_path / "none.cfg")
