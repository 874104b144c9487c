"""Typed values: how Python's values and those of the protocol map to each other.

| Python              | SPOP                                               |
|---------------------|----------------------------------------------------|
| ``None``            | NULL                                               |
| ``bool``            | BOOL                                               |
| ``int``             | INT32, INT64 or UINT64: the first that can hold it |
| ``IPv4Address``     | IPV4                                               |
| ``IPv6Address``     | IPV6                                               |
| ``str``             | STRING, as UTF-8 with surrogateescape              |
| bytes-like          | BINARY                                             |
| `SentAsBinary`      | BINARY, as `spop.Headers` is                       |

The wrappers ask for a type that the natural rule would not choose. They are what their
value is: ``UInt32(5) == 5``. Decoding gives the plain Python types.
"""

from __future__ import annotations

import re
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Final, Literal, Protocol, Self

from spop.constants import DataType


class _Unset(Enum):
    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset.UNSET
"""As the value of a variable in an answer: remove the variable."""

type_unset = Literal[_Unset.UNSET]


class _SizedInt(int):
    data_type: ClassVar[DataType]
    minimum: ClassVar[int]
    maximum: ClassVar[int]

    def __new__(cls, value: int) -> Self:
        if not cls.minimum <= value <= cls.maximum:
            raise OverflowError(f"{value} does not fit {cls.data_type.name}")
        return super().__new__(cls, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self)})"


class Int32(_SizedInt):
    """An integer sent as INT32. Raises OverflowError outside -2**31 to 2**31 - 1."""

    data_type = DataType.INT32
    minimum, maximum = -(2**31), 2**31 - 1


class UInt32(_SizedInt):
    """An integer sent as UINT32. Raises OverflowError outside 0 to 2**32 - 1."""

    data_type = DataType.UINT32
    minimum, maximum = 0, 2**32 - 1


class Int64(_SizedInt):
    """An integer sent as INT64. Raises OverflowError outside -2**63 to 2**63 - 1."""

    data_type = DataType.INT64
    minimum, maximum = -(2**63), 2**63 - 1


class UInt64(_SizedInt):
    """An integer sent as UINT64. Raises OverflowError outside 0 to 2**64 - 1."""

    data_type = DataType.UINT64
    minimum, maximum = 0, 2**64 - 1


class Binary(bytes):
    """Bytes sent as BINARY, as plain bytes are; for symmetry with `String`."""


class String(bytes):
    """Raw bytes sent as STRING, for text that is not UTF-8."""


class ReceivedIPv4Address(IPv4Address):
    """An IPv4 address as a handler is given it, with `packed` at hand, which it came as.

    Whatever is made of one, a copy or a sum, is a plain `IPv4Address`.
    """

    __slots__ = ("packed",)

    def __new__(cls, address: object) -> IPv4Address:  # type: ignore[misc]
        return IPv4Address(address)

    def __repr__(self) -> str:
        return f"IPv4Address({str(self)!r})"


class ReceivedIPv6Address(IPv6Address):
    """An IPv6 address as a handler is given it, with `packed` at hand, which it came as.

    Whatever is made of one, a copy or a sum, is a plain `IPv6Address`.
    """

    __slots__ = ("packed",)

    def __new__(cls, address: object) -> IPv6Address:  # type: ignore[misc]
        return IPv6Address(address)

    def __repr__(self) -> str:
        return f"IPv6Address({str(self)!r})"


DecodedValue = None | bool | int | IPv4Address | IPv6Address | str | bytes
"""What decoding a typed value gives."""


class SentAsBinary(Protocol):
    """A value of a class that the codec does not know."""

    def __spop_binary__(self) -> bytes:
        """The bytes to send."""


Value = DecodedValue | bytearray | memoryview | SentAsBinary
"""What can be encoded as a typed value. `String` and `Binary` are bytes, `Int32` an int."""

SCOPES: Final = {"proc": 0, "sess": 1, "txn": 2, "req": 3, "res": 4}
"""Variable scopes by the name that HAProxy's configuration gives them."""

SCOPE_NAMES: Final = tuple(SCOPES)

VARIABLE: Final = re.compile(rf"({'|'.join(SCOPES)})\.([A-Za-z0-9_.]+)", re.ASCII)
"""The whole name of a variable, such as ``"txn.user"``: its scope and the rest."""

Buffer = bytes | bytearray | memoryview
"""What the decoders read."""
