"""Everything that `spop` raises on purpose.

`ProtocolError` and its subclasses are the only exceptions that bytes from the network
can cause. Each has the `Status` that a DISCONNECT frame answers them with.
"""

from __future__ import annotations

from spop.constants import LENGTH_SIZE, Status
from spop.logs import escaped, text_of

__all__ = [
    "DisconnectedError",
    "FragmentationError",
    "FrameTooBigError",
    "HandlerError",
    "HandshakeError",
    "InterlacedFramesError",
    "InvalidFrameError",
    "LocalProtocolError",
    "ProtocolError",
    "RefusedError",
    "SpopError",
    "SpopTimeoutError",
    "TooManyMessagesError",
    "UnreachableError",
]


def reason(error: BaseException) -> str:
    """Why, in words, on one line: of an OSError what the system says, without number and file.

    It can be printed anywhere: what is not printable, of a peer's text maybe, is escaped.
    """
    text = getattr(error, "strerror", None) or text_of(error) or type(error).__name__
    return escaped(" ".join(str(text).split()))


class SpopError(Exception):
    """Base class of every error of this package."""


class ProtocolError(SpopError):
    """The peer broke the protocol, or the connection must end for another reason.

    Attributes:
        status: what the DISCONNECT frame says (section 3.5 of the specification).
    """

    status: Status = Status.UNKNOWN

    def __init__(self, message: str = "", status: Status | None = None) -> None:
        if status is not None:
            self.status = status
        super().__init__(message or self.status.message)


class InvalidFrameError(ProtocolError):
    """Bytes that are no frame, or a frame that may not come now."""

    status = Status.INVALID


class FrameTooBigError(ProtocolError):
    """A frame longer than the negotiated ``max-frame-size``, or a payload over its limit."""

    status = Status.TOO_BIG


_OTHER_PROTOCOLS = {
    "HTTP": (b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC",
             b"PRI ", b"HTTP"),
    "TLS": (b"\x16\x03", b"\x15\x03"),  # A handshake, an alert.
    "a PROXY protocol header": (b"PROX", b"\r\n\r\n"),  # Version 1, version 2.
}  # fmt: skip


def too_long(length: int, most: int) -> FrameTooBigError:
    """The error for a frame's length above the limit. It may be the text of another protocol."""
    begin = length.to_bytes(LENGTH_SIZE, "big")
    for name, begins in _OTHER_PROTOCOLS.items():
        if begin.startswith(begins):
            return FrameTooBigError(f"this looks like {name}, not like SPOP")
    return FrameTooBigError(f"frame of {length} bytes, {most} at most")


class TooManyMessagesError(FrameTooBigError):
    """A NOTIFY with more messages or arguments than the limits allow."""


class FragmentationError(ProtocolError):
    """A fragment where none is allowed."""

    status = Status.FRAGMENTATION_NOT_SUPPORTED


class InterlacedFramesError(ProtocolError):
    """Fragments of two payloads mixed on one connection."""

    status = Status.INTERLACED_FRAMES


class HandshakeError(ProtocolError):
    """The peers can't agree on version, frame size or capabilities."""


class DisconnectedError(ProtocolError):
    """The peer ended the connection, with or without a DISCONNECT frame.

    Attributes:
        code: the status code as received; it may be one that only the peer knows.
    """

    def __init__(self, message: str, code: int = Status.IO) -> None:
        self.code = code
        super().__init__(message, Status.of(code))


class LocalProtocolError(SpopError):
    """The caller asked for something that the protocol does not allow now."""


class HandlerError(SpopError):
    """A message could not be handled: argument missing or of another type, result unusable."""


class SpopTimeoutError(SpopError, TimeoutError):
    """The peer did not answer in time."""


class UnreachableError(SpopError, ConnectionError):
    """No connection could be made: no route, no such name or socket, TLS that fails."""


class RefusedError(UnreachableError, ConnectionRefusedError):
    """Nobody listens where the agent should."""
