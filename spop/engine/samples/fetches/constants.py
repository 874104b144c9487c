"""Fetches that don't look at the traffic: literals, variables, time, chance, the process."""

from __future__ import annotations

import os
import random
import socket
import time
import uuid as uuids
from ipaddress import IPv4Address, IPv6Address

from spop.engine.samples.arguments import Variable, parse_hex, parse_unit
from spop.engine.samples.errors import ArgumentError
from spop.engine.samples.registry import fetch
from spop.engine.samples.types import Method
from spop.engine.stream import Stream

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@fetch("always_true")
def always_true(stream: Stream) -> bool:
    return True


@fetch("always_false")
def always_false(stream: Stream) -> bool:
    return False


@fetch("str")
def string(stream: Stream, value: str) -> str:
    return value


@fetch("int")
def integer(stream: Stream, value: int) -> int:
    return value


@fetch("ipv4")
def ipv4(stream: Stream, value: IPv4Address) -> IPv4Address:
    return value


@fetch("ipv6")
def ipv6(stream: Stream, value: IPv6Address) -> IPv6Address:
    return value


@fetch("meth")
def meth(stream: Stream, value: str) -> Method:
    return value  # type: ignore[return-value]


def _boolean(word: str) -> tuple[bool]:
    if word.lower() not in _BOOLEANS:
        raise ArgumentError(f"'{word}' is none of true, 1, false and 0")
    return (_BOOLEANS[word.lower()],)


@fetch("bool", prepare=_boolean)
def boolean(stream: Stream, value: str) -> bool:
    return value  # type: ignore[return-value]


def _from_hex(word: str) -> tuple[bytes]:
    if not word:
        raise ArgumentError("the sequence of hexadecimal pairs is empty")
    return (parse_hex(word),)


@fetch("bin", prepare=_from_hex)
def binary(stream: Stream, value: str) -> bytes:
    return value  # type: ignore[return-value]


@fetch("var")
def var(stream: Stream, name: Variable, default: str | None = None) -> object:
    value = stream.variables.get(name.name)
    return default if value is None else value


def _environment(name: str) -> tuple[str | None]:
    return (os.environ.get(name),)


@fetch("env", prepare=_environment)
def env(stream: Stream, name: str) -> str | None:
    return name


@fetch("rand")
def rand(stream: Stream, below: int = 2**32) -> int:
    return random.randrange(below) if below > 0 else 0


def _version(version: int = 4) -> tuple[int]:
    if version != 4:
        raise ArgumentError("only UUIDs of version 4 are supported")
    return (version,)


@fetch("uuid", prepare=_version)
def uuid(stream: Stream, version: int = 4) -> str:
    return str(uuids.uuid4())


@fetch("date", prepare=parse_unit)
def date(stream: Stream, offset: int = 0, unit: str = "s") -> int:
    return int(time.time() * int(unit)) + offset


@fetch("date_us")
def date_us(stream: Stream) -> int:
    return int(time.time() * 1_000_000) % 1_000_000


@fetch("hostname")
def hostname(stream: Stream) -> str:
    return socket.gethostname()


@fetch("unique-id")
def unique_id(stream: Stream) -> str | None:
    return stream.unique_id
