"""Latency of a well-behaved peer beside one that misbehaves, as a ratio to its normal value.

    python benchmarks/neighbours.py [--exchanges 20000] [--rounds 5] [NAME]...

One ``spop serve`` answers a client in ping-pong. Rounds without and with each kind of neighbour
alternate; the figures are the medians over the rounds of the 50th and 99th percentile and of the
longest exchange. The agent has one processor, the client and its neighbour share another. With the
right to do so all run at real-time priorities, the neighbour below the client, as in ``floods.py``.
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
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from running import pin, pinned, real_time

from spop import Message, codec
from spop.connection import EngineConnection
from spop.constants import FrameType

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

@agent.message("need")
def need(number): pass
"""


def connect(
    path: str, timeout: float = 10, **options: int
) -> tuple[socket.socket, EngineConnection]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    sock.connect(path)
    protocol = EngineConnection(**options)
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
        with real_time(1):
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


def sends(data: bytes) -> Callable[[str, threading.Event], None]:
    """A connection with the largest frames that sends the same again and again, and reads."""

    def behave(path: str, stop: threading.Event) -> None:
        sock, _ = connect(path, 0.2, max_frame_size=MIB)
        reader = threading.Thread(target=discard, args=[sock, stop], daemon=True)
        reader.start()
        with sock:
            left = memoryview(data)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    left = left[sock.send(left) :] or memoryview(data)
            reader.join()

    return behave


def discard(sock: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                sock.recv(MIB)


def raw(type_: int, flags: int, payload: bytes = b"") -> bytes:
    return bytes(codec.encode_raw_frame(type_, flags, 1, 1, payload))


def fragments(payload: bytes, size: int) -> bytes:
    """A payload in fragments of a size."""
    cuts = range(size, len(payload), size)
    further = b"".join(raw(FrameType.UNSET, 0, payload[cut : cut + size]) for cut in cuts)
    return raw(FrameType.NOTIFY, 0, payload[:size]) + further + raw(FrameType.UNSET, 1)


def control_flood(path: str, stop: threading.Event) -> None:
    """HELLOs, each with as many items as a frame may have."""
    items = {f"{number}": None for number in range(2500)}
    hello = codec.encode_control(FrameType.HAPROXY_HELLO, items)
    while not stop.is_set():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(1)
            sock.connect(path)
            with contextlib.suppress(OSError):
                sock.sendall(hello)
                sock.recv(4096)


MIB = 2**20


def argument(size: int) -> bytes:
    """A message with an argument of so many bytes."""
    return b"\4need\1\6number\x09" + codec.encode_varint(size) + bytes(size)


WORST = {
    "tiny frames": raw(FrameType.NOTIFY, 1) * 20_000,
    "unknown frames": raw(77, 1) * 20_000,
    "unknown messages": raw(FrameType.NOTIFY, 1, bytes(2000)) * 100,
    "failing messages": raw(FrameType.NOTIFY, 1, b"\4need\0" * 1000) * 40,
    "tiny fragments": fragments(argument(20_000), 1),
    "16 MiB, 2-byte messages": fragments(bytes(16 * MIB), 2**16),
    "16 MiB, 1 message": fragments(argument(15 * MIB), 2**16),
}
"""What takes the server longest for its bytes."""
NEIGHBOURS: dict[str, Callable[[str, threading.Event], None]] = {
    "slow reader": slow_reader,
    "half open": half_open,
    "byte by byte": byte_by_byte,
    "hello flood": hello_flood,
    "frame flood": frame_flood,
    "items of HELLO": control_flood,
    **{name: sends(data) for name, data in WORST.items()},
}


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


def percentiles(path: str, exchanges: int) -> list[float]:
    """The 50th and the 99th percentile and the longest in µs, in a process of its own."""
    command = [sys.executable, __file__, "--measure", path, "--exchanges", str(exchanges)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(figure) for figure in shown.split()]


@contextlib.contextmanager
def serving() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "agent.py").write_text(AGENT)
        path = f"{folder}/agent.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "spop", "serve", f"{folder}/agent.py:agent", "--log-level",
             "error", "--bind", f"unix:{path}", "--handshake-timeout", "3600"],
            stderr=subprocess.DEVNULL, preexec_fn=lambda: pin(0),
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
    parser.add_argument("names", nargs="*", default=list(NEIGHBOURS), metavar="NAME")
    parser.add_argument("--measure", metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        taken = latencies(options.measure, options.exchanges)
        for place in (len(taken) // 2, len(taken) * 99 // 100, -1):
            print(taken[place] * 1e6)
        return
    print(table(list(measure(options.exchanges, options.rounds, options.names))))


def measure(
    exchanges: int, rounds: int, names: Iterable[str] = NEIGHBOURS
) -> Iterator[tuple[str, list[float]]]:
    """Neighbour, and µs: p50, p99 and longest beside it, and the same alone."""
    for name in names:
        with real_time(2), pinned(1):
            found = [_round(NEIGHBOURS[name], exchanges) for _ in range(rounds)]
        yield name, [statistics.median(each) for each in zip(*found, strict=True)]


def _round(behave: Callable[[str, threading.Event], None], exchanges: int) -> list[float]:
    with serving() as path:
        alone = percentiles(path, exchanges)
        neighbour = Neighbour(behave, path)
        neighbour.start()
        time.sleep(0.3)
        beside = percentiles(path, exchanges)
        neighbour.stop()
    return beside + alone


def table(rows: list[tuple[str, list[float]]]) -> str:
    lines = [
        "| neighbour | p50 | p99 | longest | p50 alone | p99 alone | longest alone | p99 / alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in rows:
        shown = " | ".join(f"{figure:.0f} µs" for figure in figures)
        lines.append(f"| {name} | {shown} | {figures[1] / figures[4]:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
