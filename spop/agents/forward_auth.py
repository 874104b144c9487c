"""Asks an HTTP service whether a request is allowed, as `auth_request` and ForwardAuth do elsewhere.

A request with a token (JWT) is decided here, any other by the service. An answer of 2xx allows a
request. Whatever else happens denies it.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx

from spop import Agent, Headers
from spop.agents.http import (
    HOP_BY_HOP,
    ServiceError,
    check_above,
    check_file,
    check_url,
    client,
    exchange,
    header_names,
)
from spop.agents.tokens import MAX_KEYS_SIZE, Keys, KeysError, TokenError, Tokens, TokenSettings
from spop.errors import reason
from spop.metrics import Counter

logger: logging.Logger = logging.getLogger("spop.agents.forward_auth")

MAX_BODY = 64 * 1024
"""Bytes of the service's answer that are read, so that its connection can be used again."""
KEPT_STATUSES = frozenset({200, 202, 204, 401, 403})
"""Statuses of answers that are kept. Redirects often have a state of their own."""
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

SCHEMES = "http://", "https://"

Field = Literal["method", "proto", "host", "uri", "for"]
Answer = dict[str, object]


@dataclass
class Settings:
    """The table ``[settings]``.

    Attributes:
        url: of the service. Without one only tokens are accepted.
        timeout: seconds for the whole answer of the service.
        pool: number of connections to the service, for each loop.
        ca_file: PEM file of the authorities that the service's certificate may be from.
        send: request headers that the service gets.
        to_application: headers of its answer that the application gets.
        to_client: headers of its answer that the client gets.
        cache_ttl: seconds for which an answer is kept; 0: none is.
        cache_size: number of answers that each loop keeps.
        cache_by: the ``x-forwarded-…`` headers that an answer depends on, besides those of `send`.
        jwt: how tokens are checked; without it the service gets them.
    """

    url: str = ""
    timeout: float = 1.0
    pool: int = 100
    ca_file: Path | None = None
    send: list[str] = field(default_factory=lambda: ["authorization", "cookie"])
    to_application: list[str] = field(default_factory=list)
    to_client: list[str] = field(default_factory=lambda: ["set-cookie", "www-authenticate"])
    cache_ttl: float = 0.0
    cache_size: int = 10_000
    cache_by: list[Field] = field(default_factory=lambda: ["method", "proto", "host", "uri", "for"])
    jwt: TokenSettings | None = None

    def __post_init__(self) -> None:
        if self.url:
            check_url("url", self.url)
        elif self.jwt is None:
            raise ValueError("url: is empty, and there is no table [settings.jwt]")
        check_file("ca_file", self.ca_file)
        check_above(self, 0, "timeout", "pool", "cache_size")
        check_above(self, -1, "cache_ttl")
        self.send = _names("send", self.send)
        self.to_application = _names("to_application", self.to_application)
        self.to_client = _names("to_client", self.to_client)
        if self.jwt is not None:
            if self.jwt.keys.startswith(SCHEMES):
                check_url("jwt.keys", self.jwt.keys)
            header_names("jwt.header", [self.jwt.header])
            names = _names("jwt", self.jwt.claims.values())
            self.jwt.claims = dict(zip(self.jwt.claims, names, strict=True))

    @property
    def application_headers(self) -> list[str]:
        """Headers that the application trusts, so that no client may send them."""
        claims = self.jwt.claims.values() if self.jwt else ()
        return list(dict.fromkeys([*self.to_application, *claims]))


def _names(setting: str, names: Iterable[str]) -> list[str]:
    names = header_names(setting, names)
    for name in names:
        if name in HOP_BY_HOP or name == "host" or name.startswith("x-forwarded-"):
            raise ValueError(
                f"{setting}: {name!r} is set by the agent itself, or can't be passed on"
            )
    return names


# Whatever a handler raises is counted, logged at a limited rate and answered with this.
agent: Agent = Agent(
    "forward-auth",
    config=Settings,
    on_error={"txn.allowed": False, "txn.status": 503, "txn.reason": "failed"},
)
decisions: dict[tuple[str, str], Counter] = {
    (by, result): agent.counter(
        "forward_auth_decisions", "Requests that were decided.", by=by, result=result
    )
    for by in ("token", "service", "cache")
    for result in ("allowed", "denied")
}
key_fetches: Counter = agent.counter("forward_auth_key_fetches", "Fetches of the issuer's keys.")
failed_key_fetches: Counter = agent.counter(
    "forward_auth_key_fetches_failed", "Those of them that failed."
)


