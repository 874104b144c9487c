"""Rate limits for addresses, networks, headers, paths and users, on one machine or many.

spop serve spop.agents.ratelimit:agent --config spop.toml

The message ``ratelimit`` has the arguments ``ip``, ``path``, ``user`` and ``header``, as far as limits use
them. It sets ``denied``, and what the fields ``Retry-After`` and ``RateLimit-*`` of a response say, all of
scope ``txn``.

Each event loop takes *leases*: tokens of a limit that it took from the store at once and gives to
requests by itself. So most requests do not wait for the store.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal

from redis.asyncio import Redis

from spop import Agent
from spop.agents.limit_stores import PAUSES, Asked, Grant, RedisStore, Rule, SharedStore, StoreError
from spop.agents.state_dir import use_state_dir
from spop.metrics import Counter, Gauge

logger: logging.Logger = logging.getLogger("spop.agents.ratelimit")

PERIODS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LEASE = 0.01
"""The part of a limit that a lease is at most."""
HOT = 1.0
"""Seconds: the next lease is larger if the last one was used up sooner, else it is one token."""
MOST_LEASES = 100_000
"""Number of keys that a loop knows. The oldest one goes first."""
LONGEST_KEY = 100
"""Longer keys are hashed."""


@dataclass
class Limit:
    """A table ``[settings.limits.NAME]``.

    Attributes:
        rate: a number of requests in a time: ``10/s``, ``1000/h``, ``100/15m``.
        by: who has the limit: each combination of these.
        algorithm: ``gcra`` spreads requests over time, ``fixed`` counts them in windows.
        burst: requests at once with ``gcra``; 0: as many as the rate has.
        ipv4, ipv6: prefix lengths of ``network``.
    """

    rate: str
    by: list[Literal["address", "network", "path", "user", "header"]]
    algorithm: Literal["gcra", "fixed"] = "gcra"
    burst: int = 0
    ipv4: int = 24
    ipv6: int = 64

    def __post_init__(self) -> None:
        found = re.fullmatch(r"([1-9]\d{0,9})/([1-9]\d{0,5})?([smhd])", self.rate, re.ASCII)
        if found is None:
            raise ValueError(f'rate: {self.rate!r} is no rate, such as "10/s" or "100/15m"')
        if self.burst < 0 or (self.burst and self.algorithm == "fixed"):
            raise ValueError("burst: it is at least 1, and for gcra alone")
        if not 0 <= self.ipv4 <= 32:
            raise ValueError(f"ipv4: {self.ipv4} is not from 0 to 32")
        if not 0 <= self.ipv6 <= 128:
            raise ValueError(f"ipv6: {self.ipv6} is not from 0 to 128")
        if not self.by or len(set(self.by)) < len(self.by):
            raise ValueError("by: it names one or several different things")
        count, period = int(found[1]), int(found[2] or 1) * PERIODS[found[3]]
        self.rule: Rule = Rule(count, period, self.burst or count, self.algorithm == "fixed")
        self.policy: str = f"{count};w={period}"


@dataclass
class Settings:
    """The table ``[settings]``.

    Attributes:
        limits: a request is denied if one of them denies it; then none of them counts it.
        store: the URL of Redis or Valkey. Without one the limits are those of this machine.
        timeout: seconds after which an answer of the store is too late.
        fail: what happens without the store. ``local``: this machine has its share of each limit.
            ``open``: requests are allowed. ``closed``: they are denied.
        expected_agents: number of machines, for ``local``.
        shadow: no request is denied. ``shadow_denied`` and a metric tell which would be.
        prefix: what keys begin with. Agents with the same one share their limits.
        keys: number of keys that the memory of this machine has room for.
        state_dir: where that memory is.
    """

    limits: dict[str, Limit]
    store: str = field(default="", repr=False)
    timeout: float = 0.01
    fail: Literal["local", "open", "closed"] = "local"
    expected_agents: int = 1
    shadow: bool = False
    prefix: str = "ratelimit"
    keys: int = 1_000_000
    state_dir: Path = Path(tempfile.gettempdir()) / f"spop-ratelimit-{os.getuid()}"

    def __post_init__(self) -> None:
        if not self.limits:
            raise ValueError("limits: there is none")
        for name in self.limits:  # With a ":" keys of two limits could be the same.
            if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
                raise ValueError(f"limits: {name!r} is no name: letters, digits, '_', '-' and '.'")
        for name, low in {"expected_agents": 1, "keys": 8}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: it is {getattr(self, name)}, {low} at least")
        if not self.timeout > 0:
            raise ValueError(f"timeout: it is {self.timeout} s, and must be more than 0")
        if self.store:
            try:
                Redis.from_url(self.store).connection_pool.make_connection()  # type: ignore[no-untyped-call]
            except (ValueError, TypeError) as error:  # TypeError: an option that there is not.
                raise ValueError(f"store: {error}") from None


agent: Agent = Agent(name="ratelimit", config=Settings)
allowed: Counter = agent.counter("ratelimit_requests", "Requests, by answer.", answer="allowed")
denied: Counter = agent.counter("ratelimit_requests", "Requests, by answer.", answer="denied")
shadowed: Counter = agent.counter(
    "ratelimit_requests", "Requests, by answer.", answer="shadow_denied"
)
asked_store: Counter = agent.counter("ratelimit_store_requests", "Questions to the store.")
failed_store: Counter = agent.counter(
    "ratelimit_store_failures", "Questions that it did not answer in time."
)
store_down: Gauge = agent.gauge(
    "ratelimit_store_down", "1 while a process has no answer of the store."
)
forgotten: Counter = agent.counter(
    "ratelimit_forgotten_keys", "Keys in use that the memory had no room for."
)


class Lease:
    """What a loop knows about a key.

    Attributes:
        tokens: those that are left of the lease.
        until: when they end, with a window.
        denied_until: when the store has a token again. Times are those of the monotonic clock.
        asking: a question for more than one token is on its way.
    """

    def __init__(self, name: str, limit: Limit, key: str) -> None:
        self.name: str = name
        self.limit: Limit = limit
        self.key: str = key
        self.tokens: int = 0
        self.until: float = 0.0
        self.denied_until: float = 0.0
        self.asking = False
        self._most = max(1, int(LEASE * min(limit.rule.amount, limit.rule.burst)))
        self._size = 1
        self._leased = -math.inf
        self._free, self._reset = 0, 0.0

    def take(self, now: float) -> bool:
        """Use a token of the lease, if it has one."""
        if self.tokens and now < self.until:
            self.tokens -= 1
            return True
        self.tokens = 0
        return False

    def next_size(self, now: float) -> int:
        """Number of tokens to ask for: more and more while they are used up quickly."""
        if self.asking:
            return 1
        hot = now - self._leased < HOT
        self._size = min(2 * self._size, self._most) if hot else 1
        return self._size

    def granted(self, grant: Grant, began: float, now: float) -> None:
        """The store, which was asked at `began`, has answered."""
        self._free, self._reset = grant.free, now + grant.reset
        if grant.tokens:  # A lease ends before its window does by the store's clock.
            self.until = began + grant.reset if self.limit.rule.fixed else math.inf
            self.tokens, self._leased = self.tokens + grant.tokens, now
        elif not grant.free:
            self.denied_until = now + grant.wait

    @property
    def remaining(self) -> int:
        return self._free + self.tokens

    def reset(self, now: float) -> int:
        return max(0, math.ceil(self._reset - now))


class Limiter:
    """The limits of one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        told = json.dumps([settings.prefix, settings.keys, asdict(settings)["limits"]])
        name = hashlib.sha256(told.encode()).hexdigest()[:16]
        use_state_dir(settings.state_dir)
        self._shared = SharedStore(settings.state_dir / f"{name}.limits", settings.keys)
        self._remote = RedisStore(settings.store, settings.timeout) if settings.store else None
        self._leases: dict[str, Lease] = {}

    async def close(self) -> None:
        if self._remote is not None:
            await self._remote.close()
        self._shared.close()

    async def check(self, parts: dict[str, str | None]) -> tuple[Lease | None, float]:
        """The limit that says most about a request, and for how many seconds it denies it; 0.0 if
        all limits allow it. None is such a limit where none is for this request, or has to be."""
        now = time.monotonic()
        leases = [
            self._lease(name, limit, key)
            for name, limit in self._settings.limits.items()
            if (key := _key(name, limit, parts)) is not None
        ]
        refusing = max(leases, key=lambda each: each.denied_until, default=None)
        if refusing is None or refusing.denied_until > now:
            return refusing, refusing.denied_until - now if refusing else 0.0
        missing = [each for each in leases if not each.take(now)]
        if missing:
            taken = [each for each in leases if each not in missing]
            wait = await self._ask(missing, taken, now)
            if wait is None:
                return None, 0.0
            if wait > 0:
                return max(missing, key=lambda each: each.denied_until), wait
        return min(leases, key=lambda each: each.remaining), 0.0

    async def _ask(self, missing: list[Lease], taken: list[Lease], now: float) -> float | None:
        """Ask the store for tokens, and use one of each. Returns the seconds to wait if it denies them,
        or None if it is gone and requests are allowed. Then `taken` get their tokens back."""
        asked = [Asked(each.key, each.limit.rule, each.next_size(now)) for each in missing]
        asking = [each for each, (*_, size) in zip(missing, asked, strict=True) if size > 1]
        for each in asking:
            each.asking = True
        try:
            grants = await self._take(asked)
        except StoreError:
            self._give_back(taken)
            return None if self._settings.fail == "open" else 1.0
        finally:
            for each in asking:
                each.asking = False
        for each, grant in zip(missing, grants, strict=True):
            each.granted(grant, now, time.monotonic())
            each.tokens -= grant.tokens > 0
        if all(grant.tokens for grant in grants):
            return 0.0
        self._give_back(taken)
        return max(grant.wait for grant in grants if not grant.free)

    def _give_back(self, taken: list[Lease]) -> None:
        for each in taken:
            each.tokens += 1

    async def _take(self, asked: Sequence[Asked]) -> list[Grant]:
        """Ask the store. Without it, this machine's memory has a share of each limit.

        Raises:
            StoreError: `fail` is not "local".
        """
        if self._remote is None:
            return self._take_here(asked)
        asked_store.add()
        failed = self._remote.fails
        try:
            grants = await self._remote.take(asked)
        except StoreError as error:
            failed_store.add()
            if not failed:
                store_down.set(1)
                logger.error("the store fails: %s; %s", error, self._instead())
            if self._settings.fail != "local":
                raise
            agents = self._settings.expected_agents
            asked = [each._replace(rule=each.rule.share(agents)) for each in asked]
            # A denial here may not outlast the store's absence.
            return [
                each._replace(wait=min(each.wait, PAUSES[1])) for each in self._take_here(asked)
            ]
        if failed and not self._remote.fails and store_down.value:
            store_down.set(0)
            logger.warning("the store answers again")
        return grants

    def _take_here(self, asked: Sequence[Asked]) -> list[Grant]:
        before = self._shared.forgotten
        grants = self._shared.take(asked)
        if self._shared.forgotten > before:
            forgotten.add(self._shared.forgotten - before)
        return grants

    def _instead(self) -> str:
        return {
            "local": f"this machine grants 1/{self._settings.expected_agents} of each limit",
            "open": "requests are allowed",
            "closed": "requests are denied",
        }[self._settings.fail]

    def _lease(self, name: str, limit: Limit, key: str) -> Lease:
        key = f"{self._settings.prefix}:{key}"
        lease = self._leases.get(key)
        if lease is None:
            if len(self._leases) >= MOST_LEASES:
                del self._leases[next(iter(self._leases))]
            lease = self._leases[key] = Lease(name, limit, key)
        return lease


