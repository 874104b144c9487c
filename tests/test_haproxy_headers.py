"""`Headers` and real HAProxy: what it sends to a handler, and what it makes of an answer."""

from __future__ import annotations

import contextlib
import http.client
import queue
import random
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from haproxy import HAProxy, those

from spop import Agent, Headers, codec
from spop.engine import Request, Response
from spop.engine.asynchronous import AsyncStream
from spop.engine.config import AgentConfig, Location
from spop.engine.samples.types import raw
from spop.engine.variables import Variables
from spop.web import add_headers_bin, set_headers_bin, var
from spop.web.decision import decide
from spop.web.header_lists import fields_of, names_of
from spop.web.policy import Policy
from spop.web.received import ReceivedStream

SPOE = """
spoe-agent test-agent
    messages check
    option var-prefix test
    timeout hello 5s
    timeout idle 1m
    timeout processing 10s

spoe-message check
    args text=req.hdrs binary=req.hdrs_bin
    event on-frontend-http-request
"""

CHANGING = """
    http-request del-headers-bin var(txn.test.remove)
    http-request add-headers-bin var(txn.test.add)
    http-request set-headers-bin var(txn.test.set)
"""

Fields = list[tuple[bytes, bytes]]


class Answer(socketserver.StreamRequestHandler):
    """Notes the header fields of one request."""

    server: Origin

    def handle(self) -> None:
        lines = iter(self.rfile.readline, b"\r\n")
        next(lines)
        found = [line.rstrip(b"\r\n").partition(b":") for line in lines]
        self.server.seen.put([(name, value.strip(b" \t")) for name, _, value in found])
        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


class Origin(socketserver.ThreadingTCPServer):
    """An HTTP server that tells what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.seen: queue.Queue[Fields] = queue.Queue()


@contextlib.contextmanager
def behind(binary: str, agent: Agent, folder: Path, rules: str = "") -> Iterator[Any]:
    """Through HAProxy: gives a function that sends fields and says what the origin saw."""
    with Origin() as origin, agent.serve_in_background() as server:
        threading.Thread(target=origin.serve_forever).start()
        port = origin.server_address[1]
        with HAProxy(
            binary,
            folder,
            agent=str(server.address),
            spoe=SPOE,
            rules=f"{rules}\n    default_backend origin\n\n"
            f"backend origin\n    server origin 127.0.0.1:{port}",
        ) as proxy:
            proxy.wait_until_up()
            yield lambda fields=(): ask(proxy.port, fields) and origin.seen.get(timeout=10)
        origin.shutdown()


def ask(port: int, fields: Fields) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.putrequest("GET", "/", skip_accept_encoding=True)
        for name, value in fields:
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == 200
    return True


SENT = [(b"X-One", b"1"), (b"x-text", "é".encode()), (b"x-ONE", b"2, 3"), (b"x-raw", b"\xff"),
        (b"x-empty", b""), (b"x-colon", b"a: b"), (b"x-long", b"v" * 3000)]  # fmt: skip


def test_a_handler_is_given_the_headers_of_the_request(haproxy_binary: str, tmp_path: Path) -> None:
    agent, given = Agent(), []

    @agent.message("check")
    def check(text: Headers, binary: Headers | None) -> None:
        given.append((text, binary))

    with behind(haproxy_binary, agent, tmp_path) as send:
        send(SENT)
    ((text, binary),) = given
    assert text == binary
    assert text.raw[1:] == [(name.lower(), value) for name, value in SENT]
    assert text.raw[0][0] == b"host"
    assert text.getlist("X-One") == ["1", "2, 3"]
    assert (text["x-text"], binary["x-text"], binary["x-raw"]) == ("é", "é", "\udcff")
    assert not agent.errors


# --- HAProxy 3.4 and later: an agent changes the headers ---

changes_headers = those((3, 4))


@changes_headers
def test_an_agent_adds_replaces_and_removes_headers(haproxy_binary: str, tmp_path: Path) -> None:
    agent = Agent()

    @agent.message("check", sets=["txn.add", "txn.set", "txn.remove"])
    def check(text: Headers) -> dict[str, Any]:
        added = Headers([("X-Seen", text["x-one"]), ("x-seen", b"\xff"), ("x-empty", "")])
        return {
            "txn.add": added,
            "txn.set": Headers({"x-two": "new"}),
            "txn.remove": Headers([("X-Old", ""), ("x-one", "")]).names(),
        }

    with behind(haproxy_binary, agent, tmp_path, CHANGING) as send:
        seen = send(
            [
                (b"x-one", b"1"),
                (b"x-old", b"a"),
                (b"x-two", b"b"),
                (b"x-old", b"c"),
                (b"x-two", b"d"),
            ]
        )
    assert [field for field in seen if field[0].startswith(b"x-")] == [
        (b"x-seen", b"1"),
        (b"x-seen", b"\xff"),
        (b"x-empty", b""),
        (b"x-two", b"new"),
    ]
    assert not agent.errors


@changes_headers
def test_no_headers_change_nothing(haproxy_binary: str, tmp_path: Path) -> None:
    agent = Agent()

    @agent.message("check")
    def check() -> dict[str, Any]:
        return {"txn.add": Headers(), "txn.set": Headers(), "txn.remove": Headers().names()}

    with behind(haproxy_binary, agent, tmp_path, CHANGING) as send:
        assert (b"x-one", b"1") in send([(b"x-one", b"1")])


@changes_headers
def test_whatever_headers_are_added_arrive(haproxy_binary: str, tmp_path: Path) -> None:
    agent, chance = Agent(), random.Random(7)
    octets = bytes(set(range(256)) - set(b"\r\n\0"))
    tokens = b"abcdefghijklmnopqrstuvwxyzABC0123456789!#$%&'*+.^_`|~-"
    lists = [
        [
            (
                b"x-" + bytes(chance.choices(tokens, k=chance.choice([1, 10, 250]))),
                bytes(chance.choices(octets, k=chance.choice([0, 1, 20, 500]))).strip(b" \t"),
            )
            for _ in range(chance.randint(0, 15))
        ]
        for _ in range(200)
    ]

    @agent.message("check")
    def check(binary: Headers) -> dict[str, Any]:
        return {"txn.add": Headers(lists[int(binary["x-number"])])}

    with behind(haproxy_binary, agent, tmp_path, CHANGING) as send:
        for number, added in enumerate(lists):
            seen = send([(b"x-number", b"%d" % number)])
            assert seen[2:] == [(name.lower(), value) for name, value in added]
    assert not agent.errors


RESPONSES = """
    http-response del-headers-bin var(txn.test.remove)
    http-response add-headers-bin var(txn.test.add)
    http-response set-headers-bin var(txn.test.set)
