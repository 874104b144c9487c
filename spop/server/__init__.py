"""Serving an agent: `Server` has listeners, selector loops in threads, and an executor.

`listeners` makes sockets of addresses, `loop` moves bytes between sockets and the protocol,
`executor` runs the handlers that may not run in a loop.
"""

from spop.server.server import Server

__all__ = ["Server"]
