"""What the agents that ask HTTP services have in common: their client, an exchange, the checks."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import NamedTuple

import httpx

from spop.address import MAX_PORT
from spop.errors import reason

logging.getLogger("httpx").setLevel(logging.WARNING)  # It logs each request.

HOP_BY_HOP = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "proxy-authenticate",
     "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)  # fmt: skip
"""Headers that are those of one connection, or that the client sets (RFC 9110, section 7.6.1)."""
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")


class ServiceError(Exception):
    """The service did not answer in time, or not in HTTP."""


class Answered(NamedTuple):
    """A service's answer. The body may be cut off."""

    status: int
    headers: httpx.Headers
    body: bytes


def client(pool: int, ca_file: Path | None) -> httpx.AsyncClient:
    """An HTTP client with up to `pool` connections, which keeps nothing of one request for another."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=pool, max_keepalive_connections=pool),
        timeout=None,  # `exchange` limits the whole of it.
        verify=ssl.create_default_context(cafile=ca_file),
        trust_env=False,  # No proxies, and no passwords of a .netrc.
        # Cookies that a service sets are the client's. The next client must not send them.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


async def exchange(
    http: httpx.AsyncClient, request: httpx.Request, timeout: float, limit: int
) -> Answered:
    """Send a request, and read up to `limit` bytes of the answer's body.

    A connection whose answer was read to its end is used again.

    Raises:
        ServiceError: there is no answer within `timeout` seconds, or it is not HTTP.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            response = await http.send(request, stream=True)
            try:
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > limit:
                        break
            finally:
                await response.aclose()
    except TimeoutError:
        raise ServiceError(f"no answer in {timeout} s") from None
    except httpx.HTTPError as error:
        raise ServiceError(reason(error)) from None  # Its traceback would be 60 lines of httpx.
    return Answered(response.status_code, response.headers, bytes(body[:limit]))


def check_url(setting: str, text: str) -> None:
    """Refuse a URL that no request can be sent to.

    Raises:
        ValueError: it is no ``http://HOST…`` and no ``https://HOST…``.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{setting}: {text!r}: {error}") from None
    # httpx takes "http://[x" and "http://x:99999", and fails only when it connects.
    host = url.host and (":" in url.host or "%" not in url.host) and (url.port or 0) <= MAX_PORT
    if url.scheme not in ("http", "https") or not host:
        raise ValueError(f"{setting}: {text!r}, http://HOST… or https://HOST… is needed")


def header_names(setting: str, names: Iterable[str]) -> list[str]:
    """Names of headers, in small letters.

    Raises:
        ValueError: one is no name.
    """
    names = [name.lower() for name in names]
    for name in names:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{setting}: {name!r} is no header's name")
    return names


def check_file(setting: str, path: Path | None) -> None:
    """Refuse a path where there is no file.

    Raises:
        ValueError: there is none.
    """
    if path is not None and not path.is_file():
        raise ValueError(f"{setting}: {str(path)!r} is no file")


def check_above(settings: object, limit: float, *names: str) -> None:
    """Refuse settings that are not above a limit.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if not getattr(settings, name) > limit:
            raise ValueError(f"{name}: {getattr(settings, name)}, more than {limit} is needed")
