"""Addresses of servers and logs, as HAProxy writes them (section 11 of its manual)."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from spop.address import Address

_PREFIX = re.compile(r"(unix|abns|fd|sockpair|ring|(?:udp|tcp|ip|stream\+)?(?:ipv)?[46]?)@")
_STANDARD_STREAMS = {"stdout": "stdout", "stderr": "stderr", "fd@1": "stdout", "fd@2": "stderr"}
_HOST_NAME = re.compile(r"(?!(?:global|stdout|stderr)\Z)[A-Za-z0-9_.-]+", re.ASCII)
_SYSLOG_PORT = 514


def read_server_address(text: str) -> str:
    """The address of a server, as ``HOST:PORT`` or ``unix:PATH``.

    Raises:
        ValueError: the text is no address, an address of another kind, or has no port.
    """
    if path := _unix_path(text):
        return f"unix:{path}"
    family, host, port = _split(text)
    if family in ("abns", "fd", "sockpair", "ring"):
        raise ValueError(f"'{text}': a server is at HOST:PORT, unix@PATH or /PATH")
    if not port:
        raise ValueError(f"'{text}' has no port")
    return str(Address(_host(text, family, host), _port(text, port)))


def read_log_address(text: str, *, tcp: bool = False) -> str:
    """The target of a log: ``stdout``, ``stderr``, ``HOST:PORT``, ``abns@NAME`` or a path.

    Args:
        tcp: HAProxy logs over TCP. The engine does not: it gives ``tcp@HOST:PORT``.

    Raises:
        ValueError: HAProxy would refuse the address. In an SPOE file, it refuses rings, and TCP
            before 3.0.
    """
    if text in _STANDARD_STREAMS:
        return _STANDARD_STREAMS[text]
    if path := _unix_path(text):
        return path
    family, host, port = _split(text)
    if tcp and family.startswith("tcp"):
        return f"tcp@{Address(_host(text, family, host), _port(text, port or '') or _SYSLOG_PORT)}"
    if family.startswith(("ring", "tcp")):
        raise ValueError(f"'{text}': an agent can't log to rings or over TCP")
    if family in ("abns", "fd"):
        return f"{family}@{host}"
    if family == "sockpair":
        raise ValueError(f"'{text}': there is no such socket")
    return str(Address(_host(text, family, host), _port(text, port or "") or _SYSLOG_PORT))


def _unix_path(text: str) -> str:
    path = text.removeprefix("unix@")
    return path if path.startswith("/") or path != text else ""


def _split(text: str) -> tuple[str, str, str | None]:
    """The family, host and port of an address. A missing port is None."""
    prefix = _PREFIX.match(text)
    family = prefix[1] if prefix else ""
    rest = text[prefix.end() :] if prefix else text
    if family in ("abns", "fd", "sockpair", "ring") or rest.endswith("]"):
        return family, rest, None
    host, colon, port = rest.rpartition(":")
    return (family, host, port) if colon else (family, rest, None)


def _host(text: str, family: str, host: str) -> str:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if bare in ("", "*"):
        return "::" if family.endswith("6") else "0.0.0.0"
    if ":" in bare or family.endswith("6"):
        kind: type[IPv4Address | IPv6Address] = IPv6Address
    elif family.endswith("4") or re.fullmatch("[0-9.]+", bare):
        kind = IPv4Address
    elif _HOST_NAME.fullmatch(bare):
        return bare
    else:
        raise ValueError(f"'{host}' in '{text}' is no address")
    try:
        return str(kind(bare))
    except AddressValueError:
        raise ValueError(f"'{host}' in '{text}' is no address") from None


def _port(text: str, port: str) -> int:
    if not port:
        return 0
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"'{port}' in '{text}' is no port")
    return int(port)
