"""Reading HELLO and DISCONNECT frames of either end (sections 3.2.4 to 3.2.9)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spop.constants import MAX_TEXT_SIZE, MIN_FRAME_SIZE, Status
from spop.errors import HandshakeError, InvalidFrameError
from spop.values import Buffer, DecodedValue


def flags_of_hello(data: Buffer, offset: int) -> tuple[bool, bool]:
    """How a connection writes flags. Its HELLO shows that; its type is at `offset`.

    Returns:
        Whether flags are little-endian: HAProxy 1.7 and early 1.8 write them in the host's order.
        Whether there are none: HAProxy 1.7 sets no flag, and each of its frames is whole.
    """
    flags = bytes(data[offset + 1 : offset + 5])
    return flags[0] != 0 and flags[3] == 0, not any(flags)


OFFERED_VERSION = (2, 0)
"""What HAProxy offers since 1.8."""


def item(items: dict[str, DecodedValue], key: str, type_: type, missing: Status | None) -> Any:
    """An item of a HELLO. `missing` is the error if it is missing; None: it is optional."""
    if key not in items:
        if missing is None:
            return None
        raise HandshakeError(missing.message, missing)
    value = items[key]
    if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
        raise InvalidFrameError(f"{key} is {type(value).__name__}, not {type_.__name__}")
    return value


def names(listed: str) -> frozenset[str]:
    return frozenset(name.strip() for name in listed.split(",") if name.strip())


def parsed_version(text: str) -> tuple[int, int] | None:
    major, dot, minor = text.strip().partition(".")
    if dot and major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit():
        return int(major[:9]), int(minor[:9])
    return None


def common_version(announced: str, supported: Iterable[str]) -> str:
    """The highest version of both sides (section 3.2.4). A peer that announces a version also
    supports the lower minor versions."""
    theirs = {version for text in announced.split(",") if (version := parsed_version(text))}
    for ours in supported:
        major = int(ours.partition(".")[0])
        if any(version[0] == major for version in theirs):
            return ours
    raise HandshakeError(f"supported-versions is {announced!r}", Status.BAD_VERSION)


def agent_hello(
    items: dict[str, DecodedValue], max_frame_size: int
) -> tuple[str, int, frozenset[str]]:
    """Version, frame size and capabilities of an AGENT-HELLO (section 3.2.5).

    The version is checked first, as HAProxy's health check does. HAProxy offers "2.0" alone. It
    takes AGENT-HELLO without capabilities.
    """
    version = item(items, "version", str, Status.NO_VERSION)
    if parsed_version(version) != OFFERED_VERSION:
        raise HandshakeError(f"version {version!r} is not supported", Status.BAD_VERSION)
    size = item(items, "max-frame-size", int, Status.NO_FRAME_SIZE)
    if not MIN_FRAME_SIZE <= size <= max_frame_size:
        raise HandshakeError(
            f"max-frame-size is {size}, not in {MIN_FRAME_SIZE} to {max_frame_size}",
            Status.BAD_FRAME_SIZE,
        )
    return version, size, names(item(items, "capabilities", str, None) or "")


def disconnect_reason(items: dict[str, DecodedValue]) -> tuple[int, str]:
    code, message = items.get("status-code"), items.get("message")
    if not isinstance(code, int) or not isinstance(message, str):
        raise InvalidFrameError("DISCONNECT without status-code or message")
    return code, message[:MAX_TEXT_SIZE]
