"""The servers of a backend, and which one takes the next connection (``balance``).

The pool of connections asks a `Backend`. `spop.engine.health` does the checks, and sets the flag
`up` of each `BackendServer`.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter, itemgetter

from spop.address import Address, Addresses, texts_of
from spop.certificates import load_certificate
from spop.client.dial import Endpoint
from spop.client.servers import Server, Servers
from spop.engine.config.model import BackendConfig, ServerConfig
from spop.errors import reason


class BackendServer(Server):
    """A server of a backend, and its state.

    Attributes:
        config: its ``server`` line.
        up: whether its checks succeed; without checks, whether it is enabled.
    """

    __slots__ = ("config", "current_weight", "up")

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(endpoint(config))
        self.config: ServerConfig = config
        self.up: bool = not config.disabled
        self.current_weight: int = 0

    @property
    def full(self) -> bool:
        return 0 < self.config.maxconn <= self.connections

    @property
    def load(self) -> float:
        return self.connections / self.config.weight


class Backend(Servers[BackendServer]):
    """The servers of a ``backend`` section, or of a list of addresses.

    A server that is down, full or of weight 0 gets no connection. If no other server is up, the
    first ``backup`` server that is up takes the connections.
    """

    def __init__(self, config: BackendConfig) -> None:
        choose = _CHOICES.get(config.balance) or partial(_random, draws=config.random_draws)
        super().__init__(map(BackendServer, config.servers), choose)
        self.config = config

    def usable(self) -> Sequence[BackendServer]:
        up = [server for server in self.servers if server.up and server.config.weight > 0]
        main = [server for server in up if not server.config.backup]
        return [server for server in main or up[:1] if not server.full]


def _roundrobin(servers: Sequence[BackendServer]) -> BackendServer:
    """Smooth weighted round-robin."""
    # Each server gains its weight. The one with the most is chosen, and loses the sum of all.
    for server in servers:
        server.current_weight += server.config.weight
    chosen = max(servers, key=lambda server: server.current_weight)
    chosen.current_weight -= sum(server.config.weight for server in servers)
    return chosen


def _leastconn(servers: Sequence[BackendServer]) -> BackendServer:
    least = min(server.load for server in servers)
    return _roundrobin([server for server in servers if server.load == least])


_CHOICES: dict[str, Callable[[Sequence[BackendServer]], BackendServer]] = {
    "roundrobin": _roundrobin,
    "leastconn": _leastconn,
    "first": itemgetter(0),
}


def _random(servers: Sequence[BackendServer], draws: int) -> BackendServer:
    """Draws some servers by weight, and takes the least loaded."""
    weights = [server.config.weight for server in servers]
    return min(random.choices(servers, weights, k=draws), key=attrgetter("load"))


def of_addresses(name: str, addresses: Addresses) -> BackendConfig:
    """A backend whose servers are given by their addresses.

    Raises:
        ValueError: there is no address, or one is neither HOST:PORT nor unix:PATH.
    """
    texts = texts_of(addresses)
    if not texts:
        raise ValueError(f"backend {name!r} needs an address")
    for text in texts:
        Address.parse(text)
    return BackendConfig(name, tuple(ServerConfig(text, text) for text in dict.fromkeys(texts)))


def endpoint(config: ServerConfig) -> Endpoint:
    """How to connect to a server.

    Raises:
        ValueError: a certificate file can't be read or used. The message names it.
    """
    address = Address.parse(config.address).reachable
    return Endpoint(address, _tls(config) if config.ssl else None, config.sni)


def _tls(config: ServerConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:
        raise ValueError(f"ca-file: cannot use {config.ca_file}: {reason(error)}") from None
    # As in HAProxy, the name in a certificate is checked only if `sni` or `verifyhost` is given.
    context.check_hostname = config.verify and config.sni is not None
    if not config.verify:
        context.verify_mode = ssl.CERT_NONE
    if config.crt is not None:
        try:
            load_certificate(context, config.crt)
        except ValueError as error:
            raise ValueError(f"crt: cannot use {error}") from None
    return context
