"""HAProxy's end of SPOE in Python, for proxies and servers of your own.

An engine does what HAProxy's SPOE filter does, from HAProxy's own SPOE file. `Engine` is for
threads, `AsyncEngine` for asyncio.
"""

from spop.engine.asynchronous import AsyncEngine, AsyncStream
from spop.engine.balance import BackendServer
from spop.engine.blocking import BlockingStream, Engine
from spop.engine.config import AgentConfig, BackendConfig, ConfigError
from spop.engine.config.model import Event, ServerConfig
from spop.engine.log import Traffic
from spop.engine.processing import Processing
from spop.engine.samples import converter, fetch
from spop.engine.stream import Request, Response, Stream, Tls
from spop.engine.variables import Session, Variables

__all__ = [
    "AgentConfig",
    "AsyncEngine",
    "AsyncStream",
    "BackendConfig",
    "BackendServer",
    "BlockingStream",
    "ConfigError",
    "Engine",
    "Event",
    "Processing",
    "Request",
    "Response",
    "ServerConfig",
    "Session",
    "Stream",
    "Tls",
    "Traffic",
    "Variables",
    "converter",
    "fetch",
]
