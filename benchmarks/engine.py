"""Events of the engine, per second of its own CPU, against the agent in C.

python benchmarks/engine.py [SECONDS]

One engine, one agent, one processor; each event is a stream of its own, made, sent with two
arguments, answered with one variable. The floor is the same exchange without any engine: encode,
send, wait, receive, decode. A ratio is the median of those of the rounds: CPU time of an event, the
kernel's part included, by that of the floor in the same round.

The floor has one frame in flight, so it sleeps and is woken for each. Where the processor is shared,
each wake finds cold caches. Many threads or tasks have many frames in a system call, and may be below
it. The same without any engine is the second row.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from frames import compile_c
from running import free_port, pin, running, sink_command

from spop import Message, codec
from spop.connection import EngineConnection
from spop.engine import AsyncEngine, Engine, Request

SPOE = """\
[benchmark]
spoe-agent benchmark
    messages check-client-ip
    option var-prefix p
    register-var-names ip_score
    timeout hello 1s
    timeout idle 30s
    timeout processing 1s
    use-backend agents

spoe-message check-client-ip
    args ip=src path=path
    event on-frontend-http-request
"""

EVENT = "on-frontend-http-request"
SOURCE = IPv4Address("192.0.2.10")
REQUEST = Request("GET", "/index.html?page=5", headers=[("host", "www.example.org")])


def without_engine(frames: int) -> Callable[[str, Path, float], int]:
    def run(address: str, spoe: Path, seconds: float) -> int:
        host, _, port = address.rpartition(":")
        protocol = EngineConnection(engine_id="floor")
        messages = [Message("check-client-ip", ip=SOURCE, path="/index.html")]
        end, count, rest = time.monotonic() + seconds, 0, b""
        with socket.create_connection((host, int(port))) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(protocol.data_to_send())
            protocol.receive_data(sock.recv(65536))
            while time.monotonic() < end:
                ids = range(count, count + frames)
                sock.sendall(b"".join([codec.encode_notify(each, 1, messages) for each in ids]))
                count += frames
                waiting = frames
                while waiting:
                    data = rest + sock.recv(65536)
                    acks, used = codec.decode_frames(data, 0, len(data), max_frame_size=16380)
                    waiting -= len(acks)
                    rest = data[used:]
        return count

    run.__doc__ = "no engine: one socket" + (f", {frames} in flight" if frames > 1 else "")
    return run


def in_threads(threads: int) -> Callable[[str, Path, float], int]:
    def run(address: str, spoe: Path, seconds: float) -> int:
        counts = [0] * threads
        with Engine.from_file(spoe, "benchmark", backends={"agents": address}) as engine:
            end = time.monotonic() + seconds

            def work(number: int) -> None:
                while time.monotonic() < end:
                    with engine.stream(source=SOURCE, request=REQUEST) as stream:
                        stream.event(EVENT)
                        counts[number] += stream.vars["sess.p.ip_score"] == 10

            workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        return sum(counts)

    run.__doc__ = f"Engine, {threads} thread{'s' if threads > 1 else ''}"
    return run


def in_tasks(tasks: int) -> Callable[[str, Path, float], int]:
    async def work(address: str, spoe: Path, seconds: float) -> int:
        count = 0
        async with AsyncEngine.from_file(spoe, "benchmark", backends={"agents": address}) as engine:
            end = time.monotonic() + seconds

            async def one() -> None:
                nonlocal count
                while time.monotonic() < end:
                    async with engine.stream(source=SOURCE, request=REQUEST) as stream:
                        await stream.event(EVENT)
                        count += stream.vars["sess.p.ip_score"] == 10

            await asyncio.gather(*(one() for _ in range(tasks)))
        return count

    def run(address: str, spoe: Path, seconds: float) -> int:
        return asyncio.run(work(address, spoe, seconds))

    run.__doc__ = f"AsyncEngine, {tasks} task{'s' if tasks > 1 else ''}"
    return run


WAYS = (
    without_engine(1), without_engine(100),
    in_threads(1), in_threads(16), in_threads(64), in_tasks(1), in_tasks(100),
)  # fmt: skip


def measure(seconds: float = 0.3, rounds: int = 9) -> Iterator[tuple[str, float, float]]:
    """Way, µs of CPU for an event, to the floor: medians."""
    with tempfile.TemporaryDirectory() as folder:
        spoe = Path(folder) / "spoe.cfg"
        spoe.write_text(SPOE)
        port = free_port()
        figures: dict[str, list[tuple[float, float]]] = {}
        with running(sink_command(port), port):
            for _ in range(rounds):
                least = 0.0
                for way in WAYS:
                    cpu = time.process_time()
                    count = way(f"127.0.0.1:{port}", spoe, seconds)
                    cost = (time.process_time() - cpu) / count * 1e6
                    least = least or cost
                    figures.setdefault(str(way.__doc__), []).append((cost, cost / least))
    for name, results in figures.items():
        yield name, *(statistics.median(each) for each in zip(*results, strict=True))


def table(rows: list[tuple[str, float, float]]) -> str:
    lines = [
        "| | events per second of CPU | CPU per event | to the floor |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {way} | {1e6 / cost:,.0f} | {cost:.1f} µs | {ratio:.2f} × |"
        for way, cost, ratio in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    compile_c()
    pin(1)
    print(table(list(measure(*map(float, sys.argv[1:2])))))
