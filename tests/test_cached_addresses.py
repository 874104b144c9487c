"""Cached answers of handlers that take addresses: each address is a key, whatever came before."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from spop import Agent, Cache, Client


@pytest.fixture
def agent() -> Agent:
    agent = Agent()

    @agent.message("number")
    def number(n: int) -> None: ...

    @agent.message("ip", cache=Cache(ttl=60.0, size=100))
    def address(ip: IPv4Address | IPv6Address) -> dict[str, Any]:
        return {"txn.ip": str(ip)}

    return agent


@pytest.mark.parametrize("before", [0, 1, 2**62])
@pytest.mark.parametrize(
    "addresses", [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")], ids=["IPv4", "IPv6"]
)
def test_an_address_is_a_key_after_any_other_argument(
    agent: Agent, agent_client: Callable[..., Client], addresses: tuple[str, str], before: int
) -> None:
    client = agent_client(agent)
    for _ in range(2):
        for ip in addresses:
            client.notify("number", n=before)  # It is read into the same memory.
            assert client.notify("ip", ip=ip_address(ip)).variables == {"txn.ip": ip}
    cache = agent.handlers["ip"].cache
    assert cache is not None
    assert (cache.hits, cache.misses) == (2, 2)
