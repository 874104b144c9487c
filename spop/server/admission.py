"""Which connections are admitted: networks, number in all, number from one address."""

from __future__ import annotations

import threading
from collections import Counter
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from spop.counters import Cell
from spop.options import Options
from spop.server.balance import Balance


class Admission:
    """Counts a process's connections and admits further ones. Threads share it."""

    def __init__(self, options: Options, balance: Balance | None = None) -> None:
        self._balance = balance
        self._networks = [ip_network(text, strict=False) for text in options.allow]
        self._limit = options.max_connections
        self._limit_per_peer = options.max_connections_per_peer
        self._lock = threading.Lock()
        self._by_host: Counter[str] = Counter()
        self.connections: int = 0

    def admit(self, host: str | None) -> Cell | None:
        """Count a connection from an IP address (None: a unix socket), if it is admitted.

        Returns:
            None if it is admitted, else the cell that counts the reason.
        """
        if host is not None and self._networks and not _is_in(host, self._networks):
            return Cell.REFUSED_NOT_ALLOWED
        with self._lock:
            if self.connections >= self._limit:
                return Cell.REFUSED_CONNECTIONS
            if host is not None and 0 < self._limit_per_peer <= self._by_host[host]:
                return Cell.REFUSED_PER_PEER
            self._count(host, 1)
        return None

    def adopt(self, host: str | None) -> None:
        """Count a connection that another process admitted, even beyond the limits."""
        with self._lock:
            self._count(host, 1)

    def release(self, host: str | None) -> None:
        """A connection is closed."""
        with self._lock:
            self._count(host, -1)

    def _count(self, host: str | None, change: int) -> None:
        self.connections += change
        if host is not None and self._limit_per_peer:
            self._by_host[host] += change
            if not self._by_host[host]:
                del self._by_host[host]
        if self._balance is not None:
            self._balance.tell(self.connections)


def _is_in(host: str, networks: list[IPv4Network | IPv6Network]) -> bool:
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
