"""The tests that docs/security.md and docs/proof.md name exist; the rules that have no other place."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from serving import served
from test_admin import get

from spop import Client, Message
from spop.constants import Capability
from spop.frames import Peer, engine_digest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
PROOF = (ROOT / "docs" / "proof.md").read_text()
ENGINE_ID = "7d0be1f0-5f7c-4a0b-8e0e-0c7d4a9a1234"
TEST = r"`(tests/[\w/]+\.py)::(\w+)`"

AGENT = """
from spop import Agent, Message

agent = Agent()

@agent.message("fails")
def fails(message: Message):
    raise ValueError(repr(message), repr(message.connection))

@agent.message("waits")
async def waits(message: Message):
    import asyncio, logging
    await asyncio.sleep(0)
    logging.getLogger("mine").error("%r from %r", message, message.connection)
"""


@pytest.mark.parametrize("path, name", sorted({*re.findall(TEST, PAGE), *re.findall(TEST, PROOF)}))
def test_each_test_that_the_page_names_exists(path: str, name: str) -> None:
    source = (ROOT / path).read_text()
    assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE)


def test_each_defence_of_the_page_names_a_test() -> None:
    defences = re.findall(r"^- .+(?:\n  .+)*", PAGE, re.MULTILINE)
    assert len(defences) > 30
    assert not [each for each in defences if not re.search(TEST, each)]


# --- engine-ids ---


@pytest.mark.parametrize("log_format", ["text", "json", "logfmt"])
def test_an_engine_id_is_in_no_log_and_on_no_page(tmp_path: Path, log_format: str) -> None:
    path = tmp_path / "engine_id_agent.py"
    path.write_text(AGENT)
    address = f"unix:{tmp_path}/agent.sock"
    options = ("--log-level", "debug", "--log-format", log_format, "--log-frames")
    options += ("--admin", "127.0.0.1:0")
    with served("--bind", address, *options, target=f"{path}:agent") as process:
        wait_until(lambda: "serves" in process.log, "the agent")
        (admin,) = set(re.findall(r"127\.0\.0\.1:\d+", process.log))
        with Client(
            address, engine_id=ENGINE_ID, capabilities=frozenset({Capability.ASYNC})
        ) as client:
            client.notify([Message("fails"), Message("waits"), Message("nobody-handles-this")])
            process.send_signal(signal.SIGUSR1)
            pages = [get(admin, page)[1] for page in ("/", "/metrics", "/status.json")]
        wait_until(lambda: "disconnected" in process.log, "the end of the connection")
        process.wait_for_log("ValueError")
    assert ENGINE_ID not in process.log + "".join(pages)
    assert engine_digest(ENGINE_ID) in process.log
    assert json.loads(pages[-1])["connections"][0]["engine"] == engine_digest(ENGINE_ID)


def test_a_peer_shows_the_digest_of_its_engine_id() -> None:
    peer = Peer("127.0.0.1:1", "2.0", 16380, frozenset(), ENGINE_ID)
    assert ENGINE_ID not in repr(peer)
    assert peer.engine == engine_digest(ENGINE_ID)
    assert Peer("127.0.0.1:1", "2.0", 16380, frozenset()).engine is None


# --- make audit ---


def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(stdout: str = "", stderr: str = "") -> Any:
    return lambda command: subprocess.CompletedProcess(command, 1, stdout, stderr)


def test_an_audit_without_the_advisory_service_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert not list(audit().holes(told(stderr="Traceback\nConnectionError: no route")))
    assert "not checked" in capsys.readouterr().out

    def late(command: list[str]) -> Any:
        raise subprocess.TimeoutExpired(command, 300)

    assert not list(audit().holes(late))
    assert "not checked" in capsys.readouterr().out


def test_an_audit_tells_holes_that_are_mended_and_packages_that_nobody_knows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages = [
        {"name": "a", "vulns": [{"id": "CVE-1", "fix_versions": ["2.0"]}]},
        {"name": "b", "vulns": [{"id": "CVE-2", "fix_versions": []}]},
        {"name": "c", "skip_reason": "not found"},
    ]
    found = list(audit().holes(told(json.dumps({"dependencies": packages}))))
    assert found == ["a: CVE-1, mended in 2.0"]
    assert "2 of 3 packages" in capsys.readouterr().out
