"""A backend's servers: which one takes a connection, whether it is healthy, TLS to it."""

from __future__ import annotations

import random
import ssl
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trustme
from haproxy import wait_until
from scripted_agent import ScriptedAgent

from spop.client.dial import Endpoint
from spop.constants import EngineStatus
from spop.engine import BackendConfig, Engine, ServerConfig
from spop.engine.balance import Backend
from spop.engine.health import Health

SPOE = """spoe-agent test
    messages session
    use-backend agents
    timeout hello 10s
    timeout idle 1m
    timeout processing 10s
    no option async
spoe-message session
    args src
    event on-client-session
"""


def backend(balance: str, *servers: dict[str, Any], **settings: Any) -> Backend:
    """A backend of servers named 1, 2, ... on these ports."""
    configs = (
        ServerConfig(str(number), f"127.0.0.1:{number}", **server)
        for number, server in enumerate(servers, 1)
    )
    return Backend(BackendConfig("agents", tuple(configs), balance, **settings))


def take(servers: Backend, count: int = 1) -> str:
    """Names of the servers that take the next connections, which stay open."""
    names = []
    for _ in range(count):
        endpoint = servers.next(0.0)
        if endpoint is None:
            names.append("-")
        else:
            servers.opened(endpoint)
            names.append(str(endpoint.address.port))
    return "".join(names)


def endpoint_of(servers: Backend, number: int) -> Endpoint:
    return servers.servers[number - 1].endpoint


# --- balance ---


def test_roundrobin_goes_by_weight() -> None:
    assert take(backend("roundrobin", {}, {}, {}), 6) == "123123"
    weighted = take(backend("roundrobin", {"weight": 3}, {"weight": 1}), 8)
    assert Counter(weighted) == {"1": 6, "2": 2}
    assert "22" not in weighted


def test_leastconn_evens_connections_out() -> None:
    servers = backend("leastconn", {}, {})
    assert Counter(take(servers, 4)) == {"1": 2, "2": 2}
    for _ in range(2):
        servers.closed(endpoint_of(servers, 2))
    assert take(servers, 2) == "22"


def test_first_fills_one_after_the_other() -> None:
    servers = backend("first", {"maxconn": 2}, {"maxconn": 1}, {})
    assert take(servers, 5) == "11233"
    servers.closed(endpoint_of(servers, 1))
    assert take(servers) == "1"


def test_random_prefers_the_less_loaded_of_two() -> None:
    random.seed(1)
    counts = Counter(take(backend("random", {}, {}, {}, {}), 4000))
    assert all(900 < counts[name] < 1100 for name in "1234")
    weighted = Counter(take(backend("random", {"weight": 3}, {"weight": 1}, random_draws=1), 4000))
    assert 2700 < weighted["1"] < 3300


def test_weight_0_maxconn_and_disabled_take_no_connection() -> None:
    servers = backend("roundrobin", {"weight": 0}, {"maxconn": 1}, {"disabled": True})
    assert take(servers, 2) == "2-"


def test_the_first_backup_stands_in() -> None:
    servers = backend("roundrobin", {}, {"backup": True}, {"backup": True})
    assert take(servers, 2) == "11"
    servers.servers[0].up = False
    assert take(servers, 2) == "22"
    servers.servers[1].up = False
    assert take(servers) == "3"


def test_a_server_that_refuses_is_passed_over_for_a_while() -> None:
    servers = backend("roundrobin", {}, {})
    servers.failed(endpoint_of(servers, 1), now=0.0)
    assert take(servers, 3) == "222"
    assert servers.next(0.05) == endpoint_of(servers, 2)
    servers.failed(endpoint_of(servers, 2), now=0.0)
    assert take(servers) == "-"
    assert {servers.next(0.2), servers.next(0.2)} == {server.endpoint for server in servers.servers}


def test_events_are_balanced_over_agents(tmp_path: Path) -> None:
    with ScriptedAgent() as one, ScriptedAgent() as two:
        agents = (ServerConfig("1", one.address), ServerConfig("2", two.address))
        with engine_of(tmp_path, BackendConfig("agents", agents), "maxconnrate 0") as engine:
            for _ in range(2):
                assert status_of(engine) == 0
            assert len(one.told) + len(two.told) == 2


# --- health ---


@pytest.mark.parametrize(
    ("checks", "states"),
    [
        ("-", "-"),  # At the beginning, one failure is enough.
        ("++--", "++++"),
        ("++---", "++++-"),
        ("++--+--", "++++++-"),  # A success between failures makes good for one of them.
        ("-+", "--"),
        ("-++", "--+"),
        ("-+-++", "----+"),
    ],
)
def test_health_is_counted_as_haproxy_counts_it(checks: str, states: str) -> None:
    health = Health(rise=2, fall=3)
    assert "".join("+" if health.count(check == "+") else "-" for check in checks) == states


def engine_of(folder: Path, config: BackendConfig, lines: str = "") -> Engine:
    file = folder / "spoe.cfg"
    file.write_text(SPOE.replace("    no option async", f"    no option async\n    {lines}"))
    return Engine.from_file(file, backends={"agents": config})


