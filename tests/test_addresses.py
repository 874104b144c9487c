"""Addresses as HAProxy writes them: what they mean, and that HAProxy, clients and tools get
there."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from haproxy import HAProxy, version

from spop import Agent, AsyncClient, Client
from spop.address import ADDRESS_SIZE, Address
from spop.engine import Engine
from spop.engine.config import ConfigError, parse_backends

FILLED = "\0waf" + "\0" * (ADDRESS_SIZE - 4)


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("127.0.0.1:9000", Address("127.0.0.1", 9000), "127.0.0.1:9000"),
        ("[::1]:9000", Address("::1", 9000), "[::1]:9000"),
        (":9000", Address("", 9000), ":9000"),
        ("*:9000", Address("", 9000), ":9000"),
        ("agents:9000", Address("agents", 9000), "agents:9000"),
        ("ipv4@127.0.0.1:9000", Address("127.0.0.1", 9000), "127.0.0.1:9000"),
        ("tcp4@agents:9", Address("agents", 9, None, socket.AF_INET), "ipv4@agents:9"),
        ("ipv6@::1:9000", Address("::1", 9000), "[::1]:9000"),
        ("ipv6@[::1]:9000", Address("::1", 9000), "[::1]:9000"),
        ("ipv6@:9000", Address("", 9000, None, socket.AF_INET6), "ipv6@:9000"),
        ("ip@agents:9000", Address("agents", 9000), "agents:9000"),
        ("unix:/run/waf.sock", Address("", 0, "/run/waf.sock"), "unix:/run/waf.sock"),
        ("unix@/run/waf.sock", Address("", 0, "/run/waf.sock"), "unix:/run/waf.sock"),
        ("uxst@waf.sock", Address("", 0, "waf.sock"), "unix:waf.sock"),
        ("/run/a:9", Address("", 0, "/run/a:9"), "unix:/run/a:9"),
        ("abns@waf", Address("", 0, FILLED), "abns@waf"),
        ("abnsz@waf", Address("", 0, "\0waf"), "abnsz@waf"),
        ("abnsz@é", Address("", 0, "\0é"), "abnsz@é"),
    ],
)
def test_an_address_means(text: str, address: Address, shown: str) -> None:
    assert Address.parse(text) == address
    assert str(address) == shown
    assert Address.parse(shown) == address


@pytest.mark.parametrize(
    ("text", "host"), [(":9", "127.0.0.1"), ("ipv6@:9", "::1"), ("ipv4@*:9", "127.0.0.1")]
)
def test_an_address_without_a_host_is_this_machine(text: str, host: str) -> None:
    assert Address.parse(text).reachable == Address(host, 9)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sockpair@3", "joins two HAProxy processes"),
        ("fd@3", "inherited socket to listen on"),
        ("http://127.0.0.1:9000", "it is a URL"),
        ("tcp://127.0.0.1:9000", "it is a URL"),
        ("udp@127.0.0.1:9000", "SPOP does not run over udp@"),
        ("quic4@127.0.0.1:9000", "SPOP does not run over quic4@"),
        ("ipv4@[::1]:9000", "::1 is an IPv6 address"),
        ("ipv6@127.0.0.1:9000", "127.0.0.1 is an IPv4 address"),
        ("::1:9000", r"write an IPv6 address as \[ADDRESS\]:PORT"),
        ("unix@", "has no path"),
        ("unix:" + "x" * ADDRESS_SIZE, "a path has 1 to 107 bytes"),
        ("abns@", "a name has 1 to 107 bytes"),
        ("abns@" + "x" * ADDRESS_SIZE, "a name has 1 to 107 bytes"),
        ("127.0.0.1:65536", "a port is a number from 0 to 65535"),
        ("127.0.0.1:" + "9" * 5000, "a port is a number from 0 to 65535"),
        ("127.0.0.1", "is neither HOST:PORT nor unix:PATH nor abns@NAME"),
        ("agents..example:9000", "'agents..example' can't be the name of a host"),
        (".example:9000", "can't be the name of a host"),
        ("x" * 64 + ".example:9000", "can't be the name of a host"),
        ("é" * 64 + ":9000", "can't be the name of a host"),
        ("a\udcff:9000", "can't be the name of a host"),
    ],
)
def test_an_address_is_refused_with_a_reason(text: str, why: str) -> None:
    for listens in (False, True):
        if not (listens and text == "fd@3"):
            with pytest.raises(ValueError, match=why):
                Address.parse(text, listens=listens)
    done = subprocess.run(
        [sys.executable, "-m", "spop", "check", text], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["fd@", "fd@x", "fd@-1", "fd@99999999999"])
def test_a_file_descriptor_is_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="is no file descriptor"):
        Address.parse(text, listens=True)


# --- server lines ---

SERVERS = [
    "unix@/p", "uxst@/p", "unix@p", "/p", "unix:/p", "abns@x", "ip@127.0.0.1:1", "fd@0",
    "ipv4@127.0.0.1:1", "ipv4@[::1]:1", "ipv6@::1:1", "ipv6@[::1]:1", "ipv6@127.0.0.1:1",
    "tcp@127.0.0.1:1", "tcp4@127.0.0.1:1", "tcp6@::1:1", "stream+ipv4@127.0.0.1:1",
    "stream+127.0.0.1:1", "stream+unix@/p", "stream+/p", "[::1]:1", "::1:1", ":1", "*:1",
    "udp@127.0.0.1:1", "uxdg@/p", "dgram+127.0.0.1:1", "http://127.0.0.1:1",
    "tcp://127.0.0.1:1", "localhost:1", "ipv4@localhost:1", "127.0.0.1:70000", "127.0.0.1:1-3",
    "abns@" + "x" * 107, "abns@" + "x" * 108, "unix@/" + "x" * 96, "unix@/" + "x" * 97,
    "ipv4@:1", "ipv6@:1", "ipv6@*:1",
]  # fmt: skip


def test_server_lines_take_what_haproxy_takes(haproxy_binary: str, tmp_path: Path) -> None:
    servers = [*SERVERS, *(["abnsz@x"] if version(haproxy_binary) >= (3, 2) else [])]
    if version(haproxy_binary) < (2, 4):
        # It knows fewer prefixes, and no end of ports.
        newer = ("stream", "tcp", "uxst", "ip@", "127.0.0.1:7")
        servers = [text for text in servers if not text.startswith(newer)]
    for text in servers:
        lines = f"backend agents\n    mode tcp\n    server agent {text}\n"
        config = tmp_path / "haproxy.cfg"
        config.write_text(
            "defaults\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"
            f"frontend f\n    mode tcp\n    bind 127.0.0.1:1\n    default_backend agents\n{lines}"
        )
        done = subprocess.run(
            [haproxy_binary, "-c", "-f", str(config)], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            ours = Address.parse(parse_backends(lines)["agents"].servers[0].address) is not None
        except ConfigError:
            ours = False
        assert ours is (done.returncode == 0), (text, done.stderr)


# --- who gets there ---


@pytest.fixture
def agent() -> Agent:
    agent = Agent()

    @agent.message("check")
    def check() -> dict[str, int]:
        return {"txn.score": 7}

    return agent


@pytest.fixture(params=["unix@", "/", "abns@", "abnsz@", "ipv4@", "ipv6@", "fd@", "fd@unix"])
def bound(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """What to listen on, and the same place as HAProxy's ``server`` line has it."""
    name = f"spop-test-{os.getpid()}"
    if request.param.startswith("fd@"):
        with socket.socket(socket.AF_UNIX if "unix" in request.param else socket.AF_INET) as sock:
            sock.bind(str(tmp_path / "fd") if "unix" in request.param else ("127.0.0.1", 0))
            found = sock.getsockname()
            there = f"unix@{found}" if isinstance(found, str) else f"127.0.0.1:{found[1]}"
            yield f"fd@{sock.fileno()}", there
        return
    text = {
        "unix@": f"unix@{tmp_path}/waf.sock",
        "/": f"{tmp_path}/waf.sock",
        "abns@": f"abns@{name}",
        "abnsz@": f"abnsz@{name}",
        "ipv4@": "ipv4@127.0.0.1:0",
        "ipv6@": "ipv6@[::1]:0",
    }[request.param]
    yield text, text


