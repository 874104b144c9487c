"""What several commands take."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from spop.address import Address
from spop.constants import HAPROXY_FRAME_SIZE, MIN_FRAME_SIZE
from spop.haproxy_version import Version
from spop.values import UInt32

FILE = click.Path(dir_okay=False, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


if TYPE_CHECKING:
    ParamType: TypeAlias = click.ParamType[Any, Any]  # Older ones are not generic.
else:
    ParamType = click.ParamType


class OutputFile(ParamType):
    """A file to write. Whether it can be written is known before the command does its work."""

    name = "file"
    _existing = click.Path(dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(self._existing.convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"cannot write {path}: {path.parent} is no folder", param, ctx)
        if not path.exists() and not os.access(path.parent, os.W_OK):
            self.fail(f"cannot write {path}: Permission denied", param, ctx)
        return path

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> Any:
        return self._existing.shell_complete(ctx, param, incomplete)


OUTPUT_FILE = OutputFile()


class Parsed(ParamType):
    """What a function makes of a text. Its ValueError says what is wrong with it."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _haproxy_version(text: str) -> str:
    Version.of_haproxy(text)
    return text


ADDRESS = Parsed("address", Address.parse)
HAPROXY_VERSION = Parsed("version", _haproxy_version)


_PATH = re.compile(r"/|(?:stream\+)?(?:unix|uxst|abnsz?)[@:]")


class OneOfSeveral(ParamType):
    """A value of an option that may be repeated. The path of a socket may have a comma."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # The file can have anything.
            self.fail(f"{value!r} is no text", param, ctx)
        if "," in value and not _PATH.match(value):
            self.fail(
                f"{value!r} is more than one value: separate them with spaces in a variable, "
                "repeat the flag, or write a list in the file",
                param,
                ctx,
            )
        return value


class Whole(click.IntRange):
    """A whole number. click would call it "integer range"."""

    name = "integer"


class Seconds(click.FloatRange):
    """A time. "nan" and "inf" are none.

    Args:
        longest: the limit. By default 11 days, as poll takes 24.8 at most.
    """

    name = "number"

    def __init__(self, low: float, high: float | None = None, longest: float = 1e6) -> None:
        super().__init__(low, high)
        self._longest = longest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not seconds <= self._longest:
            self.fail(f"{value} is not a number up to {self._longest:g}", param, ctx)
        return seconds


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


def bufsize_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--bufsize``."""
    return click.option(
        "--bufsize", type=SizeType(1024, 2**31 - 1), metavar="SIZE",
        help="tune.bufsize of HAProxy, which limits max-frame-size.  [default: that of the "
        "haproxy.cfg, or 16384]",
    )(command)  # fmt: skip


def timeout_option(seconds: float) -> Callable[[Any], Any]:
    """``--timeout``."""
    return click.option(
        "--timeout", type=Seconds(0.001), default=seconds, show_default=True,
        help="Seconds to wait for a connection, a HELLO or an ACK.",
    )  # fmt: skip