def status_of(engine: Engine) -> int:
    processing = engine.stream().event("on-client-session")
    assert processing is not None
    return processing.status


def checked(address: str, name: str = "agent", **settings: Any) -> ServerConfig:
    return ServerConfig(name, address, check=True, inter=0.02, **settings)


def test_agents_are_taken_out_and_brought_back_by_their_checks(tmp_path: Path) -> None:
    with ScriptedAgent() as spare:
        first = ScriptedAgent()
        servers = (checked(first.address), ServerConfig("spare", spare.address, backup=True))
        config = BackendConfig("agents", servers, spop_check=True)
        with first, engine_of(tmp_path, config) as engine:
            server = engine.servers[0]
            assert status_of(engine) == 0
            assert len(first.told) == 1
            first.__exit__()
            wait_until(lambda: not server.up, "the server going down")
            assert status_of(engine) == 0
            assert len(spare.told) == 1
            with ScriptedAgent(port=first.port) as again:
                wait_until(lambda: server.up, "the server coming up")
                spare.__exit__()
                wait_until(lambda: status_of(engine) == 0 and len(again.told) > 0, "events there")


def test_with_no_server_up_an_event_fails_at_once(tmp_path: Path) -> None:
    with ScriptedAgent() as agent:
        config = BackendConfig("agents", (checked(agent.address, fall=1),), spop_check=True)
        with engine_of(tmp_path, config) as engine:
            agent.__exit__()
            server = engine.servers[0]
            wait_until(lambda: not server.up, "the server going down")
            assert status_of(engine) == EngineStatus.RESOURCES


@pytest.mark.parametrize("spop_check", [True, False])
def test_a_check_wants_a_hello_only_where_spop_check_says_so(
    spop_check: bool, tmp_path: Path
) -> None:
    checks = []

    def refuse(sock: Any) -> None:
        checks.append(sock)
        while sock.recv(65536):
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with ScriptedAgent(greet=refuse) as agent:
        config = BackendConfig("agents", (checked(agent.address),), spop_check=spop_check)
        with engine_of(tmp_path, config) as engine:
            wait_until(lambda: len(checks) > 1, "a second check")  # The first is counted then.
            assert engine.servers[0].up is not spop_check


def test_an_engine_shows_its_servers(tmp_path: Path) -> None:
    with ScriptedAgent() as agent:
        servers = (ServerConfig("1", agent.address), ServerConfig("2", "h:1", disabled=True))
        with engine_of(tmp_path, BackendConfig("agents", servers)) as engine:
            assert status_of(engine) == 0
            assert [server.config for server in engine.servers] == list(servers)
            assert [(s.up, s.connections) for s in engine.servers] == [(True, 1), (False, 0)]


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def agents_context(authority: trustme.CA, *, asks: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("agent.test", "127.0.0.1").configure_cert(context)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context


def write_files(authority: trustme.CA, folder: Path) -> dict[str, str]:
    authority.cert_pem.write_to_path(folder / "ca.pem")
    own = authority.issue_cert("engine.test")
    own.private_key_and_cert_chain_pem.write_to_path(folder / "own.pem")
    return {"ca_file": str(folder / "ca.pem"), "crt": str(folder / "own.pem")}


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 0),
        ({"sni": "agent.test"}, 0),
        ({"sni": "other.test"}, EngineStatus.RESOURCES),
        ({"ca_file": None}, EngineStatus.RESOURCES),
        ({"ca_file": None, "verify": False}, 0),
        ({"crt": None}, None),
    ],
)
def test_agents_are_spoken_to_over_tls(
    settings: dict[str, Any], status: int | None, authority: trustme.CA, tmp_path: Path
) -> None:
    files = write_files(authority, tmp_path)
    with ScriptedAgent(tls=agents_context(authority, asks=True)) as agent:
        server = ServerConfig("agent", agent.address, ssl=True, **(files | settings))
        with engine_of(tmp_path, BackendConfig("agents", (server,))) as engine:
            if status is None:  # The agent refuses; TLS 1.3 tells that late.
                assert status_of(engine) != 0
            else:
                assert status_of(engine) == status
        assert len(agent.told) == (status == 0)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"crt": "ca.pem"}, "crt: cannot use .*/ca.pem: there is no private key in it"),
        ({"ca_file": "none.pem"}, "ca-file: cannot use .*/none.pem: No such file"),
    ],
)
def test_a_certificate_file_that_cannot_be_used_is_named(
    settings: dict[str, str], complaint: str, authority: trustme.CA, tmp_path: Path
) -> None:
    files = write_files(authority, tmp_path)
    used: dict[str, Any] = files | {name: str(tmp_path / file) for name, file in settings.items()}
    server = ServerConfig("agent", "127.0.0.1:1", ssl=True, **used)
    with pytest.raises(ValueError, match=complaint):
        engine_of(tmp_path, BackendConfig("agents", (server,)))
