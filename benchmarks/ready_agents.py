"""What a request costs the ready agents, and what that is made of.

python benchmarks/ready_agents.py

Each agent has one processor, and the load has another. Agents of addresses are asked by the load in C;
those that ask services and models by a client in Python, as requests have headers, and the HTTP service
is on the load's processor. The yardstick is an inline handler that computes nothing, so its row is the
cost of a frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from frames import CONNECTIONS, compile_c
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from kinds import DEPTHS
from running import BUILD, HERE, Running, free_port, pin, pinned, running, spop_command

from spop import AsyncClient, Headers, Message
from spop.agents import reputation
from spop.agents.forward_auth import Verdict
from spop.agents.http import client, exchange
from spop.agents.limit_stores import Asked, Rule, SharedStore
from spop.agents.networks import Index, build
from spop.agents.score import feature_of
from spop.agents.score import load as load_model
from spop.agents.tokens import Keys, Tokens, TokenSettings

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


def timed_all(work: Iterator[object], count: int) -> float:
    """µs of CPU for each of `count` items."""
    began = time.process_time()
    for _ in work:
        pass
    return (time.process_time() - began) / count * 1e6


def parts_of_addresses(folder: Path) -> Iterator[str]:
    """What the agents' own structures cost, without frames."""
    built = time.process_time()
    build(str(folder / "index"), {"all": prefixes(folder)}, 1.0)
    built = time.process_time() - built
    index = Index.open(folder / "index")
    choose, count = random.Random(2), 200_000
    yield f"| the index of a million prefixes, half of them IPv6 | {index.bytes / 1e6:.0f} MB |"
    yield f"| … to build it | {built:.1f} s |"
    for name, bits, start in ("IPv4", 32, 0), ("IPv6", 120, 0x2A << 120):
        size = 4 if bits == 32 else 16
        asked = [(start | choose.getrandbits(bits)).to_bytes(size, "big") for _ in range(count)]
        found = min(timed_all(map(index.find, asked), count) for _ in range(3))
        yield f"| a random {name} address is looked up | {found:.2f} µs |"
    with contextlib.closing(SharedStore(folder / "table", 1_000_000)) as table:
        question = [Asked("ratelimit:a:192.0.2.10", Rule(1e9, 1, 1e9, False), 1)]
        taken = min(
            timed_all((table.take(question) for _ in range(50_000)), 50_000) for _ in range(3)
        )
    yield f"| a token is taken from the table of the machine | {taken:.2f} µs |"


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


def serving_addresses(
    kind: str, folder: Path, store: str
) -> contextlib.AbstractContextManager[Running]:
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
    left_out = {"KIND": kind.replace(" on redis", "")}
    return serving(folder, port, str(HERE / "agents" / "ready_agent.py"), settings, left_out)


def serving(
    folder: Path, port: int, module: str, settings: str, environment: dict[str, str] | None = None
) -> contextlib.AbstractContextManager[Running]:
    """An agent with these settings."""
    config = folder / f"{port}.toml"
    config.write_text(settings)
    command = spop_command(port, "--config", str(config), target=f"{module}:agent")
    return running(command, port, environment)


def cost(agent: Running, message: str, depth: int, frames: int) -> float:
    """µs of the agent's CPU for a frame. The load misses its own action in all answers but inline's."""
    command = [BUILD / "load", "127.0.0.1", agent.port, CONNECTIONS, depth, frames, message]
    before = agent.cpu_seconds()
    shown = subprocess.run(
        [str(word) for word in command], capture_output=True, preexec_fn=lambda: pin(1)
    )
    assert not json.loads(shown.stdout)["errors"]
    return (agent.cpu_seconds() - before) / frames * 1e6


def measure_addresses(folder: Path, scale: float = 0.3) -> dict[tuple[str, int], float]:
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
            row: stack.enter_context(serving_addresses(kind, folder, store))
            for row, kind in kinds.items()
        }
        cost(agents["`reputation`, cached"], "reputation", 20, ADDRESSES)  # To be kept.
        for _ in range(ROUNDS):
            for depth, frames in DEPTHS.items():
                for row, agent in agents.items():
                    message = KINDS[row].partition(" ")[0]
                    found.setdefault((row, depth), []).append(
                        cost(agent, message, depth, int(frames * scale))
                    )
    return {key: statistics.median(costs) for key, costs in found.items()}


# --- agents that ask services and models ---

