"""A backend's servers: which one takes the next connection.

`Backend` is what the pool of connections asks. Health is `spop.engine.health`'s business; here
it is a flag of each `BackendServer`.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Iterable, Sequence

from spop.address import Address
from spop.client.dial import Endpoint
from spop.client.pool import FIRST_BACKOFF, LAST_BACKOFF, Servers
from spop.engine.config.model import BackendConfig, ServerConfig


class BackendServer:
    """A server of a backend, and how it fares.

    Attributes:
        config: its ``server`` line.
        up: whether its checks succeed; without checks, whether it is enabled.
        connections: how many are open.
    """

    __slots__ = ("backoff", "config", "connections", "endpoint", "retry_at", "turn", "up")

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.endpoint = endpoint(config)
        self.up = not config.disabled
        self.connections = 0
        self.retry_at = 0.0
        self.backoff = FIRST_BACKOFF
        self.turn = 0

    @property
    def full(self) -> bool:
        return 0 < self.config.maxconn <= self.connections

    @property
    def load(self) -> float:
        return self.connections / self.config.weight


class Backend(Servers):
    """The servers of a ``backend`` section, or of a list of addresses.

    A server that is down, full or without weight gets no connection, and one that refused a
    connection none for 0.1 to 10 seconds. Of the ``backup`` ones, the first that is up stands
    in where no other is.
    """

    def __init__(self, config: BackendConfig) -> None:
        self.config = config
        self.servers = tuple(BackendServer(server) for server in config.servers)
        self._by_endpoint = {server.endpoint: server for server in self.servers}
        self._choose = _CHOICES.get(config.balance) or _Random(config.random_draws)

    def next(self, now: float) -> Endpoint | None:
        free = [server for server in self._usable() if server.retry_at <= now]
        return self._choose(free).endpoint if free else None

    def soonest(self) -> Endpoint | None:
        usable = self._usable()
        return min(usable, key=_retry_at).endpoint if usable else None

    def retry_at(self, now: float) -> float:
        usable = self._usable()
        return min(map(_retry_at, usable)) if usable else now + FIRST_BACKOFF

    def opened(self, endpoint: Endpoint) -> None:
        server = self._by_endpoint[endpoint]
        server.connections += 1
        server.retry_at, server.backoff = 0.0, FIRST_BACKOFF

    def failed(self, endpoint: Endpoint, now: float) -> None:
        server = self._by_endpoint[endpoint]
        server.retry_at = now + server.backoff
        server.backoff = min(2 * server.backoff, LAST_BACKOFF)

    def closed(self, endpoint: Endpoint) -> None:
        self._by_endpoint[endpoint].connections -= 1

    def _usable(self) -> Sequence[BackendServer]:
        up = [server for server in self.servers if server.up and server.config.weight > 0]
        main = [server for server in up if not server.config.backup]
        return [server for server in main or up[:1] if not server.full]


def _retry_at(server: BackendServer) -> float:
    return server.retry_at


def _roundrobin(servers: Sequence[BackendServer]) -> BackendServer:
    """In turn, smoothly by weight: each gains its weight, and who has most pays for all."""
    for server in servers:
        server.turn += server.config.weight
    chosen = max(servers, key=lambda server: server.turn)
    chosen.turn -= sum(server.config.weight for server in servers)
    return chosen


def _leastconn(servers: Sequence[BackendServer]) -> BackendServer:
    least = min(server.load for server in servers)
    return _roundrobin([server for server in servers if server.load == least])


def _first(servers: Sequence[BackendServer]) -> BackendServer:
    return servers[0]


_CHOICES: dict[str, Callable[[Sequence[BackendServer]], BackendServer]] = {
    "roundrobin": _roundrobin,
    "leastconn": _leastconn,
    "first": _first,
}


class _Random:
    """The least loaded of so many draws by weight."""

    def __init__(self, draws: int) -> None:
        self._draws = draws

    def __call__(self, servers: Sequence[BackendServer]) -> BackendServer:
        weights = [server.config.weight for server in servers]
        drawn = random.choices(servers, weights, k=self._draws)
        return min(drawn, key=lambda server: server.load)


def of_addresses(name: str, addresses: str | Iterable[str]) -> BackendConfig:
    """A backend of servers that are only addresses.

    Raises:
        ValueError: there is none, or one is neither HOST:PORT nor unix:PATH.
    """
    texts = [addresses] if isinstance(addresses, str) else list(addresses)
    if not texts:
        raise ValueError(f"backend {name!r} needs an address")
    for text in texts:
        Address.parse(text)
    return BackendConfig(name, tuple(ServerConfig(text, text) for text in dict.fromkeys(texts)))


def endpoint(config: ServerConfig) -> Endpoint:
    """Where a server is.

    Raises:
        OSError: a file of certificates can't be read (``ssl.SSLError`` where it has none).
    """
    address = Address.parse(config.address).reachable
    return Endpoint(address, _tls(config) if config.ssl else None, config.sni)


def _tls(config: ServerConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.ca_file)
    # As in HAProxy, a certificate is checked for a name only where `sni` or `verifyhost` say so.
    context.check_hostname = config.verify and config.sni is not None
    if not config.verify:
        context.verify_mode = ssl.CERT_NONE
    if config.crt is not None:
        context.load_cert_chain(config.crt)
    return context
