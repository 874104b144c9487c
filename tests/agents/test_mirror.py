"""`spop.agents.mirror`: what is sent again, and what is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import haproxy
import pytest
from bad_settings import said_of
from haproxy import wait_until
from pages import Page
from services import Reply, Seen, Service, answering_with, free_address, request

from spop import AsyncClient, Headers
from spop.agents import mirror
from spop.agents.mirror import Settings
from spop.cli.settings import give_settings
from spop.testing.haproxy import Process

PAGE = Page("agents/mirror.md")
FIELDS = {
    "host": "shop.example",
    "x-a": "1",
    "cookie": "c",
    "connection": "x-a",
    "content-length": "9",
}


@pytest.fixture(autouse=True)
def no_settings() -> Iterator[None]:
    """The settings and the errors that are logged are every test's own."""
    agent = mirror.agent
    level, agent.failure_level = agent.failure_level, 0
    yield
    agent.config, agent.failure_level = None, level


def counted() -> dict[str, int]:
    """What became of requests, since the server was made."""
    return {name: each.value for name, each in mirror.requests.items() if each.value}


def send(count: int = 1, **more: Any) -> dict[str, int]:
    """Have requests sent again, wait for that, and return what became of them."""
    arguments = {"headers": Headers(FIELDS), "method": "POST", "uri": "/a/../b%2F?c=1&d", **more}

    async def main() -> None:
        async with AsyncClient(str(server.address)) as client:
            await asyncio.gather(*(client.notify("mirror", **arguments) for _ in range(count)))

    with mirror.agent.serve_in_background() as server:
        asyncio.run(main())
        wait_until(lambda: sum(counted().values()) == count, "the end of all requests")
    return counted()


def test_the_service_gets_the_request_as_it_was() -> None:
    with Service() as service:
        mirror.agent.config = Settings(f"http://{service.address}")
        assert send(body=b"\x00body", size=5) == {"2xx": 1}
    seen = Seen("POST", "/a/../b%2F?c=1&d", service.seen[0].headers, b"\x00body")
    assert service.seen == [seen]
    assert seen.headers == {
        "host": "shop.example", "x-a": "1", "cookie": "c", "content-length": "5"
    }  # fmt: skip


def test_a_path_of_the_url_a_host_and_dropped_headers() -> None:
    with Service() as service:
        mirror.agent.config = Settings(
            f"http://{service.address}/base/", drop=["Cookie"], keep_host=False
        )
        send()
    assert service.seen[0].path == "/base/a/../b%2F?c=1&d"
    assert service.seen[0].headers["host"] == service.address
    assert "cookie" not in service.seen[0].headers


@pytest.mark.parametrize("status, result", [(204, "2xx"), (302, "3xx"), (404, "4xx"), (503, "5xx")])
def test_answers_are_counted(status: int, result: str) -> None:
    with Service(lambda _: Reply(status, [("Location", "/"), ("Set-Cookie", "a=1")])) as service:
        mirror.agent.config = Settings(f"http://{service.address}")
        assert send(3) == {result: 3}
    assert {seen.headers["cookie"] for seen in service.seen} == {"c"}


def test_a_share_of_the_requests_is_sent() -> None:
    with Service() as service:
        mirror.agent.config = Settings(f"http://{service.address}", share=0.5, timeout=30.0)
        shown = send(400)
    assert shown["2xx"] == len(service.seen)
    assert 100 < shown["2xx"] < 300
    assert shown["2xx"] + shown["not_chosen"] == 400


def test_a_body_that_is_not_all_there_is_not_sent() -> None:
    with Service() as service:
        mirror.agent.config = Settings(f"http://{service.address}")
        assert send(body=b"half", size=8) == {"incomplete": 1}
    assert service.seen == []


def test_requests_beyond_max_pending_are_dropped() -> None:
    def reply(_: Seen) -> Reply:
        wait_until(lambda: counted().get("dropped") == 4, "four requests that are dropped")
        return Reply()

    with Service(reply) as service:
        mirror.agent.config = Settings(f"http://{service.address}", max_pending=2, timeout=30.0)
        assert send(6) == {"2xx": 2, "dropped": 4}