FIELDS = {
    "host": "shop.example", "user-agent": "Mozilla/5.0 (X11; Linux x86_64)", "accept": "*/*",
    "accept-language": "en", "accept-encoding": "gzip, br", "cookie": "session=0123456789abcdef",
}  # fmt: skip
SCORED = {"path": "/shop/cart", "query": "page=2", "method": "GET", "headers": 12}
ANSWER = b"HTTP/1.1 200 OK\r\nX-User: ann\r\nContent-Length: 0\r\n\r\n"
SENT_AGAIN = "… sent again"
KEYS = {
    "RS256": rsa.generate_private_key(65537, 2048), "ES256": ec.generate_private_key(ec.SECP256R1())
}  # fmt: skip


class Served:
    """What the service has answered."""

    count = 0


async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request without a look at it."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            Served.count += 1


def token(algorithm: str) -> str:
    claims = {"iss": "issuer", "aud": "shop", "sub": "ann", "exp": time.time() + 3600}
    return jwt.encode(claims, KEYS[algorithm], algorithm, {"kid": algorithm})


def asked(**more: str) -> dict[str, Any]:
    """The arguments of a message about a request."""
    return {"headers": Headers({**FIELDS, **more}), "method": "GET", "uri": "/shop/cart?page=2"}


def questions(folder: Path, port: int) -> dict[str, tuple[str, str, str, dict[str, Any]]]:
    """By row: the agent, its settings, the message and its arguments."""
    of_rsa = RSAAlgorithm.to_jwk(KEYS["RS256"].public_key(), as_dict=True)
    of_ec = ECAlgorithm.to_jwk(KEYS["ES256"].public_key(), as_dict=True)
    keys = [{**of_rsa, "kid": "RS256"}, {**of_ec, "kid": "ES256"}]
    (folder / "keys.json").write_text(json.dumps({"keys": keys}))
    url = f'url = "http://127.0.0.1:{port}/"\ntimeout = 60.0\n'
    to_application = 'to-application = ["x-user"]\n'
    tokens = (
        f'[settings.jwt]\nkeys = "{folder}/keys.json"\nissuer = "issuer"\naudience = ["shop"]\n'
        'algorithms = ["RS256", "ES256"]\n[settings.jwt.claims]\nsub = "x-user"\n'
    )
    bearer = {name: asked(authorization=f"Bearer {token(name)}") for name in KEYS}
    features = '["path.length", "path.special", "query.length", "method=POST", "headers"]'
    score = f'model = "{folder}/model.joblib"\nfeatures = {features}\n'
    rows = {
        "`forward_auth`: no token, refused": ("forward_auth", tokens, "auth", asked()),
        "… an answer that is kept": (
            "forward_auth", f"{url}{to_application}cache-ttl = 60.0\n", "auth", asked()
        ),
        "… a token, RS256": ("forward_auth", tokens, "auth", bearer["RS256"]),
        "… a token, ES256": ("forward_auth", tokens, "auth", bearer["ES256"]),
        "… the service is asked": ("forward_auth", url + to_application, "auth", asked()),
        "`mirror`: not chosen": ("mirror", f"{url}share = 0.0\n", "mirror", asked()),
        SENT_AGAIN: ("mirror", f"{url}max-pending = 100000\n", "mirror", asked()),
        "`score`: logistic regression": ("score", score, "score", SCORED),
    }  # fmt: skip
    return (
        rows
        if _model(folder / "model.joblib")
        else {k: v for k, v in rows.items() if v[0] != "score"}
    )


def _model(path: Path) -> bool:
    """Make a model. False: there is no scikit-learn."""
    try:
        import joblib
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return False
    joblib.dump(LogisticRegression().fit([[0] * 5, [9] * 5], [0, 1]), path)
    return True


