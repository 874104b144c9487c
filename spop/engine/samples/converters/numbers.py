"""Converters of integers, booleans and addresses. Arithmetic is that of C, limited to 64 bits."""

from __future__ import annotations

import operator
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from spop.engine.samples.arguments import Mask4, Mask6, Operand
from spop.engine.samples.registry import converter
from spop.engine.samples.types import INT_MAX, INT_MIN, SampleType, clamp, ipv6_to_ipv4
from spop.engine.stream import Stream


def quotient(value: int, divisor: int) -> int:
    """Division as in C, rounded towards zero."""
    if divisor == 0:  # HAProxy gives the largest integer.
        return INT_MAX
    quotient = abs(value) // abs(divisor)
    return quotient if (value < 0) == (divisor < 0) else -quotient


def _remainder(value: int, divisor: int) -> int:
    """The remainder as in C, with the sign of the value."""
    # HAProxy gives 0 for a divisor of 0.
    return value - divisor * quotient(value, divisor) if divisor else 0


def _as_given(value: int, result: int) -> int:
    """The result, limited to 64 bits; a boolean if the value is one, as in HAProxy."""
    if type(value) is bool:
        return bool(result)
    return result if INT_MIN <= result <= INT_MAX else clamp(result)


def _register(name: str, compute: Callable[[int, int], int]) -> None:
    def compute_as_given(value: int, operand: int) -> int:
        return _as_given(value, compute(value, operand))

    def arithmetic(operand: Operand) -> Callable[[int, Stream], int | None]:
        if isinstance(operand, int):
            return lambda value, stream: _as_given(value, compute(value, operand))
        return operand.computer(SampleType.INT, compute_as_given)

    converter(name)(arithmetic)


_register("add", operator.add)
_register("sub", operator.sub)
_register("mul", operator.mul)
_register("div", quotient)
_register("mod", _remainder)
_register("and", operator.and_)
_register("or", operator.or_)
_register("xor", operator.xor)


@converter("neg")
def neg(value: int) -> int:
    return _as_given(value, -value)


@converter("cpl")
def cpl(value: int) -> int:
    return _as_given(value, ~int(value))


@converter("bool")
def boolean(value: int) -> bool:
    return value != 0


@converter("not")
def negation(value: int) -> bool:
    return value == 0


@converter("odd")
def odd(value: int) -> bool:
    return value & 1 == 1


@converter("even")
def even(value: int) -> bool:
    return value & 1 == 0


@converter("iif")
def iif(value: bool, if_true: str, if_false: str) -> str:
    return if_true if value else if_false


@converter("htonl")
def htonl(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "big")


@converter("ipmask")
def ipmask(
    value: IPv4Address | IPv6Address, mask4: Mask4, mask6: Mask6 | None = None
) -> IPv4Address | IPv6Address | None:
    """The network of an address."""
    # HAProxy masks an IPv6 address that contains an IPv4 one as IPv4.
    if isinstance(value, IPv6Address):
        inner = ipv6_to_ipv4(value)
        if inner is None:
            return None if mask6 is None else IPv6Address(int(value) & mask6)
        value = inner
    return IPv4Address(int(value) & mask4)
