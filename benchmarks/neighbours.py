"""Latency of a well-behaved peer beside one that misbehaves, as a ratio to its normal value.

    python benchmarks/neighbours.py [--exchanges 20000] [--rounds 5]

One ``spop serve`` answers a client in ping-pong. Rounds without and with each kind of neighbour
alternate; the figures are the medians over the rounds of the 50th and 99th percentile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from spop import Message, codec
from spop.connection import EngineConnection

AGENT = """
import time
from spop import Agent
agent = Agent()

@agent.message("check")
def check(ip): return {"sess.score": ip.packed[-1]}

@agent.message("big")
def big(): return {"sess.x": bytes(15_000)}

@agent.message("slow", blocking=True)
def slow(): time.sleep(1)
"""


def connect(path: str, timeout: float = 10) -> tuple[socket.socket, EngineConnection]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    sock.connect(path)
    protocol = EngineConnection()
    sock.sendall(protocol.data_to_send())
    while protocol.peer is None:
        protocol.receive_data(sock.recv(4096))
    return sock, protocol


class Neighbour(threading.Thread):
    """Goes on with `behave` in a process-wide thread until it is told to stop."""

    def __init__(self, behave: Callable[[str, threading.Event], None], path: str) -> None:
        super().__init__(daemon=True)
        self._behave, self._path = behave, path
        self._stop_it = threading.Event()

    def run(self) -> None:
        while not self._stop_it.is_set():
            with contextlib.suppress(OSError):
                self._behave(self._path, self._stop_it)

    def stop(self) -> None:
        self._stop_it.set()
        self.join(15)


def slow_reader(path: str, stop: threading.Event) -> None:
    """Asks for large answers and reads none of them."""
    sock, _ = connect(path, 0.2)
    with sock:
        with contextlib.suppress(TimeoutError):
            while not stop.is_set():
                sock.send(codec.encode_notify(1, 1, [Message("big")]))
        stop.wait()


def half_open(path: str, stop: threading.Event) -> None:
    """200 connections that say nothing and never end."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.connect(path)
        stop.wait()


def byte_by_byte(path: str, stop: threading.Event) -> None:
    """20 connections that send a NOTIFY a byte at a time."""
    data = codec.encode_notify(1, 1, [Message("check", ip=IPv4Address(1))])
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(path)[0]) for _ in range(20)]
        while not stop.is_set():
            for byte in data:
                for sock in socks:
                    sock.send(bytes([byte]))
                if stop.wait(0.05):
                    return


def hello_flood(path: str, stop: threading.Event) -> None:
    """Connections that say HELLO a thousand times, one after the other."""
    hello = EngineConnection().data_to_send() * 1000
    while not stop.wait(0.001):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(1)
            sock.connect(path)
            with contextlib.suppress(OSError):
                sock.sendall(hello)


def frame_flood(path: str, stop: threading.Event) -> None:
    """NOTIFY frames for a slow handler without end, far more than may be in flight."""
    frames = codec.encode_notify(1, 1, [Message("slow")]) * 500
    sock, _ = connect(path, 0.2)
    with sock:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                sock.send(frames)


NEIGHBOURS = (slow_reader, half_open, byte_by_byte, hello_flood, frame_flood)


def latencies(path: str, exchanges: int) -> list[float]:
    """Seconds of so many exchanges, sorted; no library's work is in them but the socket's."""
    sock, _ = connect(path)
    frame = codec.encode_notify(1, 1, [Message("check", ip=IPv4Address(7))])
    taken = []
    with sock:
        for _ in range(exchanges):
            started = time.perf_counter()
            sock.send(frame)
            sock.recv(4096)
            taken.append(time.perf_counter() - started)
    return sorted(taken)


def percentiles(path: str, exchanges: int) -> tuple[float, float]:
    """The 50th and the 99th percentile in µs, in a process of its own."""
    command = [sys.executable, __file__, "--measure", path, "--exchanges", str(exchanges)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    p50, p99 = map(float, shown.split())
    return p50, p99


@contextlib.contextmanager
def serving() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "agent.py").write_text(AGENT)
        path = f"{folder}/agent.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "spop", "serve", f"{folder}/agent.py:agent", "--log-level",
             "error", "--bind", f"unix:{path}", "--handshake-timeout", "3600"]
        )  # fmt: skip
        try:
            while not os.path.exists(path) or not answers(path):
                time.sleep(0.05)
            yield path
        finally:
            process.terminate()
            process.wait(20)


def answers(path: str) -> bool:
    with contextlib.suppress(OSError):
        connect(path)[0].close()
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exchanges", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        taken = latencies(options.measure, options.exchanges)
        print(taken[len(taken) // 2] * 1e6, taken[len(taken) * 99 // 100] * 1e6)
        return
    print(table(list(measure(options.exchanges, options.rounds))))


def measure(exchanges: int, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Neighbour, and µs: p50 and p99 beside it, p50 and p99 alone."""
    for behave in NEIGHBOURS:
        alone, beside = [], []
        for _ in range(rounds):
            with serving() as path:
                alone.append(percentiles(path, exchanges))
                neighbour = Neighbour(behave, path)
                neighbour.start()
                time.sleep(0.5)
                beside.append(percentiles(path, exchanges))
                neighbour.stop()
        yield (
            behave.__name__.replace("_", " "),
            [
                statistics.median(each[index] for each in rows)
                for rows in (beside, alone)
                for index in (0, 1)
            ],
        )


def table(rows: list[tuple[str, list[float]]]) -> str:
    lines = [
        "| neighbour | p50 | p99 | p50 alone | p99 alone | p99 / alone |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in rows:
        shown = " | ".join(f"{figure:.0f} µs" for figure in figures)
        lines.append(f"| {name} | {shown} | {figures[1] / figures[3]:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