def _key(name: str, limit: Limit, parts: dict[str, str | None]) -> str | None:
    """Who a request counts for; None if the request lacks a part of that."""
    found = [parts[each] if each != "network" else _network(limit, parts) for each in limit.by]
    texts = [each for each in found if each is not None]
    if len(texts) < len(found):
        return None
    # With their lengths, as a user could choose a text that joins to another's key.
    key = texts[0] if len(texts) == 1 else ",".join(f"{len(each)}:{each}" for each in texts)
    if len(key) > LONGEST_KEY:
        key = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    return f"{name}:{key}"


def _network(limit: Limit, parts: dict[str, str | None]) -> str | None:
    address = parts["address"]
    if address is None:
        return None
    ip = IPv6Address(address) if ":" in address else IPv4Address(address)
    length = limit.ipv6 if ip.version == 6 else limit.ipv4
    bits = ip.max_prefixlen - length
    return f"{type(ip)(int(ip) >> bits << bits)}/{length}"


@agent.lifespan
async def resources() -> AsyncIterator[dict[str, Limiter]]:
    limiter = Limiter(agent.config)
    yield {"limiter": limiter}
    await limiter.close()


@agent.message(
    "ratelimit",
    sets=[f"txn.{each}" for each in
          ("denied", "shadow_denied", "limit", "policy", "remaining", "reset", "retry_after")],
)  # fmt: skip
async def ratelimit(
    ip: IPv4Address | IPv6Address | None = None,
    path: str | None = None,
    user: str | None = None,
    header: str | None = None,
) -> dict[str, Any]:
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    address = None if ip is None else str(ip)
    parts = {"address": address, "path": path, "user": user, "header": header}
    lease, wait = await agent.state["limiter"].check(parts)
    shadow = agent.config.shadow
    (allowed if not wait else shadowed if shadow else denied).add()
    answer: dict[str, Any] = {
        "txn.denied": wait > 0 and not shadow,
        "txn.shadow_denied": wait > 0 and shadow,
    }
    answer["txn.retry_after"] = math.ceil(wait) if wait else None
    if lease is not None:
        answer["txn.limit"] = lease.name
        answer["txn.policy"] = lease.limit.policy
        answer["txn.remaining"] = 0 if wait else lease.remaining
        answer["txn.reset"] = math.ceil(wait) if wait else lease.reset(time.monotonic())
    return answer
