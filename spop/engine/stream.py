"""The data of one stream, which sample fetches read. The caller of the engine fills it in.

This is plain data. Text is str, as decoded from SPOP's STRING: UTF-8 with surrogateescape. What is
not known stays None, and a fetch of it gives NULL.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TypedDict

from spop.engine.variables import Session, Variables
from spop.values import DecodedValue

IPAddress = IPv4Address | IPv6Address
HeaderFields = list[tuple[str, str]]
"""Names and values of header fields, in the order of the message."""

Indexed = tuple[HeaderFields | None, int, dict[str, list[str]]]
"""The indexed list, its length, and the values by name in lower case."""

NOT_INDEXED: Indexed = None, 0, {}


@dataclass(slots=True)
class Request:
    """An HTTP request. ``uri`` is that of the request line, ``body`` what has arrived so far."""

    method: str = "GET"
    uri: str = "/"
    version: str = "1.1"
    headers: HeaderFields = field(default_factory=list)
    body: bytes = b""
    _indexed: Indexed = field(default=NOT_INDEXED, init=False, repr=False, compare=False)


@dataclass(slots=True)
class Response:
    """An HTTP response. ``body`` is what has arrived so far."""

    status: int = 200
    version: str = "1.1"
    headers: HeaderFields = field(default_factory=list)
    body: bytes = b""
    _indexed: Indexed = field(default=NOT_INDEXED, init=False, repr=False, compare=False)


def header_fields(message: Request | Response, name: str) -> Sequence[str]:
    """The values of a message's header fields of this name, which is in lower case.

    To change a field, replace the list: a change in place is not always seen.
    """
    # A message is read by several fetches. The index is built at the first one, and again where
    # the list is another or has another length.
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
    """The client's TLS session. Names are OpenSSL's; ``protocol`` is "TLSv1.3", for example."""

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
        destination, destination_port: the address that the client connected to.
        frontend, backend: the names of the proxies.
        response: None until there is one. ``hdr`` and fetches like it read it from then on.
        variables: values by whole name, such as ``"txn.user"``. Any mapping becomes `Variables`.
        started: when the stream began, in seconds since 1970.
        session: the client's connection, which several streams may share.
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
    variables: Variables = None  # type: ignore[assignment]  # Set in __post_init__.
    unique_id: str | None = None
    started: float = field(default_factory=time.time)
    session: Session | None = None

    def __post_init__(self) -> None:
        variables: Variables | None = self.variables
        if type(variables) is not Variables:  # An isinstance of an ABC takes three times as long.
            self.variables = Variables(variables, self.session)


class StreamFields(TypedDict, total=False):
    """The fields of a `Stream` by name, for type checkers."""

    source: IPAddress | None
    source_port: int
    destination: IPAddress | None
    destination_port: int
    frontend: str | None
    backend: str | None
    request: Request | None
    response: Response | None
    tls: Tls | None
    variables: Mapping[str, DecodedValue]
    unique_id: str | None
    started: float
    session: Session | None