def server_line(there: str, address: Address) -> str:
    """With the port that port 0 became."""
    return there.removesuffix(":0") + f":{address.port}" if there.endswith(":0") else there


SPOE = """
spoe-agent test-agent
    messages check
    option var-prefix test
    timeout hello 5s
    timeout idle 1m
    timeout processing 5s

spoe-message check
    event on-frontend-http-request
"""


def test_haproxy_gets_to_the_agent(
    haproxy_binary: str, bound: tuple[str, str], agent: Agent, tmp_path: Path
) -> None:
    bind, there = bound
    if there.startswith("abnsz@") and version(haproxy_binary) < (3, 2):
        pytest.skip("HAProxy has no abnsz@")
    with agent.serve_in_background(bind) as server:
        place = server_line(there, server.address)
        rules = "http-request redirect location /%[var(txn.test.score)]"
        with HAProxy(haproxy_binary, tmp_path, agent=place, spoe=SPOE, rules=rules) as proxy:
            proxy.wait_until_up()
            assert proxy.request().location == "/7"


def test_clients_engines_and_tools_get_to_the_agent(
    bound: tuple[str, str], agent: Agent, tmp_path: Path
) -> None:
    bind, there = bound

    async def ask(place: str) -> dict[str, object]:
        async with AsyncClient(place) as client:
            return dict((await client.notify("check")).variables)

    (tmp_path / "spoe.cfg").write_text(
        SPOE.replace("    messages", "    use-backend agents\n    messages").replace(
            "on-frontend-http-request", "on-client-session"
        )
        + "\n"
    )
    with agent.serve_in_background(bind) as server:
        place = server_line(there, server.address)
        with Client(place) as client:
            assert client.notify("check").variables == {"txn.score": 7}
        assert asyncio.run(ask(place)) == {"txn.score": 7}
        with Engine.from_file(tmp_path / "spoe.cfg", backends={"agents": place}) as engine:
            processing = engine.stream().event("on-client-session")
            assert processing is not None
            assert processing.status == 0
        for command in (
            ["check", place],
            ["notify", place, "check"],
            ["bench", place, "--count=9"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "spop", *command],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kind", "why"), [(socket.SOCK_DGRAM, "no stream socket"), (socket.SOCK_STREAM, "not bound")]
)
def test_an_inherited_socket_that_cannot_listen_is_refused(
    kind: int, why: str, agent: Agent
) -> None:
    with (
        socket.socket(socket.AF_INET, kind) as sock,
        pytest.raises(OSError, match=why),
        agent.serve_in_background(f"fd@{sock.fileno()}"),
    ):
        pass


@pytest.mark.parametrize("processes", [1, 2])
def test_spop_serve_listens_on_an_inherited_socket(processes: int, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import spop\nagent = spop.Agent()\n")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        serve = [sys.executable, "-m", "spop", "serve", str(tmp_path / "app.py") + ":agent"]
        process = subprocess.Popen(
            [*serve, "--bind", f"fd@{sock.fileno()}", "--processes", str(processes)],
            pass_fds=[sock.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            while "serves on" not in (line := process.stderr.readline()):
                assert line
            assert address in line
            check = [sys.executable, "-m", "spop", "check", address, "--json", "--timeout", "20"]
            done = subprocess.run(check, capture_output=True, text=True, check=True)
            assert json.loads(done.stdout)["version"] == "2.0"
        finally:
            process.terminate()
            process.communicate(timeout=30)
