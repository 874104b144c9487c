"""The numbers of the protocol, each standing once.

Section numbers refer to HAProxy's ``doc/SPOE.txt`` (the SPOP specification).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Self

__all__ = [
    "ActionType",
    "Capability",
    "DataType",
    "EngineStatus",
    "FrameFlag",
    "FrameType",
    "Scope",
    "Status",
]


class FrameType(IntEnum):
    """Types of frame (section 3.2.2)."""

    UNSET = 0
    HAPROXY_HELLO = 1
    HAPROXY_DISCONNECT = 2
    NOTIFY = 3
    AGENT_HELLO = 101
    AGENT_DISCONNECT = 102
    ACK = 103


CONTROL_TYPES = frozenset(
    {
        FrameType.HAPROXY_HELLO,
        FrameType.HAPROXY_DISCONNECT,
        FrameType.AGENT_HELLO,
        FrameType.AGENT_DISCONNECT,
    }
)
"""Types of the frames whose payload is a KV-LIST (sections 3.2.4, 3.2.5, 3.2.8 and 3.2.9)."""


class FrameFlag(IntFlag):
    """Flags of a frame (section 3.2). ``ABORT`` implies ``FIN``."""

    FIN = 1
    ABORT = 2


class DataType(IntEnum):
    """Types of typed data: the low four bits of the first byte (section 3.1)."""

    NULL = 0
    BOOL = 1
    INT32 = 2
    UINT32 = 3
    INT64 = 4
    UINT64 = 5
    IPV4 = 6
    IPV6 = 7
    STRING = 8
    BINARY = 9


TYPE_MASK = 0x0F
"""Bits of the first byte of typed data that are its type. The upper four are flags."""

BOOL_TRUE = 0x10
"""Flag of a BOOL that is true (section 3.1)."""

LONG_VARINT = 240
"""The smallest varint that takes more than one byte (section 3.1)."""

LONGEST_VARINT = 10
"""Bytes of the largest varint, 2**64 - 1. The section has no limit, HAProxy has 64 bits."""


class ActionType(IntEnum):
    """Types of action in an ACK (section 3.4)."""

    SET_VAR = 1
    UNSET_VAR = 2


SET_VAR_ARGUMENTS = 3
"""NB-ARGS of a SET-VAR: scope, name and value (section 3.4)."""

UNSET_VAR_ARGUMENTS = 2
"""NB-ARGS of an UNSET-VAR: scope and name (section 3.4)."""

MAX_MESSAGE_ARGUMENTS = 255
"""Arguments that one message can have, as NB-ARGS is one byte (section 3.2)."""


class Scope(IntEnum):
    """Scopes of a variable (section 3.4)."""

    PROC = 0
    SESS = 1
    TXN = 2
    REQ = 3
    RES = 4


class Status(IntEnum):
    """Status codes of a DISCONNECT frame, each with its description (section 3.5)."""

    message: str

    def __new__(cls, code: int, message: str) -> Self:
        status = int.__new__(cls, code)
        status._value_ = code
        status.message = message
        return status

    NORMAL = 0, "normal"
    IO = 1, "I/O error"
    TIMEOUT = 2, "a timeout occurred"
    TOO_BIG = 3, "frame is too big"
    INVALID = 4, "invalid frame received"
    NO_VERSION = 5, "version value not found"
    NO_FRAME_SIZE = 6, "max-frame-size value not found"
    NO_CAPABILITIES = 7, "capabilities value not found"
    BAD_VERSION = 8, "unsupported version"
    BAD_FRAME_SIZE = 9, "max-frame-size too big or too small"
    FRAGMENTATION_NOT_SUPPORTED = 10, "payload fragmentation is not supported"
    INTERLACED_FRAMES = 11, "invalid interlaced frames"
    FRAME_ID_NOT_FOUND = 12, "frame-id not found"
    RESOURCE = 13, "resource allocation error"
    UNKNOWN = 99, "an unknown error occurred"

    @classmethod
    def of(cls, code: int) -> Status:
        """The status of a code as received; `UNKNOWN` for one that only the peer knows."""
        return next((status for status in cls if status == code), cls.UNKNOWN)


class EngineStatus(IntEnum):
    """The value of the variable that ``option set-on-error`` names. A status of a DISCONNECT is
    reported as `PROTOCOL` plus the status."""

    NONE = 0
    TIMEOUT = 1
    RESOURCES = 2
    TOO_BIG = 3
    FRAGMENTATION_ABORTED = 4
    INTERRUPTED = 5
    UNKNOWN = 255
    PROTOCOL = 256


class Capability:
    """Names of the capabilities announced in HELLO frames (section 3.2.1)."""

    FRAGMENTATION = "fragmentation"
    PIPELINING = "pipelining"
    ASYNC = "async"


LENGTH_SIZE = 4
"""Bytes of the length in front of a frame. The length does not count them (section 3.2)."""

FLAGS_END = 9
"""Bytes of a frame up to its identifiers: length, type and flags (section 3.2)."""

SHORTEST_FRAME = 7
"""Bytes of a frame without a payload: type, flags and two varints of a byte (section 3.2)."""

MIN_FRAME_SIZE = 256
"""The smallest ``max-frame-size`` a peer may announce (section 3.2)."""

DEFAULT_MAX_FRAME_SIZE = 1024 * 1024
"""Default of the largest frame in bytes that an agent accepts."""

DEFAULT_MAX_PAYLOAD_SIZE = 16 * 1024 * 1024
"""Default of the largest payload in bytes that is put together from fragments."""

HAPROXY_FRAME_SIZE = 16380
"""The ``max-frame-size`` that HAProxy announces by default: ``tune.bufsize - 4``."""

DEFAULT_BUFSIZE = HAPROXY_FRAME_SIZE + LENGTH_SIZE
"""HAProxy's default of ``tune.bufsize`` in bytes."""

MAX_CONTROL_SIZE = 16 * 1024
"""The largest HELLO or DISCONNECT frame in bytes. A larger one is refused with status 3."""

MAX_TEXT_SIZE = 256
"""Characters of a peer's text (engine-id, message of a DISCONNECT) that are kept and logged."""

MAX_ANSWER_SIZE = 256 * 1024
"""Bytes of ACKs that are sent before more frames are handled. The answers to small NOTIFY frames
can be large. Without this limit one read could fill the memory."""

NO_LIMIT = 2**62
"""Default of the nanoseconds of a pass: more than there are."""

MAX_SECONDS = 1e9
"""The longest time that a setting can have: 32 years."""

VALUE_SIZE = 64
"""Bytes that the object of an argument takes besides those in the frame, roughly."""

ENTRY_SIZE = 256
"""Bytes that a kept answer takes besides its own and its key's, roughly."""

MAX_MESSAGES = 1000
"""Default of the largest number of messages in a NOTIFY."""

MAX_ARGUMENTS = 10_000
"""Default of the largest number of arguments in all messages of a NOTIFY together."""

MAX_TASKS = 10_000
"""Default of the largest number of tasks of asynchronous handlers that may wait in one loop."""

BYTES_PER_LOOK = 2048
"""Bytes of frames behind which the clock is read. No handler's end reads it where frames have no
messages, are fragments, or are answered from a cache. Of these, so many bytes take 0.2 ms at most."""

MOST_UNKNOWN = 100
"""Names of messages without a handler that a dispatcher counts one by one."""
