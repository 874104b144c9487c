"""`spop config`: what it writes for agents of many kinds is valid, starts and answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import draft_agents
import haproxy
import pytest
from click.testing import CliRunner
from serving import free_port

from spop import Agent, Message
from spop.cli import main
from spop.engine.draft import DraftError, Plan, draft
from spop.haproxy_version import Version
from spop.server import Server

MODULE = Path(draft_agents.__file__)


class Site(BaseHTTPRequestHandler):
    """Answers with the header fields that came."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        shown = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(shown)))
        self.end_headers()
        self.wfile.write(shown)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(word) for word in words])
    return done.exit_code, done.output


class Case(NamedTuple):
    """An agent, the fields that its site gets, and the status of the response."""

    name: str
    fields: Mapping[str, str] = {}
    status: int = 200
    method: str = "GET"
    since: tuple[int, int] = (2, 2)


CASES = [
    Case("address", {"x-ip-score": "1"}),
    Case("text", {"x-seen": "POST 127.0.0.1 abc"}, method="POST"),
    Case("in_bytes", {"x-sizes": "2 3 True"}, method="POST"),
    Case("header_fields", {"x-user": "ann"}),
    Case("header_text", {"x-has-user": "1"}),
    Case("line", {"x-line": "GET /p /p?q=1 1.1 q=1"}),
    Case("browser", {"x-browser": "True test None ann"}),
    Case("stream", status=403),
    Case("asynchronous", {"x-late": "0", "x-path": "/p"}),
    Case("blocking", {"x-has-port": "1"}),
    Case("batches", {"x-score": "2"}),
    Case("whole", {"x-whole": "GET 127.0.0.1"}),
    Case("cached", {"x-known": "1"}),
    Case("denies", status=403),
    Case("allows", {"x-why": "method"}),
    Case("allows", status=403, method="POST"),
    Case("unknown", {"x-guessed": "none 0 False 192.0.2.1 2001:db8::1 b'\\x00' none"}),
    Case("defaults", {"x-of": "/p ?? 7"}),
    Case("redirects", status=302),
    Case("lists", {"x-added": "yes"}, since=(3, 4)),
    Case("connection", {"x-about": "127.0.0.1 False None 36 True"}),
    Case("answers", status=403),
    Case("settings", {"x-greeting": "hello world"}),
    Case("included", {"x-ip-score": "1", "x-why": "method"}),
    Case("mirror", method="POST"),
    Case("process", {"x-count": "1", "x-count-seen": "1"}),
    Case("replaces", {"x-user": "bob"}, since=(3, 4)),
    Case("odd_names", {"x-seen": "none none none"}),
]


# `make haproxy` runs all of them, `make test` a few.
FEW = CASES if os.environ.get("SPOP_TEST_HAPROXY") else CASES[::5]


@contextlib.contextmanager
def running(binary: str, config: Path, port: int) -> Iterator[None]:
    """HAProxy with its files as they are, started from another folder."""
    command = [binary, "-db", "-f", str(config)]
    process = subprocess.Popen(
        command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        assert process.poll() is None, process.communicate()[1]
        return False

    try:
        haproxy.wait_until(listens, "HAProxy's start")
        yield
    finally:
        process.kill()
        process.communicate()


def ask(port: int, method: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        fields = {"user-agent": "test", "x-user": "ann"}
        connection.request(method, "/p?q=1", b"abc" if method == "POST" else None, fields)
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if response.status == 200 else {}


@pytest.mark.parametrize("case", FEW, ids=lambda case: f"{case.name}-{case.status}")
def test_files_start_and_agents_answer(
    case: Case,
    haproxy_binary: str,
    tmp_path: Path,
    site: str,
    serve_agent: Callable[..., Server],
) -> None:
    version = haproxy.version(haproxy_binary)
    served = serve_agent(getattr(draft_agents, case.name))
    port, branch = free_port(), f"{version.major}.{version.minor}"
    target = f"{MODULE}:{case.name}"
    config, spoe = tmp_path / "haproxy.cfg", tmp_path / "spoe.cfg"
    status, output = run(
        "config", target, "--output", tmp_path, "--haproxy-version", branch,
        "--listen", f"127.0.0.1:{port}", "--agent-address", served.address, "--server", site,
    )  # fmt: skip
    assert status == 0, output
    status, output = run(
        "validate", spoe, "--haproxy-cfg", config, "--agent", target, "--haproxy-version", branch
    )
    assert status == 0, output
    assert "warning" not in output
    done = subprocess.run(
        [haproxy_binary, "-c", "-f", config], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    with running(haproxy_binary, config, port):
        found, fields = ask(port, case.method)
    assert found == (case.status if version[:2] >= case.since else 200)
    if version[:2] >= case.since:
        assert {name: fields.get(name) for name in case.fields} == case.fields


def drafted(agent: Agent, version: str = "3.4", **fields: Any) -> tuple[str, str]:
    return draft(agent, Plan(target="app:agent", version=Version.of_haproxy(version), **fields))


def test_what_no_name_tells_is_to_be_filled_in() -> None:
    spoe, _ = drafted(draft_agents.unknown)
    assert "    args country=str(none)  # fill in\n" in spoe
    assert spoe.count("# fill in") == 7
    spoe, _ = drafted(draft_agents.defaults)
    assert "# Left out, their defaults are used: country tenant" in spoe


def test_the_fail_closed_form_stands_beside() -> None:
    _, config = drafted(draft_agents.denies)
    assert (
        "# http-request deny deny_status 403 unless { var(txn.denies.ip_blocked) -m found }"
        in config
    )


def test_the_mode_of_the_agents_backend_is_the_versions() -> None:
    for version, mode in (("2.6", "tcp"), ("3.0", "tcp"), ("3.1", "spop"), ("3.4", "spop")):
        spoe, config = drafted(draft_agents.address, version)
        assert f"    mode {mode}\n    option spop-check" in config
        assert ("timeout hello" in spoe) is (mode == "tcp")


def test_both_files_are_printed_without_output() -> None:
    status, output = run("config", f"{MODULE}:address")
    assert status == 0
    assert "[address]" in output
    assert "bind 127.0.0.1:8080\n" in output
    assert "server site 127.0.0.1:8000\n" in output
    assert "server agent 127.0.0.1:9000 check\n" in output


def test_files_that_exist_are_kept(tmp_path: Path) -> None:
    (tmp_path / "spoe.cfg").write_text("mine")
    status, output = run("config", f"{MODULE}:address", "--output", tmp_path)
    assert (status, (tmp_path / "spoe.cfg").read_text()) == (2, "mine")
    assert "--force" in output
    assert run("config", f"{MODULE}:address", "--output", tmp_path, "--force")[0] == 0


def reads_what_has_no_name(message: Message) -> dict[str, Any]:
    return {"txn.a": message["a=b"]}


def test_mistakes_are_told() -> None:
    for words in (["--listen", "8080"], ["--server", "a b:1"], ["--haproxy-version", "x"]):
        assert run("config", f"{MODULE}:address", *words)[0] == 2
    with pytest.raises(DraftError, match="no handlers"):
        drafted(Agent())
    agent = Agent()
    agent.message("a b")(lambda: None)
    with pytest.raises(DraftError, match="'a b'"):
        drafted(agent)
    agent = Agent()
    agent.message("m")(reads_what_has_no_name)
    with pytest.raises(DraftError, match="can't name the argument 'a=b'"):
        drafted(agent)
