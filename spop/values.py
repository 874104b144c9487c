"""Typed data as Python values: which type each value is sent as, and the names of variables.

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

`Int32`, `UInt32`, `Int64`, `UInt64`, `String` and `Binary` ask for one type by name. They are
equal to their plain value: ``UInt32(5) == 5``. Decoding gives the plain Python types.
"""

from __future__ import annotations

import re
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Final, Literal, Protocol, Self

from spop.constants import DataType, Scope

__all__ = [
    "UNSET",
    "Binary",
    "Buffer",
    "DecodedValue",
    "Int32",
    "Int64",
    "SentAsBinary",
    "String",
    "UInt32",
    "UInt64",
    "Value",
    "type_unset",
]


class _Unset(Enum):
    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset.UNSET
"""The value of a variable that an answer removes."""

type_unset = Literal[_Unset.UNSET]
"""The type of `UNSET`."""


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

    data_type: ClassVar[DataType] = DataType.INT32
    minimum: ClassVar[int] = -(2**31)
    maximum: ClassVar[int] = 2**31 - 1


class UInt32(_SizedInt):
    """An integer sent as UINT32. Raises OverflowError outside 0 to 2**32 - 1."""

    data_type: ClassVar[DataType] = DataType.UINT32
    minimum: ClassVar[int] = 0
    maximum: ClassVar[int] = 2**32 - 1


class Int64(_SizedInt):
    """An integer sent as INT64. Raises OverflowError outside -2**63 to 2**63 - 1."""

    data_type: ClassVar[DataType] = DataType.INT64
    minimum: ClassVar[int] = -(2**63)
    maximum: ClassVar[int] = 2**63 - 1


class UInt64(_SizedInt):
    """An integer sent as UINT64. Raises OverflowError outside 0 to 2**64 - 1."""

    data_type: ClassVar[DataType] = DataType.UINT64
    minimum: ClassVar[int] = 0
    maximum: ClassVar[int] = 2**64 - 1


class Binary(bytes):
    """Bytes sent as BINARY, as plain bytes are. The counterpart of `String`."""


class String(bytes):
    """Bytes sent as STRING, for text that is not UTF-8."""


class ReceivedIPv4Address(IPv4Address):
    """An IPv4 address that a handler receives from the compiled dispatcher.

    `packed` is a slot with the bytes that were received, where `IPv4Address` computes it. The
    codec makes instances without a call. A copy or a sum of one is a plain `IPv4Address`.
    """

    __slots__ = ("packed",)

    def __new__(cls, address: object) -> IPv4Address:  # type: ignore[misc]
        return IPv4Address(address)

    def __repr__(self) -> str:
        return f"IPv4Address({str(self)!r})"


class ReceivedIPv6Address(IPv6Address):
    """An IPv6 address that a handler receives from the compiled dispatcher.

    `packed` is a slot with the bytes that were received, where `IPv6Address` computes it. The
    codec makes instances without a call. A copy or a sum of one is a plain `IPv6Address`.
    """

    __slots__ = ("packed",)

    def __new__(cls, address: object) -> IPv6Address:  # type: ignore[misc]
        return IPv6Address(address)

    def __repr__(self) -> str:
        return f"IPv6Address({str(self)!r})"


DecodedValue = None | bool | int | IPv4Address | IPv6Address | str | bytes
"""The types of decoded typed data."""


class SentAsBinary(Protocol):
    """An object that provides the bytes that are sent for it. The codec need not know its class."""

    def __spop_binary__(self) -> bytes:
        """The bytes to send as BINARY."""


Value = DecodedValue | bytearray | memoryview | SentAsBinary
"""The types that can be encoded as typed data. `String` and `Binary` are bytes, `Int32` an int."""

SCOPES: Final = {scope.name.lower(): int(scope) for scope in Scope}
"""Numbers of the scopes by their names in HAProxy's configuration: ``"proc"`` to ``"res"``."""

SCOPE_NAMES: Final = tuple(SCOPES)
"""Names of the scopes by their numbers, which are 0 to 4."""

VARIABLE: Final = re.compile(rf"({'|'.join(SCOPES)})\.([A-Za-z0-9_.]+)", re.ASCII)
"""The full name of a variable, such as ``"txn.user"``: scope, dot and name."""

Buffer = bytes | bytearray | memoryview
"""The types that the decoders read."""
