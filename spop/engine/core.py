"""What `Engine` and `AsyncEngine` share: construction, servers, traffic, log."""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from spop.address import Addresses
from spop.client.core import ClientCore
from spop.client.forked import begin_anew_when_forked
from spop.constants import DEFAULT_BUFSIZE, Capability
from spop.engine.balance import Backend, BackendServer, of_addresses
from spop.engine.config import (
    AgentConfig,
    BackendConfig,
    backend_of,
    load_backends,
    load_bufsize,
    load_environment,
    load_spoe,
    scopes,
)
from spop.engine.filter import Filter, StreamContext
from spop.engine.health import Checks
from spop.engine.log import NOTICE, EngineLog, Traffic, log_line
from spop.engine.processing import Processing
from spop.engine.stream import Stream
from spop.haproxy_version import MAX_STREAMS, Version
from spop.values import VARIABLE

Backends = Mapping[str, Addresses | BackendConfig] | str | os.PathLike[str]
"""Backends by name, each an address, several, or a `BackendConfig`; or a ``haproxy.cfg``'s path."""

Context = TypeVar("Context", bound=StreamContext)

MAX_CONNECTIONS = 1000

_MENTIONED = re.compile(rf"\b{VARIABLE.pattern}", re.ASCII)


class EngineCore(ABC, Generic[Context]):
    """An engine: one scope of an SPOE file, and the agents of its backend.

    Args:
        config: the configuration of the SPOE file. `from_file` reads it.
        backends: the backend that ``use-backend`` names.
        variables: whole names that rules outside of the SPOE file read, such as
            ``"txn.waf.action"``. An agent may set these, and those in the SPOE file. Other
            variables that it sets are in `StreamContext.ignored`.
        haproxy_version: the HAProxy to behave as (``"2.6"``), where versions differ. Since 2.5
            agents may set any variable, except new ones of scope ``proc``. Since 3.1 there are no
            fragments, no async exchanges, no `maxconnrate` and no `maxerrrate`, each connection
            counts its stream-ids (1, 3, 5 and so on), and takes 20 exchanges at a time at most.
        max_connections: number of connections to agents at a time.

    Attributes:
        config: the configuration of the SPOE file.
        servers: the servers of the backend, in its order. Their `up` and `connections` change while
            the engine runs.

    Raises:
        ConfigError: there is no such backend, or the ``haproxy.cfg`` can't be read.
        ValueError: an address or the version is invalid, or a certificate file can't be used.
    """

    _client_class: type[ClientCore]
    _stream_class: type[Context]
    _calls: ClientCore

    def __init__(
        self,
        config: AgentConfig,
        backends: Backends,
        *,
        variables: Iterable[str] = (),
        haproxy_version: str | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        version = None if haproxy_version is None else Version.of_haproxy(haproxy_version)
        backend = Backend(_backend(config, backends))
        if isinstance(backends, str | os.PathLike):
            variables = {*variables, *_variables_in(backends)}
        self.config = config
        self.servers: tuple[BackendServer, ...] = backend.servers
        self._log = EngineLog(config)
        self._filter = Filter(config, variables, version, self._log.logger)
        self._stream_ids = itertools.count(1)
        rewritten = self._filter.rewritten
        self._calls = self._client_class(
            backend,
            timeout=config.processing_timeout,
            hello_timeout=None if rewritten else config.hello_timeout,
            connect_timeout=backend.config.connect_timeout,
            idle_timeout=_shortest(config.idle_timeout, backend.config.server_timeout),
            maximum=max_connections,
            maxconnrate=None if rewritten else config.maxconnrate or None,
            waits_for_rate=False,
            max_waiting_frames=MAX_STREAMS if rewritten else config.max_waiting_frames,
            max_frame_size=config.max_frame_size,
            capabilities=_capabilities(config),
            fragments=config.send_frag_payload,
            haproxy_version=haproxy_version,
            engine_id=str(uuid.uuid4()),
        )
        self._backend = backend
        self._reset()
        begin_anew_when_forked(self)

    def _reset(self) -> None:
        self._checks = Checks(self._backend, self._server_changed)
        self._starting = threading.Lock()
        self._started = self._calls.pool.closed

    def begin_anew(self) -> None:
        """In a process that was forked: it has none of the parent's threads and locks."""
        self._filter.begin_anew()
        self._reset()

    @property
    def engine_id(self) -> str:
        """The engine-id in HELLO frames. A process that is forked has its own."""
        assert self._calls.engine_id is not None
        return self._calls.engine_id

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        scope: str | None = None,
        *,
        backends: Backends,
        haproxy_version: str | None = None,
        missing: str = "error",
        bufsize: int | None = None,
        variables: Iterable[str] = (),
        max_connections: int = MAX_CONNECTIONS,
    ) -> Self:
        """The engine of ``filter spoe engine SCOPE config PATH``.

        Args:
            scope: None is the anonymous scope, or the only scope of the file.
            missing: what becomes of samples that HAProxy has and the engine can't evaluate:
                ``"error"``, or ``"unavailable"`` to go on as if they were not available.
            bufsize: ``tune.bufsize`` in bytes, above which a ``max-frame-size`` is refused. None:
                that of the ``haproxy.cfg``, if `backends` is one, else 16384.
            backends, haproxy_version, variables, max_connections: the arguments of the class.

        Raises:
            ConfigError: the file has errors. Each has its file, line and column.
            ValueError: as the class.
        """
        if scope is None:
            found = scopes(path)
            scope = found[0] if len(found) == 1 else None
        environment = None
        if isinstance(backends, str | os.PathLike):
            bufsize = load_bufsize(backends) if bufsize is None else bufsize
            environment = load_environment(backends)
        config = load_spoe(
            path,
            scope,
            haproxy_version=haproxy_version,
            missing=missing,
            bufsize=bufsize or DEFAULT_BUFSIZE,
            environment=environment,
        )
        return cls(
            config,
            backends,
            variables=variables,
            haproxy_version=haproxy_version,
            max_connections=max_connections,
        )

    def begin(self, stream: Stream) -> Context:
        """Begin a stream of an engine that has started.

        An `AsyncEngine` must be bound to the running event loop. The method `stream` sees to both.
        """
        # Assignments: CPython 3.11 calls a constructor that is written in Python by way of C, which
        # each request would pay for.
        context = self._stream_class()
        context.stream = stream
        context.stream_id = next(self._stream_ids)
        context.frame_id = context.status = context.total_time = 0
        context.enabled = True
        context._engine, context._filter, context._seen = self, self._filter, 0
        return context

    def let_set(self, variables: Iterable[str]) -> None:
        """Permit the agent to set further variables, by their whole names."""
        self._filter.permissions.add(variables)

    @property
    def traffic(self) -> Traffic:
        """Connections, waiting messages, and counts, as HAProxy's log lines show them."""
        pool, counts = self._calls.pool, self._filter
        return Traffic(
            idles=pool.idle,
            applets=len(pool.links) + pool.openings,
            nb_sending=pool.queued,
            nb_waiting=pool.waiting,
            nb_errors=counts.nb_errors,
            nb_processed=counts.nb_processed,
        )

    @property
    def ignored_actions(self) -> int:
        """Number of malformed actions in ACKs: unknown actions or scopes, wrong argument counts,
        reserved data types. HAProxy reads an ACK up to one that it can't read. Those before it
        count, and the connection goes on."""
        return self._filter.ignored_actions

    def log_line(self, processing: Processing) -> str:
        """HAProxy's log line for a processing."""
        return log_line(self.config.name, processing, self.traffic, short=self._filter.rewritten)

    def log(self, processing: Processing) -> None:
        """Log a processing, if a logger or target takes its level."""
        level = logging.WARNING if processing.status else NOTICE
        if self._log.wants(level):
            self._log.write(level, self.log_line(processing))

    def _start(self) -> None:
        # Threads begin with the first stream: an engine may be made before a server forks its
        # workers.
        with self._starting:
            if not self._started:
                self._checks.start()
                self._started = True

    def _close(self) -> None:
        self._checks.stop()
        self._log.close()

    @abstractmethod
    def _server_changed(self, server: BackendServer) -> None: ...


