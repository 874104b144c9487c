"""What sample fetches read: the data of one stream, filled in by whoever runs the engine.

Plain data. Text is str as SPOP's STRING is decoded: UTF-8, with
surrogateescape for what is none. What isn't known stays None, and fetches of it give NULL.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from spop.engine.variables import Session, Variables

IPAddress = IPv4Address | IPv6Address
HeaderFields = list[tuple[str, str]]


Indexed = tuple[HeaderFields | None, int, dict[str, list[str]]]
"""The list that was indexed, its length, and the values by name in lower case."""


@dataclass(slots=True)
class Request:
    """An HTTP request. ``uri`` is the request line's; ``body`` is as much as has arrived."""

    method: str = "GET"
    uri: str = "/"
    version: str = "1.1"
    headers: HeaderFields = field(default_factory=list)
    body: bytes = b""
    _indexed: Indexed = field(default=(None, 0, {}), init=False, repr=False, compare=False)


@dataclass(slots=True)
class Response:
    """An HTTP response. ``body`` is as much as has arrived."""

    status: int = 200
    version: str = "1.1"
    headers: HeaderFields = field(default_factory=list)
    body: bytes = b""
    _indexed: Indexed = field(default=(None, 0, {}), init=False, repr=False, compare=False)


def header_fields(message: Request | Response, name: str) -> Sequence[str]:
    """The values of a message's header fields of this name, which is in lower case.

    They are indexed when first asked for, and again when the list is another or has grown or
    shrunk: one who changes a field in place should replace the list.
    """
    headers = message.headers
    indexed, count, index = message._indexed
    if indexed is not headers or count != len(headers):
        index = {}
        for field_name, value in headers:
            index.setdefault(field_name.lower(), []).append(value)
        message._indexed = headers, len(headers), index
    return index.get(name, ())


@dataclass(slots=True)
class Tls:
    """The client's TLS session, in OpenSSL's names (``protocol`` is such as "TLSv1.3")."""

    protocol: str | None = None
    cipher: str | None = None
    alpn: str | None = None
    sni: str | None = None
    key_size: int | None = None
    session_id: bytes | None = None
    resumed: bool = False
    client_certificate: bool = False


@dataclass(slots=True)
class Stream:
    """One stream: its connection, request, response and variables.

    Attributes:
        source, source_port: the client's address.
        destination, destination_port: where the client connected to.
        frontend, backend: the proxies' names.
        response: None until there is one; from then on, ``hdr`` and the like read it.
        variables: values by scope and name, such as ``"txn.user"``; made of any mapping.
        started: when the stream began, in seconds since 1970.
        session: the client's connection, where streams share one.
    """

    source: IPAddress | None = None
    source_port: int = 0
    destination: IPAddress | None = None
    destination_port: int = 0
    frontend: str | None = None
    backend: str | None = None
    request: Request | None = None
    response: Response | None = None
    tls: Tls | None = None
    variables: Variables = None  # type: ignore[assignment]  # Set as soon as it is made.
    unique_id: str | None = None
    started: float = field(default_factory=time.time)
    session: Session | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.variables, Variables):
            self.variables = Variables(self.variables, self.session)
