"""/metrics, /healthz, /readyz and the status page, of one process and of several."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, served, wait_until_serving

from spop import Agent, Client, Message, RefusedError, SpopError
from spop.address import Address
from spop.constants import Capability
from spop.frames import engine_digest
from spop.server.admin import AdminServer
from spop.server.health import Health
from spop.server.listeners import listen
from spop.server.status import Status

AGENT = """
from ipaddress import IPv4Address
import time, os
from spop import Agent, Cache

agent = Agent("shown <b>")

@agent.message("check")
def check(ip: IPv4Address):
    return {"txn.pid": os.getpid()}

@agent.message("slow", blocking=True)
def slow():
    time.sleep(30)

@agent.message("broken")
def broken():
    raise ValueError("no")

@agent.message("kept", cache=Cache(ttl=60, size=10))
def kept(ip: IPv4Address):
    return {"txn.kept": True}
"""


@pytest.fixture
def agent() -> Agent:
    agent = Agent("inside")

    @agent.message("check")
    def check(ip: IPv4Address) -> dict[str, Any]:
        return {"txn.score": ip.packed[-1]}

    return agent


def get(base: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{base}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(base: str) -> dict[tuple[str, ...], float]:
    """Each sample by name and label values, in the labels' order."""
    _, text = get(base, "/metrics")
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextlib.contextmanager
def serving(tmp_path: Path, *options: str) -> Iterator[tuple[Served, str]]:
    """The process, and where its admin is."""
    path = tmp_path / "shown_agent.py"
    path.write_text(AGENT)
    with served(
        "--bind", f"unix:{tmp_path}/agent.sock", "--admin", "127.0.0.1:0", *options,
        target=f"{path}:agent",
    ) as process:  # fmt: skip
        wait_until_serving(process)
        found = re.search(r"admin on (\S+)", process.log)
        assert found, process.log
        yield process, found[1]


def test_the_pages_of_a_server_in_a_program(agent: Agent) -> None:
    with (
        agent.serve_in_background(admin="127.0.0.1:0") as server,
        Client(str(server.address), engine_id="e") as client,
    ):
        client.notify("check", ip=IPv4Address(1))
        base = str(server.admin_address)
        assert get(base, "/healthz") == (200, "ok\n")
        assert get(base, "/readyz") == (200, "ready\n")
        assert get(base, "/nothing")[0] == 404
        assert "<title>spop</title>" in get(base, "/")[1]
        status = json.loads(get(base, "/status.json")[1])
        assert status["handlers"][0]["calls"] == 1
        assert status["connections"][0]["engine"] == engine_digest("e")
        assert metrics(base)["spop_message_duration_seconds_count", "check"] == 1
    with pytest.raises(OSError, match="refused"):
        get(base, "/healthz")


@pytest.fixture
def waiting() -> Iterator[tuple[Agent, threading.Event]]:
    """An agent whose handler of ``wait`` returns once an event is set."""
    agent, go_on = Agent("waiting"), threading.Event()

    @agent.message("wait", blocking=True)
    def wait(ip: IPv4Address) -> None:
        go_on.wait(30)

    yield agent, go_on
    go_on.set()


def test_page_metrics_and_log_tell_the_same(waiting: tuple[Agent, threading.Event]) -> None:
    """An ACK that nobody was left to take is in nobody's hands."""
    agent, _ = waiting
    with agent.serve_in_background(admin="127.0.0.1:0", drain_timeout=0.0) as server:
        base = str(server.admin_address)
        with Client(str(server.address)) as client:
            client.send([Message("wait", ip=IPv4Address(1))])
            wait_until(lambda: counts(base)["running"] == 1, "the handler")
            assert counts(base)["frames_in_hand"] == metrics(base)["spop_frames_in_hand",] == 1
            assert str(server.status()).endswith("1 in hand, 0 queued, 1 running")
        wait_until(lambda: counts(base)["acks_dropped"] == 1, "the loss")
        assert counts(base)["frames_in_hand"] == metrics(base)["spop_frames_in_hand",] == 0
        assert str(server.status()).endswith("0 in hand, 0 queued, 1 running")