"""


def response_fields(port: int, number: int) -> Fields:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"x-number": str(number)})
        response = connection.getresponse()
        assert response.status == 200
        pairs = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in response.getheaders()
        ]
    return [pair for pair in pairs if pair[0].startswith(b"x-")]


def after_rules(value: dict[str, Any]) -> Fields:
    """What the rules of the middleware make of a response without fields of its own."""
    stream = ReceivedStream()
    stream.request, stream.variables = Request(), Variables()
    for name, sent in value.items():
        stream.variables[name] = bytes(sent.__spop_binary__())
    rules = [add_headers_bin("var(txn.add)"), set_headers_bin(var("txn.set"))]
    config = AgentConfig("a", "a", Location("", 1), "b", {}, {}, "a")
    options: dict[str, Any] = {"wait_for_body": None, "wait_for_response_body": None}
    policy = Policy(config, (), rules, max_body=1, **options)
    response = Response()
    stream.begin_response(response)
    context = AsyncStream()
    context.stream, context.status = stream, 0
    assert decide(context, iter(policy.response_steps)) is None
    return [(raw(name).lower(), raw(content)) for name, content in response.headers]


@changes_headers
def test_responses_are_what_the_middleware_makes_of_them(
    haproxy_binary: str, tmp_path: Path
) -> None:
    agent, chance = Agent(), random.Random(11)
    octets = bytes(set(range(32, 256)) - {127})
    names = [b"x-a", b"X-A", b"x-b", b"x-c!#$%", b"x-" + b"n" * 200]
    answers = [
        {
            key: Headers(
                [
                    (
                        chance.choice(names),
                        bytes(chance.choices(octets, k=chance.choice([0, 1, 90]))).strip(b" \t"),
                    )
                    for _ in range(chance.randint(0, 6))
                ]
            )
            for key in ("txn.add", "txn.set")
        }
        for _ in range(200)
    ]

    @agent.message("check")
    def check(binary: Headers) -> dict[str, Any]:
        return answers[int(binary["x-number"])]

    with Origin() as origin, agent.serve_in_background() as server:
        threading.Thread(target=origin.serve_forever).start()
        port = origin.server_address[1]
        rules = (
            f"{RESPONSES}\n    default_backend origin\n\n"
            f"backend origin\n    server origin 127.0.0.1:{port}"
        )
        with HAProxy(
            haproxy_binary, tmp_path, agent=str(server.address), spoe=SPOE, rules=rules
        ) as proxy:
            proxy.wait_until_up()
            for number, answer in enumerate(answers):
                assert response_fields(proxy.port, number) == after_rules(answer)
        origin.shutdown()
    assert not agent.errors


@pytest.mark.parametrize(
    "pair", [(b"x-a", b"1\r\nx-b: 2"), (b"x-a", b"\0"), (b"x a", b"1"), (b"x-a", b"1\n")]
)
def test_what_could_end_a_message_is_refused(pair: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="header"):
        Headers([pair]).__spop_binary__()
    sent = b"".join(codec.encode_string(part) for part in (*pair, b"x-good", b"1", b"", b""))
    assert fields_of(sent) == [("x-good", "1")]


@pytest.mark.parametrize("name", [b"Content-Length", b"connection", b"Upgrade", b"trailer"])
def test_some_names_are_passed_over(name: bytes) -> None:
    headers = Headers([(name, "1"), ("x-a", "")])
    assert fields_of(headers.__spop_binary__()) == [("x-a", "")]
    assert names_of(headers.names()) == ["x-a"]


@pytest.mark.parametrize("value", [b"", b"\x03x-a", b"\x03x-a\x011", b"\0\1x", "text", None, 5])
def test_a_malformed_list_changes_nothing(value: object) -> None:
    assert fields_of(value) == []
    assert names_of(value) == []