def stream_of(stream: Stream | None, fields: Mapping[str, Any]) -> Stream:
    """The stream that is given, or one of these fields.

    Raises:
        TypeError: both are given, or there is no such field.
    """
    if stream is None:
        return Stream(**fields)
    if fields:
        raise TypeError("a Stream has its own fields: give either it or them")
    return stream


def _backend(config: AgentConfig, backends: Backends) -> BackendConfig:
    """The backend that the agent uses."""
    if isinstance(backends, str | os.PathLike):
        return backend_of(config, load_backends(backends, [config.backend]))
    try:
        found = backends[config.backend]
    except KeyError:
        known = {name: BackendConfig(name, ()) for name in backends}
        return backend_of(config, known)
    if not isinstance(found, BackendConfig):
        found = of_addresses(config.backend, found)
    return backend_of(config, {config.backend: found})


def _capabilities(config: AgentConfig) -> frozenset[str]:
    """The capabilities in HAPROXY-HELLO (section 3.2.1)."""
    # A peer announces fragmentation if it takes fragments. An engine doesn't: an ACK has none.
    capabilities = set()
    if config.pipelining:
        capabilities.add(Capability.PIPELINING)
    if config.asynchronous:
        capabilities.add(Capability.ASYNC)
    return frozenset(capabilities)


def _variables_in(path: str | os.PathLike[str]) -> set[str]:
    """The variables in a ``haproxy.cfg``."""
    text = Path(path).read_text("utf-8", "surrogateescape")
    return {found[0] for found in _MENTIONED.finditer(text)}


def _shortest(*timeouts: float | None) -> float | None:
    return min((timeout for timeout in timeouts if timeout is not None), default=None)