async def load(
    address: str, message: str, arguments: dict[str, Any], depth: int, count: int
) -> None:
    """Send `count` messages, `depth` at a time."""

    async def send() -> None:
        for _ in range(count // depth):
            await client.notify(message, **arguments)

    async with AsyncClient(address, timeout=60.0, hello_timeout=60.0) as client:
        await asyncio.gather(*(send() for _ in range(depth)))


async def measure_questions(count: int = 1000, rounds: int = 3) -> dict[str, list[float]]:
    """µs of CPU for a request by row, at each depth: medians of the rounds."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        server = await asyncio.start_server(service, "127.0.0.1", 0)
        rows = questions(Path(name), server.sockets[0].getsockname()[1])
        for row, (agent, table, message, arguments) in rows.items():
            module, text = f"spop.agents.{agent}", f"[settings]\n{table}"
            with serving(Path(name), free_port(), module, text) as process, pinned(1):
                address = str(process.address)
                await load(address, message, arguments, 20, 200)
                for depth in DEPTHS:
                    costs = []
                    for _ in range(rounds):
                        before, goal = process.cpu_seconds(), Served.count + count
                        await load(address, message, arguments, depth, count)
                        while row == SENT_AGAIN and Served.count < goal:
                            await asyncio.sleep(0.01)  # It works on after the ACK.
                        costs.append((process.cpu_seconds() - before) / count * 1e6)
                    found.setdefault(row, []).append(statistics.median(costs))
        server.close()
    return found


async def timed(work: Callable[[], Awaitable[object]], count: int) -> float:
    """µs of CPU that this thread takes for each call: the median of 5 times `count` calls."""
    found = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(count):
            await work()
        found.append((time.thread_time() - began) / count * 1e6)
    return statistics.median(found)


def serve_in_thread() -> int:
    """The service, in a thread whose time does not count. Returns its port."""
    ports: queue.Queue[int] = queue.Queue()

    async def main() -> None:
        server = await asyncio.start_server(service, "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    threading.Thread(target=asyncio.run, args=[main()], daemon=True).start()
    return ports.get()


async def parts_of_questions(folder: Path) -> dict[str, float]:
    """What the agents' own work costs, without frames."""
    found = {}
    rows = questions(folder, port := serve_in_thread())
    async with client(10, None) as http:

        async def ask() -> object:
            request = httpx.Request("GET", f"http://127.0.0.1:{port}/", headers={"cookie": "a=1"})
            return await exchange(http, request, 10.0, 1024)

        found["an exchange of httpx"] = await timed(ask, 300)
    key_set = (folder / "keys.json").read_bytes()

    async def fetch() -> bytes:
        return key_set

    for algorithm in KEYS:
        given = TokenSettings("keys", "issuer", ["shop"], [algorithm])
        tokens, text = Tokens(given, Keys(fetch, 10.0)), token(algorithm)
        found[f"a token is checked, {algorithm}"] = await timed(partial(tokens.claims, text), 300)

    async def variables() -> object:
        return Verdict(200, "service", "", (("x-user", "ann"),)).answer(["x-user"])

    found["the variables of an answer"] = await timed(variables, 1000)
    if "`score`: logistic regression" in rows:
        names = ["path.length", "path.special", "query.length", "method=POST", "headers"]
        functions = [feature_of(name, 0.0) for name in names]
        predict = load_model(folder / "model.joblib", len(names), -1)
        message = Message("score", SCORED)

        async def features() -> list[float]:
            return [each(message) for each in functions]

        row = await features()
        found["the features of a request"] = await timed(features, 1000)
        for size in (1, 64):

            async def score(size: int = size) -> object:
                return predict([row] * size)

            found[f"the model, for each of {size}"] = await timed(score, 200) / size
    return found


# --- all ---


def rows(folder: Path, count: int, rounds: int) -> Iterator[str]:
    by_depth = measure_addresses(folder)
    costs = {row: [by_depth[row, depth] for depth in DEPTHS] for row, _ in by_depth}
    costs |= asyncio.run(measure_questions(count, rounds))
    frame = next(iter(costs.values()))
    for row, taken in costs.items():
        above = (max(0.0, one - of_frame) for one, of_frame in zip(taken, frame, strict=True))
        cells = (f"{one:.1f} µs | {more:.1f} µs" for one, more in zip(taken, above, strict=True))
        yield f"| {row} | {' | '.join(cells)} |"


def table(count: int = 1000, rounds: int = 3) -> Iterator[str]:
    """One for all agents, then what their own work costs, without frames."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shown = list(parts_of_addresses(folder))
        yield "| CPU for a request | one at a time | above a frame | 20 at a time | above a frame |"
        yield "|---|---|---|---|---|"
        yield from rows(folder, count, rounds)
        shown += [f"| {row} | {one:.3g} µs |" for row, one in _parts(folder).items()]
    yield "\n| of that | |\n|---|---|"
    yield from shown


def _parts(folder: Path) -> dict[str, float]:
    return asyncio.run(parts_of_questions(folder))


if __name__ == "__main__":
    compile_c()
    print("\n".join(table()))
