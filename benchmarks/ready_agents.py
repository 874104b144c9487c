"""What a request costs the ready agents, and what that is made of.

python benchmarks/ready_agents.py

Each agent has one processor, and the load in C has another. The yardstick is an inline handler that
computes nothing, so its row is the cost of a frame.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from frames import CONNECTIONS, compile_c
from kinds import DEPTHS
from running import BUILD, Running, free_port, pin, running, spop_command

from spop.agents import reputation
from spop.agents.limit_stores import Asked, Rule, SharedStore
from spop.agents.networks import Index, build

ROUNDS = 3
PREFIXES = 500_000
"""Of each family."""
LIMIT = '[settings.limits.a]\nrate = "1000000000/s"\nby = ["network"]\nipv4 = 16\n'
"""One key for all addresses of the load."""
ADDRESSES = 1 << 16
"""Of the load."""

KINDS = {
    "a frame: inline `def`": "inline",
    "`reputation`, cached": "reputation",
    "`reputation`, looked up": "reputation without cache",
    "`ratelimit`, from a lease": "ratelimit",
    "`ratelimit`, from the table of the machine": "ratelimit without leases",
    "`ratelimit`, from a lease of Redis": "ratelimit on redis",
    "`ratelimit`, from Redis": "ratelimit on redis without leases",
}


def prefixes(folder: Path) -> str:
    """A file of random networks."""
    choose = random.Random(1)
    path = folder / "networks"
    with path.open("w") as file:
        for _ in range(PREFIXES):
            print(f"{IPv4Address(choose.getrandbits(32))}/{choose.randint(20, 32)}", file=file)
            packed = 0x2A << 120 | choose.getrandbits(100) << 20
            print(f"{IPv6Address(packed)}/{choose.choice([48, 56, 64, 128])}", file=file)
    return str(path)


def timed(work: Iterator[object], count: int) -> float:
    """µs of CPU for each of `count` items."""
    began = time.process_time()
    for _ in work:
        pass
    return (time.process_time() - began) / count * 1e6


def parts(folder: Path) -> Iterator[str]:
    """What the agents' own structures cost, without frames."""
    built = time.process_time()
    build(str(folder / "index"), {"all": prefixes(folder)}, 1.0)
    built = time.process_time() - built
    index = Index.open(folder / "index")
    choose, count = random.Random(2), 200_000
    yield f"A million prefixes, half of them IPv6: {index.bytes / 1e6:.0f} MB, built in {built:.1f} s."
    for name, bits, start in ("IPv4", 32, 0), ("IPv6", 120, 0x2A << 120):
        size = 4 if bits == 32 else 16
        asked = [(start | choose.getrandbits(bits)).to_bytes(size, "big") for _ in range(count)]
        found = min(timed(map(index.find, asked), count) for _ in range(3))
        yield f"A random {name} address is looked up in {found:.2f} µs."
    with contextlib.closing(SharedStore(folder / "table", 1_000_000)) as table:
        question = [Asked("ratelimit:a:192.0.2.10", Rule(1e9, 1, 1e9, False), 1)]
        taken = min(timed((table.take(question) for _ in range(50_000)), 50_000) for _ in range(3))
    yield f"A token is taken from the table of the machine in {taken:.2f} µs."


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    path = folder / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"unix://{path}"
    finally:
        process.kill()
        process.wait()


def serving(kind: str, folder: Path, store: str) -> contextlib.AbstractContextManager[Running]:
    port = free_port()
    if kind == "inline":
        return running(spop_command(port, target="kinds_agent.py"), port, {"KIND": kind})
    settings = f"[settings]\nstate_dir = {json.dumps(str(folder))}\n"
    if kind.startswith("reputation"):
        settings += f"[settings.lists.all]\nsource = {json.dumps(str(folder / 'networks'))}\n"
    elif " on redis" in kind:
        settings += f"store = {json.dumps(store)}\ntimeout = 1.0\n{LIMIT}"
    else:
        settings += LIMIT
    config = folder / f"{kind}.toml"
    config.write_text(settings)
    command = spop_command(port, "--config", str(config), target="ready_agent.py")
    return running(command, port, {"KIND": kind.replace(" on redis", "")})


def exchange(agent: Running, message: str, depth: int, frames: int) -> float:
    """µs of the agent's CPU for a frame. The load misses its own action in all answers but inline's."""
    command = [BUILD / "load", "127.0.0.1", agent.port, CONNECTIONS, depth, frames, message]
    before = agent.cpu_seconds()
    shown = subprocess.run(
        [str(word) for word in command], capture_output=True, preexec_fn=lambda: pin(1)
    )
    assert not json.loads(shown.stdout)["errors"]
    return (agent.cpu_seconds() - before) / frames * 1e6


def measure(folder: Path, scale: float = 0.3) -> dict[tuple[str, int], float]:
    """µs of CPU for a request, by row and frames in flight: medians of the rounds."""
    found: dict[tuple[str, int], list[float]] = {}
    with contextlib.ExitStack() as stack:
        lists = {"all": reputation.NetworkList(str(folder / "networks"))}
        reputation.START = 600.0
        reputation.Lists(reputation.Settings(lists=lists, state_dir=folder)).start()
        has_redis = shutil.which("redis-server") is not None
        store = stack.enter_context(redis_server(folder)) if has_redis else ""
        kinds = {row: kind for row, kind in KINDS.items() if has_redis or " on redis" not in kind}
        agents = {
            row: stack.enter_context(serving(kind, folder, store)) for row, kind in kinds.items()
        }
        exchange(agents["`reputation`, cached"], "reputation", 20, ADDRESSES)  # To be kept.
        for _ in range(ROUNDS):
            for depth, frames in DEPTHS.items():
                for row, agent in agents.items():
                    message = KINDS[row].partition(" ")[0]
                    cost = exchange(agent, message, depth, int(frames * scale))
                    found.setdefault((row, depth), []).append(cost)
    return {key: statistics.median(costs) for key, costs in found.items()}


def table() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shown = list(parts(folder))
        found = measure(folder)
    yield "| CPU for a request | in ping-pong | above a frame | 20 in flight | above a frame |"
    yield "|---|---|---|---|---|"
    first = next(iter(KINDS))
    for row in KINDS:
        if (row, 1) in found:
            costs = [
                (found[row, depth], found[row, depth] - found[first, depth]) for depth in DEPTHS
            ]
            yield f"| {row} | " + " | ".join(f"{a:.1f} µs | {b:.1f} µs" for a, b in costs) + " |"
    yield ""
    yield from shown


if __name__ == "__main__":
    compile_c()
    print("\n".join(table()))
