"""Requests and streams as a server received them. Most parts are made when something reads them."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from spop.engine.stream import (
    NOT_INDEXED,
    HeaderFields,
    Indexed,
    IPAddress,
    Request,
    Response,
    Stream,
)
from spop.engine.variables import Session

T = TypeVar("T")


def when_read(make: Callable[[Any], T]) -> T:
    """An attribute that is made when something reads it first. Type checkers see its value."""
    attribute: Any = functools.cached_property(make)
    made: T = attribute
    return made


class ReceivedRequest(Request):
    """A request. A subclass makes the version and the header fields when something reads them.

    Attributes:
        received: what the server gave.
    """

    received: Any
    body: bytes = b""
    _indexed: Indexed = NOT_INDEXED

    if TYPE_CHECKING:

        def __init__(self) -> None: ...

    else:  # The middleware fills it in, as `EngineCore.begin` does a stream.
        __init__ = object.__init__


class ReceivedStream(Stream):
    """A stream that knows no proxies, and what rules have done with it.

    Attributes:
        received: what the server gave. A subclass makes the rest of it when something reads it.
        failed: an exchange with an agent has failed.
        changed: the names, in lower case, of header fields that rules have changed in the request
            or, once there is one, in the response.
    """

    received: Any
    request: Request
    # Fields that most requests leave as they are have no place in the instance, and cost nothing.
    frontend: str | None = None
    backend: str | None = None
    response: Response | None = None
    session: Session | None = None
    failed: bool = False
    changed: frozenset[str] = frozenset()
    unique_id: str | None = when_read(lambda _: new_unique_id())

    if TYPE_CHECKING:

        def __init__(self) -> None: ...

    else:  # As the request.
        __init__ = object.__init__

    def begin_response(self, response: Response) -> None:
        """Rules and messages read this response from now on."""
        self.response = response
        self.variables.begin_response()
        self.changed = frozenset()


@functools.lru_cache(1024)  # Clients send several requests: 0.2 µs in place of 3 to 6.
def address(host: str | None) -> IPAddress | None:
    """The address that a server gives as a host; None if it is no address."""
    try:
        return ip_address((host or "").partition("%")[0])
    except ValueError:
        return None


_random = random.Random()
if hasattr(os, "register_at_fork"):  # The children of a server must not make the same ids.
    os.register_at_fork(after_in_child=_random.seed)


def new_unique_id() -> str:
    """A unique-id for a request without one."""
    return f"{_random.getrandbits(128):032x}"


def http_version(version: str) -> str:
    """The version in HAProxy's spelling: "2.0" for ASGI's "2"."""
    return version if "." in version else f"{version}.0"


def quoted(path: str | bytes) -> str:
    """A path that the server has decoded, percent-encoded again."""
    return quote(path, safe="/!$&'()*+,:;=@~")


def is_event_stream(headers: HeaderFields) -> bool:
    """Whether a response is a stream of server-sent events, which may never end."""
    return any(n.lower() == "content-type" and "text/event-stream" in v for n, v in headers)
