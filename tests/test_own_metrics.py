"""Counters and gauges of an agent's own, in handlers, over processes and beside the server's."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from serving import served

from spop import Agent, Client

AGENT = """
import os
from spop import Agent

agent = Agent()
seen = {kind: agent.counter("things", "Things that were seen.", kind=kind) for kind in "ab"}
level = agent.gauge("level", "The level.")

@agent.lifespan
def resources():
    agent.counter("configured", "A counter that a lifespan made.", of="x").add(2)
    yield

@agent.message("see")
def see(kind: str):
    seen[kind].add()
    level.set(7)
    return {"txn.pid": os.getpid()}

@agent.message("seeb", blocking=True)
def seeb(kind: str):
    seen[kind].add(10)
"""


def shown(folder: Path, base: str) -> dict[tuple[str, ...], int]:
    """The own metrics of /status.json, which /metrics has to show, too."""
    with urllib.request.urlopen(f"{base}/status.json") as answer:
        metrics = json.load(answer)["metrics"]
    with urllib.request.urlopen(f"{base}/metrics") as answer:
        text = answer.read().decode()
    for each in metrics:
        assert f"# HELP {each['name']}" in text
    return {(each["name"], *each["labels"].values()): each["value"] for each in metrics}


def test_they_are_summed_over_processes_and_outlive_a_worker(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(AGENT)
    address, admin = f"unix:{tmp_path}/a.sock", "127.0.0.1:0"
    options = "--bind", address, "--processes", "2", "--threads", "2", "--admin", admin
    with served(*options, target=f"{tmp_path}/own.py:agent") as process:
        process.wait_for_log("admin on")
        base = "http://" + process.log.split("admin on ")[1].split()[0]
        wait_until(lambda: shown(tmp_path, base).get(("configured", "x")) == 4, "both workers")
        clients = [Client(address) for _ in range(6)]
        for client in clients:
            pid = client.notify("see", kind="a").variables["txn.pid"]
            client.notify("seeb", kind="b")
        expected = {("things", "a"): 6, ("things", "b"): 60, ("level",): 7, ("configured", "x"): 4}
        assert shown(tmp_path, base) == expected
        with urllib.request.urlopen(f"{base}/metrics") as answer:
            assert 'things_total{kind="b"} 60.0' in answer.read().decode()
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: shown(tmp_path, base)["configured", "x"] == 6, "the new worker")
        assert shown(tmp_path, base)["things", "a"] == 6
        for client in clients:
            client.close()


def test_the_same_name_and_labels_give_the_same_metric() -> None:
    agent = Agent()
    first = agent.counter("things", "Things.", kind="a")
    assert agent.counter("things", "Things.", kind="a") is first
    assert agent.counter("things", "Things.", kind="b") is not first
    with pytest.raises(ValueError, match="with other labels or kind"):
        agent.gauge("things", "Things.", kind="a")
    with pytest.raises(ValueError, match="with other labels or kind"):
        agent.counter("things", "Things.", sort="a")


@pytest.mark.parametrize("name", ["", "spop_things", "Things", "a-b", "1a"])
def test_a_name_that_prometheus_or_the_server_can_not_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name is"):
        Agent().counter(name, "Things.")


def test_too_many_are_refused() -> None:
    agent = Agent()
    for number in range(256):
        agent.counter("things", "Things.", kind=str(number))
    with pytest.raises(ValueError, match="256 metrics at most"):
        agent.counter("things", "Things.", kind="one more")


def test_none_is_made_while_the_agent_is_served() -> None:
    agent = Agent()
    things = agent.counter("things", "Things.")
    with agent.serve_in_background() as server:
        things.add()
        with pytest.raises(RuntimeError, match="make it before the agent is served"):
            agent.counter("others", "Others.")
        assert agent.counter("things", "Things.") is things
        assert [each.value for each in server.status().metrics] == [1]  # type: ignore[attr-defined]
    with agent.serve_in_background() as server:
        assert things.value == 0


@pytest.mark.parametrize("label", ["bad-label", "", "__name__", "1st", "ü"])
def test_a_label_that_prometheus_does_not_take(label: str) -> None:
    with pytest.raises(ValueError, match="is no name of a label"):
        Agent().counter("lookups", "Look-ups.", **{label: "x"})


@pytest.mark.parametrize("meaning, value, error", [
    ("Look-ups.", True, TypeError), ("Look-ups.", 5, TypeError), (None, "x", TypeError),
    ("Look-ups.", "\udcff", ValueError), ("\udcff", "x", ValueError),
])  # fmt: skip
def test_a_metrics_texts_are_texts(meaning: Any, value: Any, error: type[Exception]) -> None:
    """Else the supervisor would refuse the worker, or no metrics could be shown."""
    with pytest.raises(error):
        Agent().gauge("lookups", meaning, found=value)


def test_an_included_agents_metrics_are_shown() -> None:
    inner, outer = Agent(), Agent()
    things = inner.counter("things", "Things.")
    outer.counter("others", "Others.")
    outer.include(inner)
    with outer.serve_in_background() as server:
        things.add(3)
        metrics = server.status().metrics  # type: ignore[attr-defined]
        assert {each.name: each.value for each in metrics} == {"others": 0, "things": 3}
