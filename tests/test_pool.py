"""The pool of threads for blocking handlers, where jobs are expected to be short."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from wire import hello

from spop import Ack, Agent, Client, Message
from spop.server.executor import WARY


@pytest.fixture
def opened() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def agent(opened: threading.Event) -> Agent:
    agent = Agent()
    agent.message("short", blocking=True)(lambda: {"txn.short": True})
    agent.message("wait", blocking=True)(lambda: {"txn.opened": opened.wait(10)})
    agent.message("open", blocking=True)(opened.set)
    return agent


def learn(server: Any) -> None:
    """Run short jobs, until the next is expected to be short, too."""
    with Client(str(server.address)) as client:
        for _ in range(3 * WARY):
            client.notify("short")


def exchange(server: Any, names: list[str], until: int, opened: threading.Event) -> list[Any]:
    """Send messages at once. Opens behind the first `until` of their ACKs.

    If these ACKs wait for a job that waits for this, that job gives up first, and says so.
    """
    sock, protocol = hello(server)
    with sock:
        for stream_id, name in enumerate(names):
            protocol.notify(stream_id, 1, [Message(name)])
        sock.sendall(protocol.data_to_send())
        answers: list[Any] = []
        while len(answers) < len(names):
            answers += protocol.receive_data(sock.recv(4096))
            if len(answers) >= until:
                opened.set()
    return sorted((a.stream_id, a.variables) for a in answers if isinstance(a, Ack))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_job_that_is_not_short_after_all_delays_no_other(
    agent: Agent, opened: threading.Event, threads: int
) -> None:
    with agent.serve_in_background(threads=threads) as server:
        learn(server)
        answers = exchange(server, ["wait", "short", "wait", "open"], 4, opened)
    waited = {"txn.opened": True}
    assert answers == [(0, waited), (1, {"txn.short": True}), (2, waited), (3, {})]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_answers_before_such_a_job_do_not_wait_for_it(
    agent: Agent, opened: threading.Event, threads: int
) -> None:
    with agent.serve_in_background(threads=threads, pool_size=1) as server:
        learn(server)
        answers = exchange(server, ["short", "short", "wait"], 2, opened)
    short = {"txn.short": True}
    assert answers == [(0, short), (1, short), (2, {"txn.opened": True})]