class Answers:
    """Answers that are kept for a time. The one that was kept first goes first."""

    def __init__(self, ttl: float, size: int) -> None:
        self._ttl, self._size = ttl, size
        self._kept: dict[bytes, tuple[float, Verdict]] = {}

    def get(self, key: bytes) -> Verdict | None:
        until, verdict = self._kept.get(key, (0.0, None))
        return verdict if time.monotonic() < until else None

    def keep(self, key: bytes, verdict: Verdict) -> None:
        self._kept.pop(key, None)
        if len(self._kept) >= self._size:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = time.monotonic() + self._ttl, verdict


class Verdict(NamedTuple):
    """What becomes of a request.

    Attributes:
        application: headers for the application.
        client: headers for the client.
    """

    status: int
    reason: str = ""
    location: str = ""
    application: tuple[tuple[str, str], ...] = ()
    client: tuple[tuple[str, str], ...] = ()

    @property
    def allowed(self) -> bool:
        return 200 <= self.status < 300

    def answer(self, trusted: list[str]) -> Answer:
        """The variables: lists of headers for HAProxy 3.4, and one for each header before that."""
        return {
            "txn.allowed": self.allowed,
            "txn.status": self.status,
            "txn.reason": self.reason,
            "txn.location": self.location or None,
            "txn.remove": Headers([(name, "") for name in trusted]).names(),
            "txn.application": Headers(self.application),
            "txn.client": Headers(self.client),
            **_variables("txn.application", self.application),
            **_variables("txn.client", self.client),
        }


def _variables(prefix: str, fields: Iterable[tuple[str, str]]) -> Answer:
    """A variable for each header: ``.x_user``, and ``.x_user.2`` for the second of the name."""
    values: Answer = {}
    count: dict[str, int] = {}
    for name, value in fields:
        variable = f"{prefix}.{re.sub('[^a-z0-9]', '_', name)}"
        number = count[variable] = count.get(variable, 0) + 1
        values[variable if number == 1 else f"{variable}.{number}"] = value
    return values


@agent.lifespan
async def resources() -> AsyncIterator[dict[str, Any]]:
    """An HTTP client of each loop, its answers, and the keys for tokens."""
    config: Settings = agent.config
    async with client(config.pool, config.ca_file) as http:
        tokens = None
        if config.jwt is not None:
            tokens = Tokens(config.jwt, Keys(_fetch_of(config.jwt.keys, http), config.jwt.pause))
            try:
                await tokens.keys.refresh()
            except KeysError as error:  # The issuer may come up later than this agent.
                logger.warning("%s", error)
        yield {
            "http": http, "tokens": tokens, "answers": Answers(config.cache_ttl, config.cache_size)
        }  # fmt: skip


@agent.every(300.0, jitter=0.1)
async def refresh_keys() -> None:
    if agent.state["tokens"] is not None:
        await agent.state["tokens"].keys.refresh()


def _fetch_of(keys: str, http: httpx.AsyncClient) -> Any:
    """The function that gets a key set from a URL or a file."""

    async def fetch() -> bytes:
        key_fetches.add()
        try:
            if not keys.startswith(SCHEMES):
                return Path(keys).read_bytes()
            request = httpx.Request("GET", keys, headers={"accept": "application/json"})
            answered = await exchange(http, request, agent.config.timeout, MAX_KEYS_SIZE + 1)
            if answered.status != 200:
                raise OSError(f"status {answered.status}")
            return answered.body
        except (OSError, ServiceError) as error:
            failed_key_fetches.add()
            raise OSError(f"{keys}: {reason(error)}") from error

    return fetch


