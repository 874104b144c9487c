"""Talking to agents: `Client` for threads, `AsyncClient` for asyncio.

`pool` chooses the connection of each NOTIFY and finds the call of each ACK, without I/O.
`blocking` and `asynchronous` move the bytes and wait; `core` is what both share. `servers` says
where connections go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spop.client.blocking import Client

if TYPE_CHECKING:
    from spop.client.asynchronous import AsyncClient

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """`AsyncClient`, once it is asked for: asyncio takes longer to import than all of spop."""
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spop.client.asynchronous import AsyncClient

    return AsyncClient
