"""Latency of a client in ping-pong beside a flood of connections, as a ratio to the agent in C.

    python benchmarks/floods.py [--pairs 9] [--seconds 2]

A flood opens connections, says HELLO on each, reads the answers and closes them, with 1 ms between
two times. The agent has one processor, the flood and the client share another. With the right to do
so all run at real-time priorities, the flood below the client, so that other work of the machine
does not count. The ratio is the median of those of interleaved pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

from running import free_port, pin, real_time, running, sink_command, spop_command

from spop import Message, codec
from spop.connection import EngineConnection

FLOODS = {"a connection at a time": 1, "8 connections at a time": 8}
COMMANDS = {"C": sink_command, "spop": spop_command}
HELLO = bytes(EngineConnection(engine_id="flood").data_to_send())
NOTIFY = bytes(codec.encode_notify(1, 1, [Message("check-client-ip", ip=IPv4Address(7))]))


def flood(port: int, together: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(port)) for _ in range(together)]
            for sock in socks:
                sock.sendall(HELLO)
            for sock in socks:
                sock.recv(4096)
        time.sleep(0.001)


def connect(port: int) -> socket.socket:
    # From many addresses: for a minute, the system keeps the port of each connection that ended.
    source = f"127.1.{random.randrange(256)}.{random.randrange(1, 255)}"
    return socket.create_connection(("127.0.0.1", port), 10, (source, 0))


def latency(port: int, seconds: float) -> float:
    """The 99th percentile in µs."""
    taken = []
    with connect(port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(HELLO)
        sock.recv(4096)
        end = time.perf_counter() + seconds
        while not taken or taken[-1][1] < end:
            began = time.perf_counter()
            sock.sendall(NOTIFY)
            sock.recv(4096)
            ended = time.perf_counter()
            taken.append((ended - began, ended))
    return sorted(each for each, _ in taken)[len(taken) * 99 // 100] * 1e6


def beside(kind: str, together: int, seconds: float) -> float:
    port = free_port()
    with running(COMMANDS[kind](port), port):
        command = [sys.executable, __file__, "--flood", str(port), str(together), str(seconds + 1)]
        with subprocess.Popen(command):
            time.sleep(0.5)
            return latency(port, seconds)


def measure(pairs: int, seconds: float) -> Iterator[tuple[str, list[float]]]:
    """The flood; p99 beside the agent in C and beside spop, in µs, and the ratio."""
    with real_time(2):
        pin(1)
        for name, together in FLOODS.items():
            found = [[beside(kind, together, seconds) for kind in COMMANDS] for _ in range(pairs)]
            medians = [statistics.median(each) for each in zip(*found, strict=True)]
            yield name, [*medians, statistics.median(ours / c for c, ours in found)]


def table(rows: list[tuple[str, list[float]]]) -> str:
    lines = ["| flood | p99, C | p99, spop | ratio |", "|---|---|---|---|"]
    for name, (c, ours, ratio) in rows:
        lines.append(f"| {name} | {c:.0f} µs | {ours:.0f} µs | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--flood"]:
        port, together, seconds = sys.argv[2:]
        with real_time(1):
            flood(int(port), int(together), float(seconds))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    print(table(list(measure(options.pairs, options.seconds))))


if __name__ == "__main__":
    main()
