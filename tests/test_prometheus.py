"""The metrics by Prometheus' conventions, and the dashboard and alert rules on a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from test_admin import get, serving

from spop import Client, Message

EXAMPLES = Path(__file__).parent.parent / "examples" / "prometheus"
METRICS = Path(__file__).parent.parent / "docs" / "metrics.md"


def alerts() -> list[str]:
    """The expressions of the alert rules, each without its threshold."""
    text = (EXAMPLES / "alerts.yml").read_text()
    expressions = re.findall(r"^ +expr: (?:\|\n((?: {10}.*\n)+)|(.+))", text, re.MULTILINE)
    whole = [" ".join((lines or line).split()) for lines, line in expressions]
    assert len(whole) == text.count("- alert:")
    return [re.sub(r" (>|==) [\d.]+$", "", each) for each in whole]


def panels() -> list[str]:
    """The expressions of the dashboard, as Grafana sends them."""
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    return [
        target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


MESSAGES = [
    Message("check", ip=IPv4Address(1)),
    Message("kept", ip=IPv4Address(1)),
    Message("broken"),
    Message("nobody"),
]
EXPRESSIONS = [*alerts(), *panels()]
USED = {name for each in EXPRESSIONS for name in re.findall(r"\bspop_\w+", each)}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, str]]:
    """A client of a service, and the address of its pages."""
    path = tmp_path_factory.mktemp("service")
    with (
        serving(path, "--processes", "2") as (_, base),
        Client(f"unix:{path}/agent.sock") as client,
    ):
        client.notify(MESSAGES)
        yield client, base


def families(base: str, kind: str) -> dict[str, str]:
    """The text behind each ``# HELP`` or ``# TYPE``, by the metric's name."""
    found = re.findall(rf"^# {kind} (\w+) (.*)$", get(base, "/metrics")[1], re.MULTILINE)
    return dict(found)


def test_all_metrics_have_a_type_and_a_help_text(service: tuple[Client, str]) -> None:
    _, base = service
    types, helps = families(base, "TYPE"), families(base, "HELP")
    samples = re.findall(
        r"^(spop_\w+?)(?:_bucket|_sum|_count)?[{ ]", get(base, "/metrics")[1], re.MULTILINE
    )
    assert set(samples) == set(types) == set(helps)
    assert all(text.endswith(".") for text in helps.values())
    assert all((types[name] == "counter") == name.endswith("_total") for name in types)


def test_all_metrics_are_documented_and_no_others(service: tuple[Client, str]) -> None:
    documented = set(re.findall(r"`(spop_\w+)`", METRICS.read_text()))
    assert documented == set(families(service[1], "TYPE"))


def test_promtool_finds_nothing_to_say_of_the_metrics(service: tuple[Client, str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool is installed")
    text = get(service[1], "/metrics")[1]
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_what_dashboard_and_alerts_name_exists(service: tuple[Client, str]) -> None:
    text = get(service[1], "/metrics")[1]
    assert {name for name in USED if not re.search(rf"^{name}[{{ ]", text, re.MULTILINE)} == set()


@pytest.fixture(scope="module")
def prometheus(
    service: tuple[Client, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a Prometheus with the alert rules, which scrapes the service."""
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("no Prometheus is installed")
    path = tmp_path_factory.mktemp("prometheus")
    shutil.copy(EXAMPLES / "alerts.yml", path)
    config = (EXAMPLES / "prometheus.yml").read_text().replace("127.0.0.1:9001", service[1])
    (path / "prometheus.yml").write_text(config.replace("15s", "500ms"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [found, f"--config.file={path}/prometheus.yml", f"--storage.tsdb.path={path}/data",
         f"--web.listen-address={address}"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: is_up(address), "two scrapes")
        yield address
    finally:
        process.kill()
        process.wait()


def asked(address: str, path: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"http://{address}/api/v1/{path}?{query}", timeout=10) as answer:
        return json.load(answer)["data"]


def is_up(address: str) -> bool:
    with contextlib.suppress(OSError):
        query = "count_over_time(spop_ready[1m]) > 2"
        return bool(asked(address, "query", query=query)["result"])
    return False


def test_prometheus_takes_the_alert_rules(prometheus: str) -> None:
    (group,) = asked(prometheus, "rules")["groups"]
    assert len(group["rules"]) == len(alerts())


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_each_expression_finds_something(
    service: tuple[Client, str], prometheus: str, expression: str
) -> None:
    """Where it divides by a rate or asks for a quantile, too: names, labels and types are right."""
    client, _ = service

    def finds() -> bool:
        client.notify(MESSAGES)
        return bool(asked(prometheus, "query", query=expression)["result"])

    wait_until(finds, expression)
