"""What several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from spop.address import Address
from spop.constants import HAPROXY_FRAME_SIZE, MIN_FRAME_SIZE
from spop.values import UInt32


class AddressType(click.ParamType):  # type: ignore[type-arg]
    """``HOST:PORT`` or ``unix:PATH``."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return Address.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


ADDRESS = AddressType()

_SIZE = re.compile(r"([0-9]+)([KMG]?)", re.ASCII | re.IGNORECASE)


class SizeType(click.IntRange):
    """Bytes, as a number or with K, M or G behind it: 1024 of them, its square, its cube."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            match = _SIZE.fullmatch(value)
            if match is None:
                self.fail(f"{value!r} is no size: bytes, or with K, M or G, as in 64K", param, ctx)
            value = int(match[1]) << 10 * " KMG".index(match[2].upper() or " ")
        return super().convert(value, param, ctx)


def max_frame_size_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--max-frame-size``."""
    return click.option(
        "--max-frame-size", type=SizeType(MIN_FRAME_SIZE, UInt32.maximum), default=HAPROXY_FRAME_SIZE,
        show_default=True, help="What to offer: bytes, or with K, M or G.",
    )(command)  # fmt: skip


def timeout_option(seconds: float) -> Callable[[Any], Any]:
    """``--timeout``."""
    return click.option(
        "--timeout", type=click.FloatRange(0.001), default=seconds, show_default=True,
        help="Seconds to wait for a connection, a HELLO or an ACK.",
    )  # fmt: skip
