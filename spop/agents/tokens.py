"""JSON Web Tokens (RFC 7519), checked with the public keys of their issuer.

`spop.agents.forward_auth` uses it. It knows no SPOE and no HTTP: it is given a function that fetches
the keys.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import jwt

from spop.errors import reason

ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""Algorithms that check with a public key. With one of a shared secret (HS256), whoever knows the
public key could make tokens; `none` has no signature at all."""

MAX_KEYS_SIZE = 1024 * 1024
"""Bytes of a key set. A larger one is refused."""

Claims = dict[str, Any]


@dataclass
class TokenSettings:
    """The table ``[settings.jwt]``.

    Attributes:
        keys: URL or path of the issuer's key set (JWKS, RFC 7517).
        issuer: what `iss` has to be.
        audience: one of these has to be in `aud`.
        algorithms: those that are accepted.
        leeway: seconds by which clocks may differ.
        pause: seconds between two fetches of the keys because of an unknown key id.
        header: the request header with the token. In ``authorization`` it follows ``Bearer``.
        claims: the header for the application of each claim.
    """

    keys: str
    issuer: str
    audience: list[str]
    algorithms: list[str] = field(default_factory=lambda: ["RS256"])
    leeway: float = 30.0
    pause: float = 10.0
    header: str = "authorization"
    claims: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("keys", "issuer", "audience", "algorithms"):
            if not getattr(self, name):
                raise ValueError(f"{name}: is empty")
        for algorithm in self.algorithms:
            if algorithm not in ALGORITHMS:
                known = ", ".join(sorted(ALGORITHMS))
                raise ValueError(f"algorithms: {algorithm!r} is not one of {known}")
        self.header = self.header.lower()
        for name in ("leeway", "pause"):
            if not 0 <= getattr(self, name) < math.inf:  # With nan no token would ever expire.
                raise ValueError(f"{name}: {getattr(self, name)}, seconds from 0 are needed")


class TokenError(Exception):
    """A token is not accepted. The message says why."""


class KeysError(Exception):
    """There are no keys to check a token with, which is not the token's fault."""


class Keys:
    """The public keys of an issuer, by their id.

    Args:
        fetch: gets the bytes of the key set.
        pause: seconds between two fetches because of an unknown id.
    """

    def __init__(self, fetch: Callable[[], Awaitable[bytes]], pause: float) -> None:
        self._fetch = fetch
        self._pause = pause
        self._keys: dict[str | None, dict[str, Any]] = {}
        self._prepared: dict[tuple[str | None, str], jwt.PyJWK] = {}
        self._lock = asyncio.Lock()
        self._next_fetch = 0.0
        self._failed = True

    async def get(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """The key of an id. Issuers change keys, so the set is fetched again for an unknown id.

        Raises:
            TokenError: there is no such key, or it is for another algorithm.
            KeysError: the key set can't be fetched.
        """
        if kid not in self._keys:
            async with self._lock:  # Of many unknown ids one alone causes a fetch.
                if kid not in self._keys and time.monotonic() >= self._next_fetch:
                    await self._refresh()
        if kid not in self._keys:
            if self._failed:
                raise KeysError("the issuer's keys could not be fetched")
            raise TokenError("unknown key")
        prepared = self._prepared.get((kid, algorithm))
        if prepared is None:
            prepared = self._prepared[kid, algorithm] = _prepared(self._keys[kid], algorithm)
        return prepared

    async def refresh(self) -> None:
        """Fetch the keys. Where that fails, those that are there stay.

        Raises:
            KeysError: they can't be fetched, or are no key set.
        """
        async with self._lock:
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            keys = _key_set(await self._fetch())
        except (OSError, ValueError, RecursionError) as error:  # JSON may be nested deeply.
            self._failed, self._next_fetch = True, time.monotonic() + self._pause
            raise KeysError(f"the issuer's keys could not be fetched: {reason(error)}") from error
        self._keys, self._failed, self._next_fetch = keys, False, time.monotonic() + self._pause
        self._prepared.clear()


def _key_set(text: bytes) -> dict[str | None, dict[str, Any]]:
    """The keys for signatures, by id. A key without an id is there only if it is the one key.

    Raises:
        ValueError: this is no key set, or has no key.
    """
    if len(text) > MAX_KEYS_SIZE:
        raise ValueError(f"the key set has more than {MAX_KEYS_SIZE} bytes")
    found = json.loads(text)
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise ValueError("this is no key set")
    usable = [key for key in keys if isinstance(key, dict) and key.get("use", "sig") == "sig"]
    by_id: dict[str | None, dict[str, Any]] = {
        key["kid"]: key for key in usable if isinstance(key.get("kid"), str)
    }
    if len(usable) == 1:
        by_id[None] = usable[0]
    if not by_id:
        raise ValueError("the key set has no key for signatures")
    return by_id


def _prepared(key: dict[str, Any], algorithm: str) -> jwt.PyJWK:
    """A key for an algorithm, which both the key's type and its `alg` have to fit.

    Raises:
        TokenError: they don't.
    """
    try:
        if "d" not in key and key.get("alg", algorithm) == algorithm:  # "d": a private key.
            return jwt.PyJWK(key, algorithm)
    except jwt.PyJWTError:
        pass
    raise TokenError("the key is private or for another algorithm")


class Tokens:
    """Checks tokens as `TokenSettings` say."""

    def __init__(self, settings: TokenSettings, keys: Keys) -> None:
        self._settings = settings
        self.keys = keys

    async def claims(self, token: str) -> Claims:
        """The claims of a token that is accepted.

        Raises:
            TokenError: it is not accepted.
            KeysError: the issuer's keys can't be fetched.
        """
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in settings.algorithms:
                raise TokenError("the algorithm is not accepted")
            if "crit" in header:  # RFC 7515, section 4.1.11: what is not understood is refused.
                raise TokenError("the token has critical extensions")
            return jwt.decode(
                token,
                await self.keys.get(header.get("kid"), algorithm),
                algorithms=[algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway,
                options={"require": ["exp", "iss", "aud"]},
            )
        # A header may be of any bytes, and its JSON nested deeply.
        except (jwt.PyJWTError, UnicodeEncodeError, RecursionError) as error:
            raise TokenError(str(error)) from error
