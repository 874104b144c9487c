"""What the agents that ask HTTP services have in common: their client, and the check of a URL."""

from __future__ import annotations

import logging
import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpx

logging.getLogger("httpx").setLevel(logging.WARNING)  # It logs each request.


def client(name: str, pool: int, timeout: float, ca_file: Path | None) -> httpx.AsyncClient:
    """An HTTP client with up to `pool` connections, which keeps nothing of one request for another."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=pool, max_keepalive_connections=pool),
        timeout=timeout,
        verify=ssl.create_default_context(cafile=ca_file),
        trust_env=False,  # No proxies, and no passwords of a .netrc.
        # Cookies that a service sets are the client's. The next client must not send them.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"user-agent": f"spop-{name}"},
    )


def check_url(setting: str, text: str) -> None:
    """Refuse a URL that no request can be sent to.

    Raises:
        ValueError: it is no ``http://HOST…`` and no ``https://HOST…``.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{setting}: {text!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{setting}: {text!r}, http://HOST… or https://HOST… is needed")
