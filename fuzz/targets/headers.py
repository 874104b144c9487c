"""`Headers` over received bytes, in lines and in HAProxy's binary form."""

from __future__ import annotations

from typing import Any

from pair import Twins, attempt
from structure import OPTIONS, Options, mutate, split

__all__ = ["mutate", "outcome"]

NAMES = ["a", "B", "état", b"\xff", "", "x-seen"]


def outcome(twins: Twins, data: bytes) -> Any:
    options = Options(data)
    name, lines = options.take(NAMES), options.take([False, True])
    frames, rest = split(data[OPTIONS:])
    raw = b"".join([frame.payload for frame in frames]) + rest
    text = raw.decode("utf-8", "surrogateescape") if lines else raw
    headers = attempt(twins.headers.Headers, text)
    if not isinstance(headers, twins.headers.Headers):
        return headers
    found = [headers.get(name), headers.getlist(name), name in headers, len(headers)]
    found += [headers.items(), list(headers), headers.raw, _sent(headers)]
    headers.add(name, raw[:20])
    return [*found, headers.items(), repr(headers), _sent(headers)]


def _sent(headers: Any) -> Any:
    """What is sent of them, or why they may not be sent."""
    try:
        return headers.__spop_binary__(), headers.names()
    except ValueError as error:
        return str(error)
