"""The numbers of the protocol, each standing once.

Section numbers refer to HAProxy's ``doc/SPOE.txt`` (the SPOP specification).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


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
    """Status codes of a DISCONNECT frame (section 3.5)."""

    NORMAL = 0
    IO = 1
    TIMEOUT = 2
    TOO_BIG = 3
    INVALID = 4
    NO_VERSION = 5
    NO_FRAME_SIZE = 6
    NO_CAPABILITIES = 7
    BAD_VERSION = 8
    BAD_FRAME_SIZE = 9
    FRAGMENTATION_NOT_SUPPORTED = 10
    INTERLACED_FRAMES = 11
    FRAME_ID_NOT_FOUND = 12
    RESOURCE = 13
    UNKNOWN = 99

    @property
    def message(self) -> str:
        """The specification's description of the status."""
        return _STATUS_MESSAGES[self]


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


_STATUS_MESSAGES = {
    Status.NORMAL: "normal",
    Status.IO: "I/O error",
    Status.TIMEOUT: "a timeout occurred",
    Status.TOO_BIG: "frame is too big",
    Status.INVALID: "invalid frame received",
    Status.NO_VERSION: "version value not found",
    Status.NO_FRAME_SIZE: "max-frame-size value not found",
    Status.NO_CAPABILITIES: "capabilities value not found",
    Status.BAD_VERSION: "unsupported version",
    Status.BAD_FRAME_SIZE: "max-frame-size too big or too small",
    Status.FRAGMENTATION_NOT_SUPPORTED: "payload fragmentation is not supported",
    Status.INTERLACED_FRAMES: "invalid interlaced frames",
    Status.FRAME_ID_NOT_FOUND: "frame-id not found",
    Status.RESOURCE: "resource allocation error",
    Status.UNKNOWN: "an unknown error occurred",
}


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

MAX_CONTROL_SIZE = 16 * 1024
"""The largest HELLO or DISCONNECT frame in bytes. A larger one is refused with status 3."""

MAX_TEXT_SIZE = 256
"""Characters of a peer's text (engine-id, message of a DISCONNECT) that are kept and logged."""

MAX_ANSWER_SIZE = 256 * 1024
"""Bytes of ACKs that are sent before more frames are handled. The answers to small NOTIFY frames
can be large. Without this limit one read could fill the memory."""

MAX_MESSAGES = 1000
"""Default of the largest number of messages in a NOTIFY."""

MAX_ARGUMENTS = 10_000
MAX_TASKS = 10_000
"""Default of the largest number of arguments in all messages of a NOTIFY together."""
