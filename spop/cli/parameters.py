"""What several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from spop.address import Address


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


def timeout_option(seconds: float) -> Callable[[Any], Any]:
    """``--timeout``."""
    return click.option(
        "--timeout", type=click.FloatRange(0.001), default=seconds, show_default=True,
        help="Seconds to wait for a connection, a HELLO or an ACK.",
    )  # fmt: skip