@agent.message(
    "auth",
    sets=["txn.allowed", "txn.status", "txn.reason", "txn.location", "txn.remove",
          "txn.application", "txn.client"],
)  # fmt: skip
async def auth(
    headers: Headers,
    method: str = "GET",
    https: bool = False,
    host: str = "",
    uri: str = "/",
    ip: IPv4Address | IPv6Address | None = None,
) -> Answer:
    config: Settings = agent.config
    tokens: Tokens | None = agent.state["tokens"]
    token = _token(headers, config.jwt.header) if config.jwt else ""
    if tokens is not None and (token or not config.url):
        by, verdict = "token", await _of_token(tokens, token, config)
    else:
        request = {
            "x-forwarded-method": method,
            "x-forwarded-proto": "https" if https else "http",
            "x-forwarded-host": host,
            "x-forwarded-uri": uri,
            "x-forwarded-for": str(ip or ""),
        }
        by, verdict = await _of_service(headers, request, config)
    decisions[by, "allowed" if verdict.allowed else "denied"].add()
    return verdict.answer(config.application_headers)


def _token(headers: Headers, name: str) -> str:
    """The request's token, "" without one."""
    value = headers.get(name, "")
    if name != "authorization":
        return value
    kind, _, token = value.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


async def _of_token(tokens: Tokens, token: str, config: Settings) -> Verdict:
    if not token:
        return Verdict(401, "no token", client=(("www-authenticate", "Bearer"),))
    assert config.jwt is not None
    try:
        claims = await tokens.claims(token)
        fields = [
            (header, _text(claims[claim]))
            for claim, header in config.jwt.claims.items()
            if claims.get(claim) is not None
        ]
    except TokenError as error:  # RFC 6750, section 3.1.
        challenge = 'Bearer error="invalid_token"'
        return Verdict(401, str(error), client=(("www-authenticate", challenge),))
    return Verdict(200, "token", application=tuple(fields))


def _text(claim: Any) -> str:
    """A claim as a header has it.

    Raises:
        TokenError: a header can't have it.
    """
    members = claim if isinstance(claim, list) else [claim]
    if not all(isinstance(each, (str, int, float)) for each in members):
        raise TokenError("a claim is no text and no number")
    text = ",".join(each if isinstance(each, str) else repr(each).lower() for each in members)
    if _NO_TEXT.search(text):
        raise TokenError("a claim has control characters or surrogates")
    return text


async def _of_service(
    headers: Headers, request: dict[str, str], config: Settings
) -> tuple[str, Verdict]:
    sent = [(name, value) for name in config.send for value in headers.getlist(name)]
    key = b""
    if config.cache_ttl:
        key = _key(
            [*(request[f"x-forwarded-{name}"] for name in config.cache_by), *map(":".join, sent)]
        )
        kept: Verdict | None = agent.state["answers"].get(key)
        if kept is not None:
            return "cache", kept
    fields = [(name.encode(), _bytes(value)) for name, value in (*sent, *request.items())]
    asked = httpx.Request("GET", config.url, headers=fields)
    answered = await exchange(agent.state["http"], asked, config.timeout, MAX_BODY)
    verdict = _verdict(answered.status, answered.headers, config)
    # A cookie is for one client, so an answer that sets one is not kept.
    kept_status = answered.status in KEPT_STATUSES and "set-cookie" not in answered.headers
    if config.cache_ttl and kept_status:
        agent.state["answers"].keep(key, verdict)
    return "service", verdict


def _verdict(status: int, answered: httpx.Headers, config: Settings) -> Verdict:
    """What the service's answer means.

    Raises:
        ServiceError: it is neither yes nor no.
    """
    location = answered.get("location", "") if 300 <= status < 400 else ""
    if not (200 <= status < 300 or 400 <= status < 500 or location):
        raise ServiceError(f"the service answers with status {status}")
    return Verdict(
        status,
        "service",
        location,
        _chosen(answered, config.to_application) if status < 300 else (),
        _chosen(answered, config.to_client),
    )


def _chosen(answered: httpx.Headers, names: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name in names for value in answered.get_list(name))


def _key(parts: list[str]) -> bytes:
    """A digest, which holds no password and has one size. Parts have their lengths before them."""
    digest = hashlib.blake2b(digest_size=32)
    for part in map(_bytes, parts):
        digest.update(b"%d:%b" % (len(part), part))
    return digest.digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
