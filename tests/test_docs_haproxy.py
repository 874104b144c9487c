"""Every whole file of docs/haproxy.md starts with the HAProxys that it is for, and does its work."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import haproxy
import pytest
import trustme

from spop import Agent, Headers
from spop.engine.config import check_spoe
from spop.engine.config.versions import Version
from spop.engine.validate import EngineSetup, Setup, check_setup, read_haproxy_cfg
from spop.testing.haproxy import Process

PAGE = (Path(__file__).parent.parent / "docs" / "haproxy.md").read_text()
_BLOCK = re.compile(
    r"<!-- (\w+)(?: (since|until) (\d\.\d))? -->\n"
    r"```haproxy title=\"/etc/haproxy/([\w.]+)\"\n(.*?)```",
    re.DOTALL,
)


class File(NamedTuple):
    example: str
    bound: str
    version: str
    name: str
    text: str

    def fits(self, version: tuple[int, ...]) -> bool:
        limit = Version.of_haproxy(self.version).branch if self.version else (0, 0)
        return version[:2] <= limit if self.bound == "until" else version[:2] >= limit


FILES = [File(*found) for found in _BLOCK.findall(PAGE)]
EXAMPLES = list(dict.fromkeys(file.example for file in FILES))


def files(example: str, version: tuple[int, ...]) -> dict[str, str]:
    """The text of each file of an example for a version; those for it alone come last."""
    found = [file for file in FILES if file.example == example and file.fits(version)]
    texts = {file.name: file.text for file in sorted(found, key=lambda file: file.bound)}
    if version < (3, 1):  # As the page says.
        texts = {name: text.replace("mode spop", "mode tcp") for name, text in texts.items()}
    return texts


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


def run(binary: str, folder: Path, example: str, *, web: int = 1, agent: str = "") -> Process:
    texts = files(example, haproxy.version(binary))
    trustme.CA().cert_pem.write_to_path(folder / "agents.pem")
    cfg = texts["haproxy.cfg"].replace("/etc/haproxy", str(folder))
    cfg = re.sub(r"bind :\d+", "bind fd@FD", cfg).replace("127.0.0.1:8080", f"127.0.0.1:{web}")
    cfg = cfg.replace("127.0.0.1:9000", agent or "127.0.0.1:9")
    found = re.match(r"global\n(.*?)\n\n", cfg, re.DOTALL)  # HAProxy wants one such section.
    options, cfg = (found[1], cfg[found.end() :]) if found else ("", cfg)
    escaped = cfg.replace("{", "{{").replace("}", "}}").replace("fd@FD", "fd@{fd}")
    spoe = texts["spoe.cfg"]
    return Process(binary, folder, config=escaped, spoe=spoe, global_options=options)


def status(process: Process) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"X-Old": "1", "Connection": "close"})
        response = connection.getresponse()
        response.read()
        return response.status


def test_the_page_has_the_examples_that_it_is_for() -> None:
    assert EXAMPLES == ["deny", "closed", "tcp", "groups", "headers", "agents"]


OF_THE_TEST = ("is DOWN", "no server", "was started as")
"""What HAProxy warns of because no agent runs, or the tests run as root."""


@pytest.mark.parametrize("example", EXAMPLES)
def test_haproxy_starts_with_each_example_without_a_warning(
    haproxy_binary: str, example: str, tmp_path: Path
) -> None:
    version = haproxy.version(haproxy_binary)
    if "haproxy.cfg" not in files(example, version):
        assert example == "headers"
        return
    with run(haproxy_binary, tmp_path, example) as process:
        said = process.log()
    alerts = re.findall(r"ALERT.*", said)
    assert all("has no server available" in text for text in alerts), said
    # Up to 3.0 HAProxy wants the two timeouts that the first example has for it.
    warnings = re.findall(r"WARNING.*", said)
    if version >= (3, 1) or example == "deny":
        assert [text for text in warnings if not any(known in text for known in OF_THE_TEST)] == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_validate_finds_nothing_wrong_with_an_example(
    haproxy_binary: str, example: str, tmp_path: Path
) -> None:
    version = haproxy.version(haproxy_binary)
    texts = files(example, version)
    if "haproxy.cfg" not in texts:
        return
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    branch = f"{version.major}.{version.minor}"
    scope = re.findall(r"^\[(.*)\]", texts["spoe.cfg"])[0]
    report = check_spoe(tmp_path / "spoe.cfg", scope, haproxy_version=branch)
    setup = Setup(
        str(tmp_path / "spoe.cfg"),
        [EngineSetup(report.result(), report.sections)],
        read_haproxy_cfg(tmp_path / "haproxy.cfg"),
        None,
        Version.of_haproxy(branch),
        [scope],
    )
    assert [str(d) for d in check_setup(setup) if d.severity.value != "note"] == []


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
        run(haproxy_binary, tmp_path, example, web=web, agent=str(server.address)) as process,
    ):
        assert status(process) == expected


@pytest.mark.parametrize("example, expected", [("deny", 200), ("closed", 503)])
def test_without_an_agent_it_fails_open_or_closed(
    haproxy_binary: str, example: str, expected: int, web: int, tmp_path: Path
) -> None:
    with run(haproxy_binary, tmp_path, example, web=web) as process:
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
        run(haproxy_binary, tmp_path, "headers", web=web, agent=str(server.address)) as process,
    ):
        assert status(process) == 200
    assert (Web.seen.get("x-new"), Web.seen.get("x-old")) == ("1", None)
