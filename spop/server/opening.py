"""How connections begin: accepted by this process, or given to it by another one.

A loop serves them from then on. `leaving` decides how they end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from spop.agreement import Agreement
from spop.connection import ALL_CAPABILITIES, AgentConnection
from spop.constants import Capability
from spop.counters import Cell
from spop.frames import Peer
from spop.options import Options
from spop.poller import READ
from spop.port import FastPath, FastPaths
from spop.server.engines import Engines
from spop.server.exchange import Connection, Host
from spop.server.frame_log import LoggedConnection
from spop.server.leaving import Leaving
from spop.server.listeners import peer_host, peer_name

if TYPE_CHECKING:
    import ssl

    from spop.server.tls import TLSSocket

WAITS = frozenset({Capability.ASYNC})
"""Not agreed on where connections end by themselves. With async HAProxy up to 3.0 waits for
`timeout processing` if a NOTIFY crosses a DISCONNECT, else that NOTIFY fails at once."""


MOST_KEPT = 32
"""Number of HELLOs that are kept. Each HAProxy has the same few on all of its connections."""


class Shared(Protocol):
    """What the connections of a process have in common."""

    engines: Engines
    tls: ssl.SSLContext | None

    def is_ready(self) -> bool: ...

    def movable_changed(self) -> None: ...


class Loop(Host, Protocol):
    """What the beginning of connections needs of their loop."""

    options: Options
    connections: set[Connection]

    def guarded(self, connection: Connection, call: Callable[..., object], *args: object) -> None:
        """Run `call`. An error in it ends its connection and no other."""


class Opening:
    """Begins the connections of a loop. Used in the loop's thread alone.

    Attributes:
        movable: how many connections can be moved to another loop or process.
    """

    def __init__(self, loop: Loop, shared: Shared, fast_paths: FastPaths, leaving: Leaving) -> None:
        self._loop = loop
        self._shared = shared
        self._fast_paths = fast_paths
        self._leaving = leaving
        ends = loop.options.lame_duck or loop.options.max_connection_age
        self._capabilities = ALL_CAPABILITIES - WAITS if ends else ALL_CAPABILITIES
        self.movable: int = 0

    def add(self, sock: socket.socket, sockaddr: Any, port: int | None) -> None:
        """Begin to serve an accepted and admitted connection."""
        host, address = peer_host(sockaddr), peer_name(sockaddr)
        protocol = self._new_protocol(address)
        connection = self._new_connection(sock, host, protocol, self._shared.tls)
        connection.port = port
        self._leaving.expect_hello(connection)

    def adopt(self, sock: socket.socket, state: dict[str, Any], new: bool) -> Connection:
        """Serve an admitted connection that another process gave away, or (not `new`) refused."""
        protocol = self._new_protocol(state["address"])
        peer = protocol.resume_from(state)
        connection = self._new_connection(sock, state["host"], protocol, None)
        connection.port, connection.began = state["port"], state["began"]
        self._loop.guarded(connection, self._moved_here if new else self._know, connection, peer)
        return connection

    def _moved_here(self, connection: Connection, peer: Peer) -> None:
        """HELLO was done in the process that gave the connection away."""
        self._know(connection, peer)
        self._loop.agent.connected(peer)

    def said_hello(self, connection: Connection, peer: Peer) -> None:
        """HELLO is done."""
        path = connection.fast_path
        if path.hello is not None:
            self._keep(path.hello, connection.protocol)
            path.hello = None
        self._begin(connection, peer)

    def _keep(self, hello: bytes, protocol: AgentConnection) -> None:
        """Have the fast path answer the next HELLO of the same bytes."""
        hellos, agreement, intake = self._fast_paths.hellos, protocol.agreement, protocol.intake
        # A HELLO in the ways of HAProxy 1.7 and early 1.8 also changes how flags are read.
        usual = not (intake.unread or intake.whole or intake.little_endian)
        if usual and agreement is not None and not agreement.healthcheck:
            if len(hellos) == MOST_KEPT:
                hellos.clear()
            hellos[hello] = agreement

    def greeted(self, connection: Connection, agreement: Agreement) -> None:
        """The fast path has answered a HELLO that it knows."""
        self._begin(connection, connection.protocol.agree_as(agreement))

    def _begin(self, connection: Connection, peer: Peer) -> None:
        self._leaving.said_hello(connection, peer)
        self._know(connection, peer)
        if peer.healthcheck:
            self._loop.cells[Cell.HEALTHCHECKS] += 1
            return
        self._loop.agent.connected(peer)

    def set_movable(self, connection: Connection, movable: bool) -> None:
        """Whether the connection can be moved to another loop or process."""
        if connection.movable is not movable:
            connection.movable = movable
            self.movable += 1 if movable else -1
            self._shared.movable_changed()

    def _know(self, connection: Connection, peer: Peer) -> None:
        connection.peer = peer
        self._leaving.ages.add(connection)
        if peer.async_engine_id:
            self._shared.engines.add(peer.async_engine_id, connection, self._loop)
        may_move = connection.tls is None and connection.port is None and not peer.healthcheck
        self.set_movable(connection, may_move)

    def _new_connection(
        self,
        sock: socket.socket,
        host: str | None,
        protocol: AgentConnection,
        tls: ssl.SSLContext | None,
    ) -> Connection:
        loop = self._loop
        sock.setblocking(False)
        served = _secured(sock, tls) if tls and host is not None else sock
        connection, fd = Connection(served, host, protocol), served.fileno()
        protocol.intake.memory = self._leaving.memory
        connection.fast_path = FastPath(self._fast_paths, protocol.intake, fd, connection)
        # The fast path reads plain sockets alone, and does not log frames.
        connection.fast_path.enabled = (
            connection.tls is None and type(protocol) is AgentConnection and not self._leaving.begun
        )
        loop.poller.register(fd, READ, connection.fast_path)
        loop.connections.add(connection)
        loop.cells[Cell.CONNECTIONS_OPENED] += 1
        self._leaving.watch_idle()
        return connection

    def _new_protocol(self, address: str) -> AgentConnection:
        agent, options = self._loop.agent, self._loop.options
        new = LoggedConnection if options.log_frames else AgentConnection
        return new(
            max_frame_size=options.max_frame_size or agent.max_frame_size,
            max_payload_size=options.max_payload_size or agent.max_payload_size,
            max_in_flight=options.max_in_flight or agent.max_in_flight,
            dispatcher=self._loop.dispatcher,
            address=address,
            is_ready=self._shared.is_ready,
            capabilities=self._capabilities,
        )


def _secured(sock: socket.socket, context: ssl.SSLContext) -> TLSSocket:
    from spop.server.tls import TLSSocket  # ssl takes as much memory as all of the server.

    return TLSSocket(sock, context)
