"""Addresses of agents, as users and HAProxy write them (section 11 of HAProxy's manual).

| written | meaning |
|---|---|
| ``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT``, ``*:PORT`` | TCP |
| ``ipv4@HOST:PORT``, ``ipv6@HOST:PORT`` | TCP over this version of IP alone |
| ``unix@PATH``, ``unix:PATH``, ``/PATH`` | the unix socket of a file |
| ``abns@NAME`` | an abstract unix socket whose name fills the address with NUL bytes |
| ``abnsz@NAME`` | one whose name ends the address (HAProxy 3.1 and later) |
| ``fd@NUMBER`` | a socket that this process inherited, to listen on |
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

ADDRESS_SIZE = 108
"""Bytes of a unix socket's address: ``sun_path`` on Linux."""

MAX_PORT = 65535

_PREFIX = re.compile(r"(?:stream\+)?([a-z]+[46]?)@")
FAMILIES = {
    "ip": socket.AF_UNSPEC,
    "tcp": socket.AF_UNSPEC,
    "ipv4": socket.AF_INET,
    "tcp4": socket.AF_INET,
    "ipv6": socket.AF_INET6,
    "tcp6": socket.AF_INET6,
}
"""Families of TCP addresses, by the prefix before ``@`` (section 11 of HAProxy's manual)."""
FORMS = "HOST:PORT, unix@PATH or abns@NAME"


class Address(NamedTuple):
    """Where to listen or to connect.

    Attributes:
        host: empty for any address of this machine.
        path: of a unix socket, as the kernel takes it; an abstract one's begins with NUL.
        family: the one version of IP to use; 0: any.
        fd: the number of an inherited socket.
    """

    host: str
    port: int
    path: str | None = None
    family: int = 0
    fd: int | None = None

    @classmethod
    def parse(cls, text: str, *, listens: bool = False) -> Address:
        """Read an address.

        Args:
            listens: it is one to listen on, so ``fd@NUMBER`` is allowed.

        Raises:
            ValueError: it is none. The message says why.
        """
        prefix = _PREFIX.match(text)
        kind, rest = (prefix[1], text[prefix.end() :]) if prefix else ("", text)
        if text.startswith("unix:"):
            kind, rest = "unix", text.removeprefix("unix:")
        if kind in ("unix", "uxst") or rest.startswith("/"):
            return cls("", 0, _path(text, rest))
        if kind in ("abns", "abnsz"):
            return cls("", 0, abstract(text, rest, fills=kind == "abns"))
        if kind == "fd" and listens:
            return cls("", 0, fd=_fd(text, rest))
        if (kind and kind not in FAMILIES) or "://" in text:
            raise ValueError(f"address {text!r}: {unusable(kind)}")
        return _tcp(text, rest, FAMILIES.get(kind, socket.AF_UNSPEC))

    @property
    def reachable(self) -> Address:
        """Where to connect to: without a host, on this machine."""
        if self.path is None and not self.host:
            loopback = "::1" if self.family == socket.AF_INET6 else "127.0.0.1"
            return self._replace(host=loopback, family=0)
        return self

    def __str__(self) -> str:
        if self.fd is not None:
            return f"fd@{self.fd}"
        if self.path is not None:
            return _path_text(self.path)
        family = "ipv6@" if self.family == socket.AF_INET6 else "ipv4@" if self.family else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{family}{host}:{self.port}"


Addresses = str | Address | Iterable[str | Address]
"""One address or several, as text or read."""


def texts_of(addresses: Addresses) -> list[str]:
    """Each address as text. An `Address` is one, although it is a tuple."""
    if isinstance(addresses, str | Address):
        return [str(addresses)]
    return [str(each) for each in addresses]


def unusable(kind: str) -> str:
    """Why an address of this kind, which HAProxy has, can't be used."""
    if kind == "fd":
        return "fd@NUMBER is an inherited socket to listen on, nothing to connect to"
    if kind == "sockpair":
        return "sockpair@ joins two HAProxy processes through an inherited socket; use unix@PATH"
    if not kind:
        return f"it is a URL; write {FORMS}"
    return f"SPOP does not run over {kind}@; write {FORMS}"


def abstract(text: str, name: str, *, fills: bool) -> str:
    """The path of an abstract socket. HAProxy's ``abns@`` counts NUL bytes behind the name.

    Raises:
        ValueError: the name is empty or too long.
    """
    size = len(name.encode("utf-8", "surrogateescape")) + 1
    if not 1 < size <= ADDRESS_SIZE:
        raise ValueError(f"address {text!r}: a name has 1 to {ADDRESS_SIZE - 1} bytes")
    return f"\0{name}" + "\0" * (ADDRESS_SIZE - size if fills else 0)


def _path(text: str, path: str) -> str:
    if not path:
        raise ValueError(f"address {text!r} has no path")
    if len(path.encode("utf-8", "surrogateescape")) >= ADDRESS_SIZE or "\0" in path:
        raise ValueError(f"address {text!r}: a path has 1 to {ADDRESS_SIZE - 1} bytes, and no NUL")
    return path


def _path_text(path: str) -> str:
    if not path.startswith("\0"):
        return f"unix:{path}"
    fills = len(path.encode("utf-8", "surrogateescape")) == ADDRESS_SIZE
    return f"{'abns' if fills else 'abnsz'}@{path[1:].rstrip(chr(0))}"


def _fd(text: str, number: str) -> int:
    if not (number.isascii() and number.isdigit()) or int(number) > 2**31 - 1:
        raise ValueError(f"address {text!r}: {number!r} is no file descriptor")
    return int(number)


def _tcp(text: str, rest: str, family: int) -> Address:
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit():
        raise ValueError(f"address {text!r} is neither HOST:PORT nor unix:PATH nor abns@NAME")
    if len(port.lstrip("0")) > 5 or int(port) > MAX_PORT:
        raise ValueError(f"address {text!r}: a port is a number from 0 to {MAX_PORT}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host and family != socket.AF_INET6:
        raise ValueError(f"address {text!r}: write an IPv6 address as [ADDRESS]:PORT")
    if host == "*":
        host = ""
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return Address(_name(text, host), int(port), None, family)
    if family and family != (socket.AF_INET if literal.version == 4 else socket.AF_INET6):
        raise ValueError(f"address {text!r}: {host} is an IPv{literal.version} address")
    return Address(host, int(port))


def _name(text: str, host: str) -> str:
    """The name of a host, if one can be looked up by it."""
    labels = host.removesuffix(".").split(".") if host else ()
    try:
        # Names of ASCII are the rule. They need no codec, whose import takes milliseconds.
        valid = host.isascii() or bool(host.encode("idna"))
    except UnicodeError:
        valid = False
    if not valid or not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"address {text!r}: {host!r} can't be the name of a host")
    return host
