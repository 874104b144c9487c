"""A real HAProxy in front: what its filter and the agent add to a request.

    python benchmarks/in_front.py

Requests go one after the other over one connection, in turns to a frontend with the filter and
to one without. HAProxy is the one in PATH; the figures are medians.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from running import free_port, pin, pinned, running, spop_command

from spop.testing.haproxy import Process, find_haproxy

HAPROXY = """
frontend with
    bind fd@{fd}
    filter spoe engine test config {folder}/spoe.cfg
    http-request return status 200 hdr X-Score %[var(sess.test.ip_score)]

frontend without
    bind 127.0.0.1:{without_port}
    http-request return status 200 hdr X-Score none

backend agents
    mode {mode}
    server agent 127.0.0.1:{agent_port}
"""

SPOE = """
[test]
spoe-agent test
    messages check-client-ip
    option var-prefix test
    timeout hello 2s
    timeout idle 2m
    timeout processing 1s
    use-backend agents

spoe-message check-client-ip
    args ip=src
    event on-frontend-http-request
"""

REQUEST = b"GET / HTTP/1.1\r\nHost: benchmark\r\n\r\n"


class Figures(NamedTuple):
    """Of a request, in µs; and requests a second."""

    without: float
    with_filter: float
    agent_cpu: float
    rate_without: float
    rate_with: float
    version: str


def measure(requests: int = 5000, rounds: int = 5) -> Figures:
    binary = find_haproxy()
    if binary is None:
        sys.exit("HAProxy is not installed")
    agent_port = free_port()
    with (
        running(spop_command(agent_port), agent_port) as agent,
        _haproxy(binary, agent_port) as (ports, version),
    ):
        for port in ports:
            _seconds(port, 200)
        taken: tuple[list[float], list[float]] = ([], [])
        used = 0.0
        for _ in range(rounds):
            taken[1].append(_seconds(ports[1], requests))
            before = agent.cpu_seconds()
            taken[0].append(_seconds(ports[0], requests))
            used += agent.cpu_seconds() - before
        with_filter, without = (statistics.median(each) / requests for each in taken)
        return Figures(
            without * 1e6, with_filter * 1e6, used / rounds / requests * 1e6,
            1 / without, 1 / with_filter, version,
        )  # fmt: skip


def _seconds(port: int, requests: int) -> float:
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = time.perf_counter()
        for _ in range(requests):
            sock.sendall(REQUEST)
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert b"x-score: \r\n" not in answer.lower(), answer
        return time.perf_counter() - started


@contextlib.contextmanager
def _haproxy(binary: str, agent_port: int) -> Iterator[tuple[tuple[int, int], str]]:
    ports = {"agent_port": agent_port, "without_port": free_port()}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        proxy = Process(binary, Path(folder), config=HAPROXY, spoe=SPOE, **ports)
        with pinned(0):
            stack.enter_context(proxy)
        yield (proxy.port, ports["without_port"]), str(proxy.version)


def table(figures: Figures) -> str:
    return "\n".join(
        [
            f"HAProxy {figures.version}, one request after the other:",
            "",
            "| | without the filter | with it | added | agent's CPU |",
            "|---|---|---|---|---|",
            f"| a request | {figures.without:.0f} µs | {figures.with_filter:.0f} µs | "
            f"{figures.with_filter - figures.without:.0f} µs | {figures.agent_cpu:.1f} µs |",
            f"| requests/s | {figures.rate_without:,.0f} | {figures.rate_with:,.0f} | | |",
        ]
    )


if __name__ == "__main__":
    pin(1)
    print(table(measure()))
