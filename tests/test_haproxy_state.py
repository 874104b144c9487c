"""`StreamState` behind real HAProxy: every response finds what its own request has left."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from haproxy import HAProxy
from serving import served, wait_until_serving

APP = """
from ipaddress import IPv4Address
from spop import Agent, StreamState

agent = Agent()


@agent.message("request")
def request(state: StreamState, ip: IPv4Address) -> None:
    state["ip"] = ip


@agent.message("response")
def response(state: StreamState) -> dict[str, object]:
    return {"txn.octet": state["ip"].packed[-1], "txn.count": len(state)}
"""

SPOE = """
spoe-agent test-agent
    messages request response
    option var-prefix test
    timeout hello 5s
    timeout idle 1m
    timeout processing 10s


spoe-message request
    args ip=src
    event on-frontend-http-request

spoe-message response
    args state=var(txn.test.state)
    event on-http-response
"""

RULES = """
    http-response set-header location /%[var(txn.test.octet)]
    default_backend site

backend site
    server origin 127.0.0.1:{port}
"""


class Origin(socketserver.BaseRequestHandler):
    """Answers each request with an empty page."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(65536):
                for _ in range(data.count(b"\r\n\r\n")):
                    self.request.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128


@pytest.fixture
def origin() -> Iterator[int]:
    with Server(("127.0.0.1", 0), Origin) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize("processes", [1, 4])
def test_every_response_finds_its_own_requests_state(
    haproxy_binary: str, tmp_path: Path, origin: int, processes: int
) -> None:
    (tmp_path / "app.py").write_text(APP)
    path = f"{tmp_path}/agent.sock"
    options = "--bind", f"unix:{path}", "--processes", str(processes)
    with served(*options, target=f"{tmp_path}/app.py:agent") as service:
        wait_until_serving(service)
        with HAProxy(
            haproxy_binary, tmp_path, agent=f"unix@{path}", spoe=SPOE,
            rules=RULES.format(port=origin),
        ) as proxy:  # fmt: skip
            proxy.wait_until_up()
            answers = list(proxy.requests(1000, concurrency=50))
    assert {answer.status for answer in answers} == {200}
    wrong = [a for a in answers if a.location != f"/{a.source.rpartition('.')[2]}"]
    assert not wrong
