"""The status page in a browser, its history, and what the documentation says of /status.json."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser
from haproxy import wait_until
from test_admin import get, serving

from spop import Agent, Client, Message
from spop.constants import Capability
from spop.counters import Counts, HandlerCounts
from spop.frames import engine_digest
from spop.server import history
from spop.server.history import History, Sample
from spop.server.status import Status, WorkerStatus
from spop.server.usage import usage_of

DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"
ENGINE_ID = "0b7f3c3e-3a5d-4c58-9e0c-7e9f6a1ab001"

CUT = """[...document.querySelectorAll("td, th, dt, dd, figcaption, .legend, p, h1")].filter(each =>
  each.clientWidth && each.scrollWidth > each.clientWidth + 1
  || each.getBoundingClientRect().right > innerWidth).map(each => each.textContent)"""
"""Texts that are wider than their place, or reach out of the window."""
COLOURS = "[getComputedStyle(document.documentElement).backgroundColor, getComputedStyle(document.querySelector('p')).color]"


def test_no_text_of_the_page_is_cut_in_a_wide_and_a_narrow_window(tmp_path: Path) -> None:
    """In both themes, with a long message name, an engine-id as HAProxy's, and all sections."""
    with (
        serving(tmp_path, "--processes", "2") as (_, base),
        Client(
            f"unix:{tmp_path}/agent.sock",
            engine_id=ENGINE_ID,
            capabilities=frozenset({Capability.ASYNC, Capability.PIPELINING}),
        ) as client,
        browser(tmp_path / "browser") as page,
    ):
        client.notify([Message("check", ip=IPv4Address(1)), Message("broken"), Message("x" * 100)])
        colours = {}
        for width in (1400, 420):
            for scheme in ("light", "dark"):
                page.show(f"http://{base}/", width, scheme)
                wait_until(lambda: engine_digest(ENGINE_ID) in str(text_of(page)), "the connection")
                page.value("document.querySelector('details').open = true")
                assert page.value(CUT) == []
                assert "x" * 100 in text_of(page)
                assert page.value("document.documentElement.scrollWidth") <= width
                colours[scheme] = page.value(COLOURS)
        assert colours["light"] != colours["dark"]


def test_the_page_says_why_workers_were_restarted(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2") as (process, base):
        os.kill(max(process.workers()), signal.SIGKILL)
        process.wait_for_log("died")
        with browser(tmp_path / "browser") as page:
            page.show(f"http://{base}/", 1400, "light")
            wait_until(lambda: "killed by SIGKILL" in str(text_of(page)), "the reason")


def text_of(page: Page) -> Any:
    return page.value("document.body ? document.body.textContent : ''")


def test_the_page_draws_what_happened_before_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spop.server.admin.INTERVAL", 0.05)
    agent = Agent("drawn")
    agent.message("check")(lambda ip: None)
    with (
        agent.serve_in_background(admin="127.0.0.1:0") as server,
        Client(str(server.address)) as client,
        browser(tmp_path / "browser") as page,
    ):
        base = str(server.admin_address)
        for _ in range(10):
            client.notify("check", ip=IPv4Address(1))

        def has_calls() -> bool:
            samples = json.loads(get(base, "/history.json")[1])
            return any(each["p99"] for each in samples) and len(samples) > 2

        wait_until(has_calls, "the samples")
        page.show(f"http://{base}/", 1400, "light")
        points = (
            "[...document.querySelectorAll('polyline')].map(each => each.getAttribute('points'))"
        )
        wait_until(lambda: len(page.value(points)) == 4, "the charts")
        frames, half, most, errors = page.value(points)
        assert frames.count(",") > 2
        assert half
        assert most
        assert set(re.findall(r",([\d.]+)", errors)) == {"98.0"}  # There are none.


def status(when: float, frames: int, errors: int, calls: list[int]) -> Status:
    """A status with these counts; `calls` by the buckets below 1 ms, 1 s and above."""
    bounds = ("0.001", "1.0", "+Inf")
    handler = HandlerCounts(
        "m", calls[-1], errors, 0, 0.0, 0.0, 0.0, 0.0, [*zip(bounds, calls, strict=True)]
    )
    counts = dataclasses.replace(
        Counts(*[0] * len(dataclasses.fields(Counts))), frames_received=frames
    )
    return Status(
        agent="a", time=when, started=0.0, alive=True, ready=True, draining=False, counts=counts,
        limits={}, disconnects={}, handlers=[handler],
    )  # fmt: skip


def test_a_sample_of_the_history_has_the_interval_alone() -> None:
    kept = History()
    kept.add(status(100.0, 1000, 7, [900, 990, 1000]))
    assert kept.to_json() == []
    kept.add(status(105.0, 1500, 17, [1000, 1490, 1500]))
    kept.add(status(110.0, 1500, 17, [1000, 1490, 1500]))
    assert kept.to_json() == [
        dataclasses.asdict(Sample(105.0, 100.0, 2.0, 1.0, 1.0)),
        dataclasses.asdict(Sample(110.0, 0.0, 0.0, None, None)),
    ]


def test_the_history_has_ten_minutes() -> None:
    assert history.INTERVAL * history.LENGTH == 600
    kept = History()
    for n in range(2 * history.LENGTH):
        kept.add(status(n * history.INTERVAL, n, 0, [n, n, n]))
    assert len(kept.to_json()) == history.LENGTH


def test_workers_show_their_own_load(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--processes", "2") as (_, base),
        Client(
            f"unix:{tmp_path}/agent.sock", capabilities=frozenset({Capability.PIPELINING})
        ) as client,
    ):
        for _ in range(3):
            client.notify("check", ip=IPv4Address(1))
        client.send([Message("slow")])
        client.notify("check", ip=IPv4Address(1))
        workers = json.loads(get(base, "/status.json")[1])["workers"]
        assert sorted(each["frames_received"] for each in workers) == [0, 5]
        assert sorted(each["frames_in_hand"] for each in workers) == [0, 1]
        assert all(each["memory_bytes"] > 1 << 20 for each in workers)


def test_the_usage_of_a_process_is_what_it_measures_itself() -> None:
    seconds, before = usage_of(os.getpid()).cpu_seconds, time.process_time()
    while time.process_time() < before + 0.2:
        pass
    assert 0.1 < usage_of(os.getpid()).cpu_seconds - seconds < 2.0
    assert usage_of(1 << 30) == (0.0, 0)


@pytest.mark.parametrize("type_", [Status, Counts, HandlerCounts, WorkerStatus, Sample])
def test_every_field_of_the_json_is_documented(type_: type[Any]) -> None:
    documented = set(re.findall(r"`(\w+)`", DOCS.read_text()))
    assert {field.name for field in dataclasses.fields(type_)} <= documented
