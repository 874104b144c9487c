"""What a request costs the agents that ask services and models, and what that is made of.

    python benchmarks/http_agents.py

Each agent has one processor. The load and the HTTP service, in Python, have another, and count for
nothing: the figures are the CPU time of all of the agent's processes, for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from running import Running, free_port, pinned, running

from spop import AsyncClient, Headers, Message
from spop.agents.forward_auth import Verdict
from spop.agents.http import client, exchange
from spop.agents.score import feature_of
from spop.agents.score import load as load_model
from spop.agents.tokens import Keys, Tokens, TokenSettings

DEPTHS = (1, 20)
"""Requests at a time."""
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


def settings(folder: Path, port: int) -> dict[str, tuple[str, str, str, dict[str, Any]]]:
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


def serving(folder: Path, agent: str, table: str) -> contextlib.AbstractContextManager[Running]:
    port, config = free_port(), folder / f"{agent}.toml"
    config.write_text(f"[settings]\n{table}")
    command = [
        sys.executable, "-m", "spop", "serve", f"spop.agents.{agent}:agent", "--bind",
        f"127.0.0.1:{port}", "--config", str(config), "--log-level", "error",
    ]  # fmt: skip
    return running(command, port)


async def load(
    address: str,
    message: str,
    arguments: dict[str, Any],
    waits: bool,
    depth: int,
    count: int,
) -> None:
    """Send `count` messages, `depth` at a time. It waits for the service if the ACKs don't."""
    goal = Served.count + count

    async def send() -> None:
        for _ in range(count // depth):
            await client.notify(message, **arguments)

    async with AsyncClient(address, timeout=60.0, hello_timeout=60.0) as client:
        await asyncio.gather(*(send() for _ in range(depth)))
    while waits and Served.count < goal:
        await asyncio.sleep(0.01)


async def measure(count: int = 1000, rounds: int = 3) -> dict[str, list[float]]:
    """µs of CPU for a request by row, at each depth: medians of the rounds."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        server = await asyncio.start_server(service, "127.0.0.1", 0)
        rows = settings(Path(name), server.sockets[0].getsockname()[1])
        for row, (agent, table, message, arguments) in rows.items():
            with serving(Path(name), agent, table) as process, pinned(1):
                send = partial(load, str(process.address), message, arguments, row == SENT_AGAIN)
                await send(20, 200)
                for depth in DEPTHS:
                    costs = []
                    for _ in range(rounds):
                        before = process.cpu_seconds()
                        await send(depth, count)
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


async def parts(folder: Path) -> dict[str, float]:
    """What the agents' own work costs, without frames."""
    found = {}
    rows = settings(folder, port := serve_in_thread())
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


def table(count: int = 1000, rounds: int = 3) -> Iterator[str]:
    found = asyncio.run(measure(count, rounds))
    yield "| CPU for a request | one at a time | 20 at a time |\n|---|---|---|"
    for row, costs in found.items():
        yield f"| {row} | " + " | ".join(f"{cost:.0f} µs" for cost in costs) + " |"
    yield "\n| of that | |\n|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        for row, cost in asyncio.run(parts(Path(folder))).items():
            yield f"| {row} | {cost:.1f} µs |"


if __name__ == "__main__":
    print("\n".join(table()))