@pytest.mark.parametrize("kind", ["gone", "slow", "garbage"])
def test_a_service_that_does_not_answer_is_counted(kind: str) -> None:
    with contextlib.ExitStack() as stack:
        data = None if kind == "slow" else b"garbage"
        address = free_address() if kind == "gone" else stack.enter_context(answering_with(data))
        mirror.agent.config = Settings(f"http://{address}", timeout=0.2)
        assert send(2) == {"failed": 2}


@pytest.mark.parametrize(
    "table, error",
    [
        ("", ":3: settings.url is missing"),
        ('url = "shop"', ":4: settings.url: 'shop', http://HOST… or https://HOST… is needed"),
        ('url = "http://x/a?b=1"', ":4: settings.url: 'http://x/a?b=1' has a query"),
        ('url = "http://x/#a"', ":4: settings.url: 'http://x/#a' has a query or a fragment"),
        ('url = "http://x"\nshare = 2', ":5: settings.share: 2.0, 0.0 to 1.0 is needed"),
        ('url = "http://x"\nmax-pending = 0', ":5: settings.max_pending: 0, more than 0 is needed"),
        ('url = "http://x"\ndrop = ["a:b"]', ":5: settings.drop: 'a:b' is no header's name"),
        ('url = "http://x"\ndrops = []', ":5: there is no setting 'drops'; is it 'drop'?"),
    ],
)
def test_a_bad_setting_is_refused_with_its_line(tmp_path: Path, table: str, error: str) -> None:
    assert said_of("mirror", tmp_path, table).startswith(error)


# --- with HAProxy ---


@contextlib.contextmanager
def running(binary: str, folder: Path, service: str, web: Service) -> Iterator[Process]:
    """The agent, and HAProxy before the application `web`, with the page's files, in which the
    addresses alone are replaced."""
    text = PAGE.texts("mirror", (3, 4))["spop.toml"].replace("127.0.0.1:8081", service)
    (folder / "spop.toml").write_text(text)
    give_settings(mirror.agent, folder / "spop.toml")
    with (
        mirror.agent.serve_in_background() as server,
        PAGE.run(binary, folder, "mirror", agent=str(server.address), web=web.server_port) as proxy,
    ):
        yield proxy


def test_requests_are_sent_again_behind_haproxy(haproxy_binary: str, tmp_path: Path) -> None:
    with (
        Service() as service,
        Service() as web,
        running(haproxy_binary, tmp_path, service.address, web) as proxy,
    ):
        for number in range(20):
            body = b"x" * 500 * number if number % 2 else None
            method = "PUT" if number % 2 else "GET"
            assert request(proxy.port, f"/{number}?a", method, body, {"X-N": "1"}).status == 200
        large = request(proxy.port, "/large", "PUT", b"x" * 100_000)
        assert large.status == 200
        wait_until(lambda: sum(counted().values()) == 21, "the end of all requests")
        assert counted() == {"2xx": 20, "incomplete": 1}
    wanted = sorted(seen for seen in web.seen if seen.path != "/large")
    assert sorted(service.seen) == wanted


def test_without_the_service_or_the_agent_requests_pass(
    haproxy_binary: str, tmp_path: Path
) -> None:
    with Service() as web:
        with running(haproxy_binary, tmp_path, free_address(), web) as proxy:
            assert request(proxy.port).status == 200
            wait_until(lambda: counted() == {"failed": 1}, "the end of the request")
        with PAGE.run(haproxy_binary, tmp_path, "mirror", web=web.server_port) as proxy:
            assert request(proxy.port).status == 200


def test_validate_finds_nothing_wrong_with_the_page(haproxy_binary: str, tmp_path: Path) -> None:
    assert PAGE.objections(tmp_path, "mirror", haproxy.version(haproxy_binary)) == []
