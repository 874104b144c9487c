"""Sends requests again to another service: a new version, a test system, a recorder.

HAProxy does not wait for it, and nothing comes back. What is lost is counted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from spop.metrics import Counter

MAX_BODY = 1024 * 1024
"""Bytes of an answer that are read, so that its connection can be used again."""


@dataclass
class Settings:
    """The table ``[settings]``.

    Attributes:
        url: of the service; what stands behind its host is put before each path.
        share: of the requests that are sent, 0.0 to 1.0.
        timeout: seconds for the whole answer.
        pool: number of connections to the service, for each loop.
        max_pending: number of requests of a loop that wait for an answer. Others are dropped.
        drop: headers that are not sent.
        keep_host: send the request's own Host, instead of the service's.
        ca_file: PEM file of the authorities that the service's certificate may be from.
    """

    url: str
    share: float = 1.0
    timeout: float = 5.0
    pool: int = 20
    max_pending: int = 1000
    drop: list[str] = field(default_factory=list)
    keep_host: bool = True
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        check_url("url", self.url)
        if "?" in self.url or "#" in self.url:
            raise ValueError(f"url: {self.url!r} has a query or a fragment, and paths follow it")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: {self.share}, 0.0 to 1.0 is needed")
        check_above(self, 0, "timeout", "pool", "max_pending")
        check_file("ca_file", self.ca_file)
        self.drop = header_names("drop", self.drop)


agent: Agent = Agent("mirror", config=Settings)
requests: dict[str, Counter] = {
    result: agent.counter("mirror_requests", "Requests, by what became of them.", result=result)
    for result in ("2xx", "3xx", "4xx", "5xx", "failed", "dropped", "incomplete", "not_chosen")
}


@agent.lifespan
async def resources() -> AsyncIterator[dict[str, Any]]:
    """The client of each loop, and the places of requests that wait for an answer."""
    config: Settings = agent.config
    async with client(config.pool, config.ca_file) as http:
        yield {"http": http, "places": asyncio.Semaphore(config.max_pending)}


@agent.message("mirror", ack_first=True)
async def mirror(headers: Headers, method: str, uri: str, body: bytes = b"", size: int = 0) -> None:
    config: Settings = agent.config
    places: asyncio.Semaphore = agent.state["places"]
    if random.random() >= config.share:
        requests["not_chosen"].add()
    elif size > len(body):  # HAProxy has not got all of it, or it does not fit a buffer.
        requests["incomplete"].add()
    elif places.locked():
        requests["dropped"].add()
    else:
        async with places:
            await _send(_request(headers, method, uri, body, config), config)


async def _send(request: httpx.Request, config: Settings) -> None:
    """Count what becomes of it. An error is logged at a limited rate, as any of a handler.

    Raises:
        ServiceError: there is no answer.
    """
    try:
        answered = await exchange(agent.state["http"], request, config.timeout, MAX_BODY)
    except ServiceError:
        requests["failed"].add()
        raise
    requests[f"{min(max(answered.status // 100, 2), 5)}xx"].add()


def _request(
    headers: Headers, method: str, uri: str, body: bytes, config: Settings
) -> httpx.Request:
    """The request as HAProxy got it."""
    left_out = {*HOP_BY_HOP, *config.drop}
    if not config.keep_host:
        left_out.add("host")
    fields = [
        (name, value)
        for name, value in headers.raw
        if name.decode("latin-1").lower() not in left_out
    ]
    url = httpx.URL(config.url)
    target = url.raw_path.rstrip(b"/") + uri.encode("utf-8", "surrogateescape")
    # A path in the URL would be normalised.
    return httpx.Request(method, url, headers=fields, content=body, extensions={"target": target})
