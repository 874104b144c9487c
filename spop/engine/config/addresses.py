"""Addresses of servers and logs, as HAProxy writes them (section 11 of its manual)."""

from __future__ import annotations

import re
import socket
from ipaddress import ip_address

from spop.address import FAMILIES, MAX_PORT, Address, unusable
from spop.engine.config.values import leading_integer

_PREFIX = re.compile(r"(unix|abns|fd|sockpair|ring|(?:udp|tcp|ip|stream\+)?(?:ipv)?[46]?)@")
_STANDARD_STREAMS = {"stdout": "stdout", "stderr": "stderr", "fd@1": "stdout", "fd@2": "stderr"}
_HOST_NAME = re.compile(r"(?!(?:global|stdout|stderr)\Z)[A-Za-z0-9_.-]+", re.ASCII)
_SYSLOG_PORT = 514

_SERVER_PREFIX = re.compile(r"(?:stream\+)?(?:([a-z]+[46]?)@)?")
_TCP = {"": socket.AF_UNSPEC, **FAMILIES}
_LONGEST_PATH = 97
"""Bytes of a unix socket's path that HAProxy takes: it keeps 10 for a temporary name."""


def read_server_address(text: str) -> str:
    """The address of a server, as `Address` reads it.

    Raises:
        ValueError: the text is no address, an address of another kind, or has no port.
    """
    prefix = _SERVER_PREFIX.match(text)
    assert prefix
    kind, rest = prefix[1] or "", text[prefix.end() :]
    if kind in ("unix", "uxst") or (not kind and rest.startswith("/")):
        if len(rest.encode("utf-8", "surrogateescape")) > _LONGEST_PATH:
            raise ValueError(f"'{text}': a path has {_LONGEST_PATH} bytes at most")
        return str(Address.parse(f"unix:{rest}"))
    if kind in ("abns", "abnsz"):
        return str(Address.parse(f"{kind}@{rest}"))
    if "://" in text or kind not in _TCP:
        raise ValueError(f"'{text}': {unusable(kind)}")
    if rest.endswith("]") or ":" not in rest:
        raise ValueError(f"'{text}' has no port")
    host, _, port = rest.rpartition(":")
    host, number = _host(text, kind, host), _port(text, port)
    return str(Address(host, number, None, 0 if _is_literal(host) else _TCP[kind]))


def read_log_address(text: str, *, tcp: bool = False) -> str:
    """The target of a log: ``stdout``, ``stderr``, ``HOST:PORT``, ``abns@NAME``, ``ring@NAME`` or
    a path.

    Args:
        tcp: HAProxy logs over TCP. The engine does not: it gives ``tcp@HOST:PORT``.

    Raises:
        ValueError: HAProxy would refuse the address. In an SPOE file, it refuses TCP before 3.0.
    """
    if text in _STANDARD_STREAMS:
        return _STANDARD_STREAMS[text]
    if path := _unix_path(text):
        return path
    family, host, port = _split(text)
    if tcp and family.startswith("tcp"):
        return f"tcp@{Address(_host(text, family, host), _port(text, port or '') or _SYSLOG_PORT)}"
    if family.startswith("tcp"):
        raise ValueError(f"'{text}': an agent can't log over TCP")
    if family in ("abns", "fd", "ring"):
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
    if _is_literal(bare):
        version = str(ip_address(bare).version)
        if family[-1:] == version or not family.endswith(("4", "6")):
            return str(ip_address(bare))
    elif ":" not in bare and not re.fullmatch("[0-9.]+", bare) and _HOST_NAME.fullmatch(bare):
        return bare
    raise ValueError(f"'{host}' in '{text}' is no address")


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _port(text: str, port: str) -> int:
    if not port:
        return 0
    if not (port.isascii() and port.isdigit()) or leading_integer(port) > MAX_PORT:
        raise ValueError(f"'{port}' in '{text}' is no port")
    return int(port)
