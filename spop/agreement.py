"""What an agent agrees to in HELLO, and the AGENT-HELLO that says so (sections 3.2.1, 3.2.4, 3.2.5).

HAProxy says the same on each of its connections, so the last agreements are kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from spop import codec
from spop.constants import MAX_TEXT_SIZE, MIN_FRAME_SIZE, Capability, FrameType, Status
from spop.errors import HandshakeError
from spop.handshake import common_version, item, names
from spop.values import DecodedValue, UInt32, Value

SUPPORTED_VERSIONS = ("2.0", "1.0")
"""What an agent speaks: HAProxy 1.7 and early 1.8 offer "1.0"."""

_KEPT = 32
_ITEMS = "supported-versions", "max-frame-size", "capabilities", "engine-id", "healthcheck"
_MISSING = object()


class Agreement(NamedTuple):
    """The fields of `Peer`, but its address, and the bytes of the answer."""

    version: str
    max_frame_size: int
    capabilities: frozenset[str]
    engine_id: str | None
    healthcheck: bool
    answer: bytes


def agree(
    items: dict[str, DecodedValue],
    *,
    whole: bool,
    little_endian: bool,
    max_frame_size: int,
    capabilities: frozenset[str],
) -> Agreement:
    """Agree to the items of a HAPROXY-HELLO, if that can be done.

    Args:
        whole: the frames of the connection have no flags: it is HAProxy 1.7.
        max_frame_size, capabilities: what the agent offers.

    Raises:
        ProtocolError: an item is missing or malformed, or there is nothing to agree to.
    """
    said = [items.get(name, _MISSING) for name in _ITEMS]
    return _agree(whole, little_endian, max_frame_size, capabilities, *said)


@lru_cache(_KEPT, typed=True)
def _agree(
    whole: bool, little_endian: bool, max_frame_size: int, ours: frozenset[str], *said: DecodedValue
) -> Agreement:
    items = {name: each for name, each in zip(_ITEMS, said, strict=True) if each is not _MISSING}
    announced = item(items, "supported-versions", str, Status.NO_VERSION)
    version = common_version(announced, ("1.0",) if whole else SUPPORTED_VERSIONS)
    offered = item(items, "max-frame-size", int, Status.NO_FRAME_SIZE)
    theirs = names(item(items, "capabilities", str, Status.NO_CAPABILITIES))
    engine_id = item(items, "engine-id", str, None)
    healthcheck = item(items, "healthcheck", bool, None) or False
    if offered < MIN_FRAME_SIZE:
        raise HandshakeError(
            f"max-frame-size is {offered}, {MIN_FRAME_SIZE} at least", Status.BAD_FRAME_SIZE
        )
    # HAProxy 1.8 and 1.9 crash on capabilities in a health check; 1.7 has none.
    shared = frozenset() if healthcheck or whole else _shared(ours, theirs, engine_id)
    size = min(offered, max_frame_size)
    answer: dict[str, Value] = {
        "version": version,
        "max-frame-size": UInt32(size),
        "capabilities": ",".join(sorted(shared)),
    }
    frame = codec.encode_control(FrameType.AGENT_HELLO, answer, little_endian=little_endian)
    engine_id = engine_id and engine_id[:MAX_TEXT_SIZE]
    return Agreement(version, size, shared, engine_id, healthcheck, bytes(frame))


def _shared(ours: frozenset[str], theirs: frozenset[str], engine_id: str | None) -> frozenset[str]:
    """The capabilities to announce (section 3.2.1). A receiver announces fragmentation by
    itself; the others need both sides."""
    shared = ours & (theirs | {Capability.FRAGMENTATION})
    # Async connections are found by their engine-id, so it must not be cut.
    if not engine_id or len(engine_id.encode("utf-8", "surrogateescape")) > MAX_TEXT_SIZE:
        return shared - {Capability.ASYNC}
    return shared