def test_a_message_that_lacks_an_argument_counts_as_its_handlers_error_alone(
    waiting: tuple[Agent, threading.Event],
) -> None:
    """Beside one that is handled elsewhere, too."""
    agent, go_on = waiting
    agent.message("check")(lambda ip: {"txn.score": 1})
    go_on.set()
    with (
        agent.serve_in_background(admin="127.0.0.1:0") as server,
        Client(str(server.address)) as client,
    ):
        client.notify([Message("check"), Message("wait", ip=IPv4Address(1)), Message("wait")])
        base = str(server.admin_address)
        status = json.loads(get(base, "/status.json")[1])
        assert {each["name"]: each["errors"] for each in status["handlers"]} == {
            "wait": 1,
            "check": 1,
        }
        assert status["counts"]["frames_received"] == status["counts"]["frames_sent"] == 1
        assert status["counts"]["frames_in_hand"] == 0


def test_messages_without_a_handler_are_counted_by_name(agent: Agent) -> None:
    with (
        agent.serve_in_background(admin="127.0.0.1:0", threads=2) as server,
        Client(str(server.address)) as client,
    ):
        client.notify([Message("who"), Message("check", ip=IPv4Address(1)), Message("who")])
        base = str(server.admin_address)
        assert json.loads(get(base, "/status.json")[1])["without_handler"] == {"who": 2}


def counts(base: str) -> dict[str, int]:
    return dict(json.loads(get(base, "/status.json")[1])["counts"])


def test_the_status_is_the_same_after_it_was_json(agent: Agent) -> None:
    with (
        agent.serve_in_background() as server,
        Client(str(server.address)) as client,
    ):
        client.notify("check", ip=IPv4Address(1))
        status = server.status()
        again = Status.from_json(json.loads(json.dumps(status.to_json())))
    assert again.counts == status.counts
    assert again.limits == status.limits
    assert again.disconnects == status.disconnects
    assert again.handlers[0].p99 == status.handlers[0].p99
    assert str(again) == str(status)


def test_sigusr1_logs_the_status(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--processes", "2") as (process, _),
        Client(f"unix:{tmp_path}/agent.sock") as client,
    ):
        client.notify("check", ip=IPv4Address(1))
        process.send_signal(signal.SIGUSR1)
        process.wait_for_log("2 workers, 1 connections, 1 frames, 0 in hand, 0 queued, 0 running")
        assert "agent 'shown <b>' is ready, up for" in process.log


def is_answered(client: Client) -> bool:
    try:
        return client.notify("check", ip=IPv4Address(1)).variables == {"txn.score": 1}
    except (SpopError, OSError):
        return False


def is_refused(address: str) -> bool:
    try:
        with Client(address):
            return False
    except RefusedError:
        return True


class Death(BaseException):
    pass


@pytest.mark.parametrize("dead", ["spop-loop-0", "spop-loop-1"])
def test_a_server_in_a_program_ends_with_a_thread_that_dies_and_raises_it_in_the_end(
    agent: Agent, dead: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(Death) as raised,
        agent.serve_in_background(admin="127.0.0.1:0", threads=2) as server,
        contextlib.ExitStack() as stack,
    ):
        address = str(server.address)
        clients = [stack.enter_context(Client(address)) for _ in range(2)]
        assert all(map(is_answered, clients))  # One in each loop.
        assert server.failed is None
        kill(dead)
        server.connections()  # Wakes the loops.
        base = str(server.admin_address)
        wait_until(lambda: get(base, "/healthz")[0] == 503, "the end of health")
        assert get(base, "/readyz")[0] == 503
        wait_until(lambda: is_refused(address), "the end of accepting")
        wait_until(lambda: not server.connections(), "the end of the connections")
        assert not any(map(is_answered, clients))
    assert server.failed is raised.value
    assert f"{dead} died" in caplog.text
    assert not any(thread.name.startswith("spop-") for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError, Death), (KeyboardInterrupt, KeyboardInterrupt)]
)
def test_what_a_server_failed_of_comes_before_the_errors_that_follow_from_it(
    agent: Agent, error: type[BaseException], expected: type[BaseException]
) -> None:
    with pytest.raises(expected), agent.serve_in_background() as server:
        kill("spop-loop-0")
        server.connections()
        wait_until(lambda: server.failed is not None, "the death")
        raise error


def kill(name: str) -> None:
    """Have a thread die when it runs Python code the next time."""
    (thread,) = (thread for thread in threading.enumerate() if thread.name == name)
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Death)
    )


