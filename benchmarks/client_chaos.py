"""A million calls through one client, over an agent that answers in random order on random
connections and drops connections: each call must end with its own answer or an error.

    python benchmarks/client_chaos.py [CALLS]
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from scripted_agent import ChaoticAgent

from spop import Ack, AsyncClient, Client, SpopError

SETTINGS = {"engine_id": "chaos", "maximum": 8, "max_waiting_frames": 50}


def check(number: int, ack: Ack) -> str:
    return "own answer" if ack.variables["sess.n"] == number else "WRONG ANSWER"


def with_threads(address: str, calls: int, threads: int = 64) -> Counter[str]:
    def call(number: int) -> str:
        try:
            return check(number, client.notify("m", n=number))
        except SpopError as error:
            return type(error).__name__

    def share(first: int) -> Counter[str]:
        return Counter(call(number) for number in range(first, calls, threads))

    with Client(address, **SETTINGS) as client, ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(share, range(threads)), Counter())


async def with_tasks(address: str, calls: int, tasks: int = 1000) -> Counter[str]:
    outcomes: Counter[str] = Counter()

    async def call(client: AsyncClient, numbers: Iterator[int]) -> None:
        for number in numbers:
            try:
                outcomes[check(number, await client.notify("m", n=number))] += 1
            except SpopError as error:
                outcomes[type(error).__name__] += 1

    numbers = iter(range(calls))
    async with AsyncClient(address, **SETTINGS) as client:
        await asyncio.gather(*(call(client, numbers) for _ in range(tasks)))
    return outcomes


def report(kind: str, started: float, outcomes: Counter[str]) -> None:
    print(f"{kind}: {dict(outcomes)} in {time.monotonic() - started:.0f} s")
    if outcomes["WRONG ANSWER"]:
        sys.exit(1)


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for seed, kind in enumerate(("threads", "tasks")):
        with ChaoticAgent(seed, remembers=False) as agent:
            started = time.monotonic()
            if kind == "threads":
                report(kind, started, with_threads(agent.address, calls // 2))
            else:
                report(kind, started, asyncio.run(with_tasks(agent.address, calls // 2)))


if __name__ == "__main__":
    main()
