"""A function that agents of other modules have as a handler."""

from __future__ import annotations

from spop import Message
from spop.lifespan import current_state

factor = 0


def multiply(messages: list[Message]) -> list[dict[str, object]]:
    return [{"txn.n": m["n"] * factor, "txn.begun": current_state()["begun"]} for m in messages]
