"""Serving an agent.

`Server` is one process: `listeners` opens the sockets, `loop` moves bytes between sockets and
the protocol, `exchange` and `executor` run the handlers that may not run in a loop.
`Supervisor` runs such servers in worker processes and restarts them.
"""

from spop.options import Options
from spop.server.server import Server

__all__ = ["Options", "Server"]
