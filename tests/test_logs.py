"""What the log tells: fields in place of text, levels by subject, and what happened to the service."""

from __future__ import annotations

import ast
import contextlib
import json
import linecache
import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from serving import served, wait_until_serving

import spop
from spop import Agent, codec
from spop.client import Client
from spop.context import log_ids
from spop.frames import engine_digest
from spop.logs import JSONFormatter, LogfmtFormatter, traceback_of

AGENT = """
import spop
agent = spop.Agent()
@agent.message("fail")
def fail(): raise ValueError("broken")
"""
LOGS = {"debug", "info", "warning", "error", "exception", "failure", "failure_elsewhere", "log"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def write_agent(folder: Path, more: str = "") -> str:
    path = folder / "logged_agent.py"
    path.write_text(AGENT + more)
    return f"{path}:agent"


def records(lines: list[str], event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [each for each in found if each["event"] == event]


def test_json_lines_have_fields_in_place_of_text(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    options = ("--bind", address, "--log-format", "json", "--log-health", "info")
    with served(*options, target=write_agent(tmp_path)) as process:
        process.wait_for_log('"serves"')
        with Client(address, engine_id="e1") as client:
            client.notify("fail")
        process.wait_for_log('"disconnected"')
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        process.end()
        (serves,) = records(process.lines, "serves")
        assert (serves["codec"], serves["processes"], serves["threads"], serves["tls"]) == (
            codec.IMPLEMENTATION, 1, 1, False,
        )  # fmt: skip
        (begun,) = records(process.lines, "connected")
        assert (begun["engine"], begun["version"]) == (engine_digest("e1"), "2.0")
        (ended,) = records(process.lines, "disconnected")
        assert (ended["engine"], ended["status"], ended["by"]) == (engine_digest("e1"), 0, "peer")
        assert ended["peer"] == begun["peer"]
        assert ended["duration"] >= 0
        (failed,) = records(process.lines, "handler failed")
        assert (failed["message"], failed["handler"]) == ("fail", "fail")
        assert failed["error"] == "ValueError: broken"
        (stopped,) = records(process.lines, "stopped")
        assert stopped["duration"] >= 0
        assert stopped["frames_crossed"] == 0


def test_logfmt_quotes_what_is_no_plain_word() -> None:
    record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": 'a "b"\nc=d'})
    assert LogfmtFormatter().format(record).endswith(r'event="a \"b\"\nc=d"')
    record.msg = "plain"
    assert LogfmtFormatter().format(record).endswith(" event=plain")


def test_a_reload_is_logged_when_it_is_done(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    target = write_agent(tmp_path)
    options = ("--bind", address, "--processes", "2")
    with served(*options, target=target) as process, contextlib.ExitStack() as stack:
        wait_until_serving(process)
        client = stack.enter_context(Client(address))
        client.notify("unknown")
        process.wait_for_log("connection from")
        connections = process.log.count("connection from")
        process.send_signal(signal.SIGHUP)
        process.wait_for_log("reload done")
        found = re.search(r"reload done: 2 new workers, (\d+) connections moved, \d", process.log)
        assert found
        assert int(found[1]) >= 1
        client.notify("unknown")
        assert process.log.count("connection from") == connections, "moved, not new"


def test_a_reload_that_fails_says_why(tmp_path: Path) -> None:
    target = write_agent(tmp_path)
    with served("--bind", f"unix:{tmp_path}/agent.sock", target=target) as process:
        wait_until_serving(process)
        write_agent(tmp_path, "raise OSError('no model')")
        process.send_signal(signal.SIGHUP)
        process.wait_for_log("the workers are not replaced")
        assert re.search(r"reload failed after [\d.]+ s: .*no model", process.log)


def test_the_stop_of_the_service_is_logged(tmp_path: Path) -> None:
    target = write_agent(tmp_path)
    with served("--bind", f"unix:{tmp_path}/agent.sock", target=target) as process:
        wait_until_serving(process)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        process.end()
        assert re.search(r"stopped in [\d.]+ s$", process.lines[-1])


@pytest.mark.parametrize("level", ["info", "debug"])
def test_lines_of_handlers_connections_and_health_have_levels_of_their_own(
    level: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent()

    @agent.message("fail")
    def fail() -> None:
        raise ValueError("broken")

    caplog.set_level(logging.DEBUG, "spop")
    levels = {"log_connections": level, "log_health": level, "log_handlers": level}
    with agent.serve_in_background(**levels) as server:
        with Client(str(server.address)) as client:
            client.notify("fail")
        with Client(str(server.address), healthcheck=True):
            pass
    found = {getattr(r, "spop_event", ""): r.levelname.lower() for r in caplog.records}
    assert (found["connected"], found["disconnected"]) == (level, level)
    assert (found["handler failed"], found["health check"]) == (level, level)


@pytest.mark.usefixtures("context_filter")
@pytest.mark.parametrize("kind", ["inline", "blocking", "async"])
def test_records_have_the_ids_that_haproxy_sends(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent()
    log_ids(agent)

    def look() -> None:
        logging.getLogger("mine").warning("seen")
        raise ValueError("broken")

    async def look_async() -> None:
        look()

    agent.message("look", blocking=kind == "blocking")(look_async if kind == "async" else look)
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        client.notify("look", **{"unique-id": "u1", "traceparent": TRACEPARENT})
        wait_until(lambda: any("failed" in r.getMessage() for r in caplog.records), "a failure")
    for record in caplog.records:
        if record.name == "mine" or "failed" in record.getMessage():
            shown = json.loads(JSONFormatter().format(record))
            assert shown["unique_id"] == "u1"
            assert shown["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
            assert shown["span_id"] == "b7ad6b7169203331"


@pytest.mark.parametrize("limit", ["--max-requests=10", "--max-worker-memory=1M"])
def test_workers_beyond_a_limit_are_replaced(tmp_path: Path, limit: str) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    with served("--bind", address, limit, target=write_agent(tmp_path)) as process:
        wait_until_serving(process)
        with Client(address) as client:
            for _ in range(10):
                client.notify("unknown")
            process.wait_for_log("reload done")
            client.notify("unknown")
        name = limit.partition("=")[0].lstrip("-").replace("-", "_")
        assert f"{name} is reached: replacing the workers" in process.log


@pytest.mark.parametrize("limit", ["max-requests=1", "max-worker-memory=1M"])
def test_a_limit_below_what_a_fresh_worker_has_is_said_and_reloads_no_more(
    tmp_path: Path, limit: str
) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    options = ("--bind", address, f"--{limit}", "--log-format", "json")
    with served(*options, target=write_agent(tmp_path)) as process, contextlib.ExitStack() as stack:
        process.wait_for_log('"serves"')
        client = stack.enter_context(Client(address))

        def warned() -> bool:
            client.notify("unknown")
            return "limit too low" in process.log

        wait_until(warned, "the warning", timeout=30)
        (found,) = records(process.lines, "limit too low")
        assert found["option"] == limit.partition("=")[0].replace("-", "_")
        assert found["value"] >= found["limit"] > 0
        assert len(records(process.lines, "reload")) == 1


@pytest.mark.parametrize(("age", "short"), [("2", True), ("60", False)])
def test_a_short_age_of_connections_is_said_at_the_start(
    tmp_path: Path, age: str, short: bool
) -> None:
    options = ("--bind", f"unix:{tmp_path}/agent.sock", f"--max-connection-age={age}")
    with served(*options, target=write_agent(tmp_path)) as process:
        wait_until_serving(process)
        assert (f"max_connection_age is {age} s" in process.log) is short


def test_each_line_of_the_server_has_an_event_and_fields() -> None:
    """A line without them is prose in JSON and logfmt, which nobody can search by a field."""
    package = Path(spop.__file__).parent
    paths = [*package.glob("server/*.py"), package / "agent.py", package / "state.py"]
    calls = [
        (path.name, call)
        for path in paths
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in LOGS
        and re.search("log", ast.unparse(call.func.value), re.IGNORECASE)
    ]
    without = [
        f"{name}:{call.lineno}"
        for name, call in calls
        if not any(keyword.arg == "extra" for keyword in call.keywords)
    ]
    assert len(calls) > 40
    assert without == []


def test_an_exception_that_is_raised_again_and_again_costs_no_more_to_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each time its traceback has more frames. As many are read as are shown."""
    error, read = ValueError("the same"), 0

    def getline(*_: object) -> str:
        nonlocal read
        read += 1
        return "raise error\n"

    for _ in range(5000):
        with contextlib.suppress(ValueError):
            raise error
    monkeypatch.setattr(linecache, "getline", getline)
    assert traceback_of(error).endswith("ValueError: the same")
    assert read < 2000
