"""Calls of the clients, per second of their own CPU, against the agent in C.

python benchmarks/clients.py
"""

from __future__ import annotations

import asyncio
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator

from frames import compile_c
from running import free_port, pin, running, sink_command

from spop import AsyncClient, Client, Message

ADDRESS = ipaddress.IPv4Address("192.0.2.10")
MESSAGE = Message("check-client-ip", ip=ADDRESS)


def one_thread(address: str, seconds: float) -> int:
    """Client, one thread"""
    end, calls = time.monotonic() + seconds, 0
    with Client(address) as client:
        while time.monotonic() < end:
            client.notify([MESSAGE])
            calls += 1
    return calls


def many_threads(address: str, seconds: float) -> int:
    """Client, 16 threads"""
    end, counts = time.monotonic() + seconds, [0] * 16
    with Client(address, maximum=4) as client:

        def call(number: int) -> None:
            while time.monotonic() < end:
                client.notify([MESSAGE])
                counts[number] += 1

        threads = [threading.Thread(target=call, args=(n,)) for n in range(len(counts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sum(counts)


def batches(address: str, seconds: float) -> int:
    """Client, notify_many of 100"""
    end, calls, batch = time.monotonic() + seconds, 0, [MESSAGE] * 100
    with Client(address) as client:
        while time.monotonic() < end:
            calls += len(client.notify_many(batch))
    return calls


def one_task(address: str, seconds: float) -> int:
    """AsyncClient, one task"""
    return asyncio.run(_tasks(address, seconds, 1))


def many_tasks(address: str, seconds: float) -> int:
    """AsyncClient, 100 tasks"""
    return asyncio.run(_tasks(address, seconds, 100))


async def _tasks(address: str, seconds: float, count: int) -> int:
    end, calls = time.monotonic() + seconds, 0

    async def call() -> None:
        nonlocal calls
        while time.monotonic() < end:
            await client.notify([MESSAGE])
            calls += 1

    async with AsyncClient(address, maximum=4) as client:
        await asyncio.gather(*(call() for _ in range(count)))
    return calls


WAYS: tuple[Callable[[str, float], int], ...] = (
    one_thread, many_threads, batches, one_task, many_tasks,
)  # fmt: skip


def measure(seconds: float = 1.0) -> Iterator[tuple[str, float, float]]:
    """Way, calls a second, µs of the client's CPU for each."""
    port = free_port()
    with running(sink_command(port), port):
        for way in WAYS:
            started, cpu = time.monotonic(), time.process_time()
            calls = way(f"127.0.0.1:{port}", seconds)
            used, took = time.process_time() - cpu, time.monotonic() - started
            yield str(way.__doc__), calls / took, used / calls * 1e6


def table(rows: list[tuple[str, float, float]]) -> str:
    lines = ["| | calls/s | CPU per call |", "|---|---|---|"]
    lines += [f"| {way} | {rate:,.0f} | {cost:.1f} µs |" for way, rate, cost in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    compile_c()
    pin(1)
    print(table(list(measure())))
