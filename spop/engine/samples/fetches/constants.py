"""Fetches that read no traffic: literals, variables, time, the process (section 7.3.2)."""

from __future__ import annotations

import os
import random
import socket
import time
import uuid as uuids
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter
from typing import TypeVar

from spop.engine.samples.arguments import Unit, VariableArgument, parse_hex
from spop.engine.samples.places import Source
from spop.engine.samples.registry import fetch
from spop.engine.samples.types import Method
from spop.engine.stream import Stream

T = TypeVar("T")

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _always(value: T) -> Callable[[Stream], T]:
    return lambda stream: value


fetch("always_true", of=Source.CONSTANT, gives=bool)(_always(True))
fetch("always_false", of=Source.CONSTANT, gives=bool)(_always(False))
fetch("wait_end", gives=bool)(_always(True))  # The SPOE filter does not wait for more data.
fetch("unique-id", gives=str)(attrgetter("unique_id"))


@fetch("str", of=Source.CONSTANT)
def string(value: str) -> Callable[[Stream], str]:
    return _always(value)


@fetch("int", of=Source.CONSTANT)
def integer(value: int) -> Callable[[Stream], int]:
    return _always(value)


@fetch("ipv4", of=Source.CONSTANT)
def ipv4(value: IPv4Address) -> Callable[[Stream], IPv4Address]:
    return _always(value)


@fetch("ipv6", of=Source.CONSTANT)
def ipv6(value: IPv6Address) -> Callable[[Stream], IPv6Address]:
    return _always(value)


@fetch("meth", of=Source.CONSTANT)
def meth(value: str) -> Callable[[Stream], Method]:
    return _always(value)  # type: ignore[arg-type]


@fetch("bool", of=Source.CONSTANT)
def boolean(word: str) -> Callable[[Stream], bool]:
    if word.lower() not in _BOOLEANS:
        raise ValueError(f"'{word}' is none of true, 1, false and 0")
    return _always(_BOOLEANS[word.lower()])


@fetch("bin", of=Source.CONSTANT)
def binary(word: str) -> Callable[[Stream], bytes]:
    if not word:
        raise ValueError("the sequence of hexadecimal pairs is empty")
    return _always(parse_hex(word))


@fetch("var")
def var(name: VariableArgument, default: str | None = None) -> Callable[[Stream], object]:
    whole = name.name
    if default is None:
        return lambda stream: stream.variables.get(whole)

    def value_or_default(stream: Stream) -> object:
        value = stream.variables.get(whole)
        return default if value is None else value

    return value_or_default


@fetch("env")
def env(name: str) -> Callable[[Stream], str | None]:
    return _always(os.environ.get(name))


@fetch("rand")
def rand(stream: Stream, below: int = 2**32) -> int:
    # HAProxy multiplies without a sign: a negative bound is a very large one.
    return (random.getrandbits(32) * below & 2**64 - 1) >> 32


@fetch("uuid")
def uuid(version: int = 4) -> Callable[[Stream], str]:
    if version != 4:
        raise ValueError("only UUIDs of version 4 are supported")
    return lambda stream: str(uuids.uuid4())


@fetch("date")
def date(stream: Stream, offset: int = 0, unit: Unit = Unit(1)) -> int:  # noqa: B008
    return int(time.time() * unit) + offset


@fetch("date_us")
def date_us(stream: Stream) -> int:
    return int(time.time() * 1_000_000) % 1_000_000


@fetch("hostname")
def hostname() -> Callable[[Stream], str]:
    return _always(socket.gethostname())
