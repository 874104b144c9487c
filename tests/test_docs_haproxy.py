"""Every whole file of docs/haproxy.md starts with the HAProxys that it is for, and does its work."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import haproxy
import pytest
from pages import Page

from spop import Agent, Headers
from spop.testing.haproxy import Process

PAGE = Page("haproxy.md")


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: dict[str, str]

    def do_GET(self) -> None:
        type(self).seen = {name.lower(): value for name, value in self.headers.items()}
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def status(process: Process) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"X-Old": "1", "Connection": "close"})
        response = connection.getresponse()
        response.read()
        return response.status


def test_the_page_has_the_examples_that_it_is_for() -> None:
    assert PAGE.examples == ["deny", "closed", "tcp", "groups", "headers", "agents"]


OF_THE_TEST = ("is DOWN", "no server", "was started as")
"""What HAProxy warns of because no agent runs, or the tests run as root."""


@pytest.mark.parametrize("example", PAGE.examples)
def test_haproxy_starts_with_each_example_without_a_warning(
    haproxy_binary: str, example: str, tmp_path: Path
) -> None:
    version = haproxy.version(haproxy_binary)
    if "haproxy.cfg" not in PAGE.texts(example, version):
        assert example == "headers"
        return
    with PAGE.run(haproxy_binary, tmp_path, example) as process:
        said = process.log()
    alerts = re.findall(r"ALERT.*", said)
    assert all("has no server available" in text for text in alerts), said
    # Up to 3.0 HAProxy wants the two timeouts that the first example has for it.
    warnings = re.findall(r"WARNING.*", said)
    if version >= (3, 1) or example == "deny":
        assert [text for text in warnings if not any(known in text for known in OF_THE_TEST)] == []


@pytest.mark.parametrize("example", PAGE.examples)
def test_validate_finds_nothing_wrong_with_an_example(
    haproxy_binary: str, example: str, tmp_path: Path
) -> None:
    version = haproxy.version(haproxy_binary)
    if "haproxy.cfg" in PAGE.texts(example, version):
        assert PAGE.objections(tmp_path, example, version) == []


def scoring(score: int) -> Agent:
    agent = Agent()

    @agent.message("check-client-ip")
    def check(ip: object) -> dict[str, object]:
        return {"txn.ip_score": score, "sess.ip_score": score}

    return agent


@pytest.mark.parametrize("example, score, expected", [
    ("deny", 10, 403), ("deny", 90, 200), ("closed", 10, 403), ("closed", 90, 200),
])  # fmt: skip
def test_a_bad_address_is_denied(
    haproxy_binary: str, example: str, score: int, expected: int, web: int, tmp_path: Path
) -> None:
    with (
        scoring(score).serve_in_background("127.0.0.1:0") as server,
        PAGE.run(haproxy_binary, tmp_path, example, web=web, agent=str(server.address)) as process,
    ):
        assert status(process) == expected


@pytest.mark.parametrize("example, expected", [("deny", 200), ("closed", 503)])
def test_without_an_agent_it_fails_open_or_closed(
    haproxy_binary: str, example: str, expected: int, web: int, tmp_path: Path
) -> None:
    with PAGE.run(haproxy_binary, tmp_path, example, web=web) as process:
        assert [status(process) for _ in range(3)] == [expected] * 3


def test_an_agent_changes_headers(haproxy_binary: str, web: int, tmp_path: Path) -> None:
    if haproxy.version(haproxy_binary) < (3, 4):
        return  # The example is for 3.4 and later.
    agent = Agent()

    @agent.message("request")
    def request(headers: Headers) -> dict[str, object]:
        return {
            "txn.add": Headers([("X-New", headers["x-old"])]),
            "txn.remove": Headers([("X-Old", "")]).names(),
        }

    with (
        agent.serve_in_background("127.0.0.1:0") as server,
        PAGE.run(
            haproxy_binary, tmp_path, "headers", web=web, agent=str(server.address)
        ) as process,
    ):
        assert status(process) == 200
    assert (Web.seen.get("x-new"), Web.seen.get("x-old")) == ("1", None)
