"""Addresses of agents, as users write them."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """Where to listen or to connect: a TCP host and port, or the path of a unix socket."""

    host: str
    port: int
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT`` or ``unix:PATH``.

        Raises:
            ValueError: it is none of these.
        """
        if text.startswith("unix:"):
            if len(text) == len("unix:"):
                raise ValueError(f"address {text!r} has no path")
            return cls("", 0, text[len("unix:") :])
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"address {text!r} is neither HOST:PORT nor unix:PATH")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"address {text!r}: write an IPv6 address as [ADDRESS]:PORT")
        return cls(host, int(port))

    @property
    def reachable(self) -> Address:
        """Where to connect to: without a host, on this machine."""
        if self.path is None and not self.host:
            return self._replace(host="127.0.0.1")
        return self

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