def test_metrics_are_right_over_processes(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    with serving(tmp_path, "--processes", "3", "--threads", "2") as (_, base):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(address)) for _ in range(12)]
            for _ in range(5):
                for client in clients:
                    client.notify("check", ip=IPv4Address(1))
            clients[0].notify([Message("broken"), Message("nobody")])
            found = metrics(base)
            assert found["spop_frames_received_total",] == 61
            assert found["spop_frames_sent_total",] == 61
            assert found["spop_message_duration_seconds_count", "check"] == 60
            assert found["spop_message_duration_seconds_bucket", "+Inf", "check"] == 60
            assert 0 < found["spop_message_duration_seconds_sum", "check"] < 10
            assert found["spop_message_errors_total", "broken"] == 1
            assert found["spop_unknown_messages_total",] == 1
            assert found["spop_connections",] == 12
            assert found["spop_workers", "ready"] == 3
            assert found["spop_received_bytes_total",] > 61 * 10
            status = json.loads(get(base, "/status.json")[1])
            assert len(status["connections"]) == 12
            assert status["without_handler"] == {"nobody": 1}
            assert sum(worker["connections"] for worker in status["workers"]) == 12
        wait_until(lambda: metrics(base)["spop_connections",] == 0, "the connections' end")
        assert metrics(base)["spop_disconnects_total", "peer", "0"] == 12


def test_counts_outlive_the_worker_that_made_them(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    with serving(tmp_path) as (process, base):
        client = Client(address)
        client.connect()
        pid = client.notify("check", ip=IPv4Address(1)).variables["txn.pid"]
        client.send([Message("slow")])
        client.notify("check", ip=IPv4Address(1))
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)
        process.wait_for_log("1 frames lost")
        wait_until(lambda: metrics(base)["spop_ready",] == 1, "the new worker")
        client.close()
        found = metrics(base)
        assert found["spop_frames_received_total",] == 3
        assert found["spop_message_duration_seconds_count", "check"] == 2
        assert found["spop_frames_lost_total",] == 1
        assert found["spop_worker_restarts_total",] == 1
        assert found["spop_connections",] == 0
        process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: (
                len(json.loads(get(base, "/status.json")[1])["workers"]) == 1
                and metrics(base)["spop_ready",] == 1
            ),
            "the replacement",
        )
        assert metrics(base)["spop_frames_received_total",] == 3


def test_readiness_ends_when_the_service_stops(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--drain-timeout", "30") as (process, base),
        Client(f"unix:{tmp_path}/agent.sock") as client,
    ):
        client.send([Message("slow")])
        client.notify("check", ip=IPv4Address(1))
        assert get(base, "/readyz")[0] == 200
        process.terminate()
        wait_until(lambda: get(base, "/readyz")[0] == 503, "not being ready")
        assert get(base, "/healthz")[0] == 200


def test_an_admin_process_that_dies_is_started_again(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, base):
        workers = {each["pid"] for each in json.loads(get(base, "/status.json")[1])["workers"]}
        (admin,) = set(process.workers()) - workers
        os.kill(admin, signal.SIGKILL)
        process.wait_for_log("the admin process died")
        wait_until(lambda: healthy(base), "the new admin process")


def healthy(base: str) -> bool:
    with contextlib.suppress(OSError):
        return get(base, "/healthz")[0] == 200
    return False


def test_an_admin_address_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with served("--bind", f"unix:{tmp_path}/s", "--admin", address) as process:
            assert process.wait(10) == 2
            process.wait_for_log(f"cannot listen on {address}")


def test_the_status_page_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    address = f"unix:{tmp_path}/agent.sock"
    with (
        serving(tmp_path, "--processes", "2") as (_, base),
        Client(address, engine_id="<i>", capabilities=frozenset({Capability.ASYNC})) as client,
    ):
        client.notify("check", ip=IPv4Address(1))
        client.notify("broken")
        shown = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--disable-quic", f"--user-data-dir={tmp_path}/browser",
             "--virtual-time-budget=5000", "--dump-dom", f"http://{base}/"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
    text = re.sub(r"\s+", " ", re.sub(r"<(?!b&gt;)[^>]*>", " ", shown.partition("<body>")[2]))
    assert "shown &lt;b&gt; ready" in text
    assert re.search(r"check 1 0 0 \S+ [µm]s", text)
    assert re.search(r"broken 1 1 0", text)
    assert f"HAProxy 1.8 to 3.0 2.0 async, fragmentation {engine_digest('<i>')}" in text
    assert len(re.findall(r"\d+ ready \d+ s", text)) == 2


def test_pages_that_end_as_they_begin_close_their_socket() -> None:
    class Nothing:
        def status(self, *, connections: bool) -> Status | None:
            return None

        def health(self) -> Health:
            raise NotImplementedError

    for _ in range(20):
        listener = listen(Address.parse("127.0.0.1:0"))
        pages = AdminServer(listener, Nothing())
        pages.start()
        pages.stop()
        assert listener.fileno() == -1
