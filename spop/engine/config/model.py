"""An SPOE configuration as plain data, resolved and compiled.

`spop.engine.config.spoe` makes it from a file, and the engine runs on it. Times are in seconds.
Names of variables are whole, such as ``"txn.waf.action"``. Sections are those of the SPOE document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from spop.constants import HAPROXY_FRAME_SIZE
from spop.engine.acl import AclCondition
from spop.engine.samples import Expression
from spop.engine.stream import Stream


class Event(StrEnum):
    """When messages are sent, in the order of a stream (sections 2.3 and 3.3)."""

    ON_CLIENT_SESSION = "on-client-session"
    ON_FRONTEND_TCP_REQUEST = "on-frontend-tcp-request"
    ON_FRONTEND_HTTP_REQUEST = "on-frontend-http-request"
    ON_BACKEND_TCP_REQUEST = "on-backend-tcp-request"
    ON_BACKEND_HTTP_REQUEST = "on-backend-http-request"
    ON_SERVER_SESSION = "on-server-session"
    ON_TCP_RESPONSE = "on-tcp-response"
    ON_HTTP_RESPONSE = "on-http-response"


class Proxy(Enum):
    """The kinds of section in a ``haproxy.cfg`` where a filter may stand."""

    FRONTEND = "frontend"
    LISTEN = "listen"
    BACKEND = "backend"


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a configuration file. Lines and columns count from 1."""

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Argument:
    """One word of an ``args`` line. The name of an unnamed argument is empty."""

    name: str
    expression: Expression


@dataclass(frozen=True, slots=True)
class MessageConfig:
    """A ``spoe-message`` section (section 2.3).

    Attributes:
        event: None if there is no ``event`` line, as for messages of groups.
        condition: the words after ``if`` or ``unless`` on the ``event`` line.
        unless: the message is sent where the condition fails.
    """

    name: str
    location: Location
    arguments: tuple[Argument, ...] = ()
    event: Event | None = None
    condition: AclCondition | None = None
    unless: bool = False

    def applies(self, stream: Stream) -> bool:
        """Whether the message is sent for this stream."""
        return self.condition is None or self.condition.holds(stream) is not self.unless


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """A ``spoe-group`` section (section 2.4)."""

    name: str
    location: Location
    messages: tuple[MessageConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class LogTarget:
    """A ``log`` line of an agent.

    Attributes:
        address: ``stdout``, ``stderr``, ``HOST:PORT`` or the path of a socket.
        level: the least severe level of a line that is sent.
        min_level: the most severe level that a line is sent with.
        sample_ranges: of each `sample_size` lines, the numbers of those that are sent, from 1;
            empty if all are sent.
    """

    address: str
    facility: str = "local0"
    level: str = "debug"
    min_level: str = "emerg"
    format: str = "rfc3164"
    length: int = 1024
    sample_ranges: tuple[tuple[int, int], ...] = ()
    sample_size: int = 1


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """A ``spoe-agent`` section with its messages and groups (section 2.2): one engine.

    Attributes:
        engine: the scope of the section, or the name of the agent in the anonymous scope.
        backend: the name on the ``use-backend`` line.
        events: the messages of each event, in the order of the ``messages`` lines.
        groups: the groups that the ``groups`` lines name.
        hello_timeout, idle_timeout, processing_timeout: None if there is no such line.
        maxconnrate, maxerrrate: the limit for a second; 0 is no limit.
        var_prefix: ``option var-prefix``, by default the name of the agent.
        set_on_error, set_process_time, set_total_time: whole names, as ``txn.PREFIX.NAME``.
        known_variables: the variables that the configuration reads, registers or sets.
    """

    name: str
    engine: str
    location: Location
    backend: str
    events: Mapping[Event, tuple[MessageConfig, ...]]
    groups: Mapping[str, GroupConfig]
    var_prefix: str
    hello_timeout: float | None = None
    idle_timeout: float | None = None
    processing_timeout: float | None = None
    maxconnrate: int = 0
    maxerrrate: int = 0
    max_frame_size: int = HAPROXY_FRAME_SIZE
    max_waiting_frames: int = 20
    pipelining: bool = True
    asynchronous: bool = True
    send_frag_payload: bool = True
    continue_on_error: bool = False
    force_set_var: bool = False
    dontlog_normal: bool = False
    log_targets: tuple[LogTarget, ...] = ()
    log_global: bool = False
    set_on_error: str | None = None
    set_process_time: str | None = None
    set_total_time: str | None = None
    known_variables: frozenset[str] = field(default_factory=frozenset)

    def group(self, name: str) -> GroupConfig:
        """The group of this name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.groups:
            known = ", ".join(self.groups) or "there is none"
            raise ValueError(f"unknown group {name!r}: {known}")
        return self.groups[name]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A ``server`` line of a backend (section 5.2 of HAProxy's manual).

    Attributes:
        address: as `spop.address.Address` reads it, such as ``HOST:PORT`` or ``abns@NAME``.
        weight: 0 to 256; a server of weight 0 takes no connections.
        backup: the server takes connections only if no other server is up.
        maxconn: connections at a time; 0 is no limit.
        check: the health of the server is checked.
        inter: seconds between checks.
        rise: successful checks in a row after which a server is up again.
        fall: failed checks in a row after which a server is down.
        ssl: connections use TLS.
        verify: the certificate of the server is verified with `ca_file`.
        crt: the file of the engine's own certificate and key.
        sni: the name in the certificate; None: the name is not checked.
        disabled: the server takes no connections.
    """

    name: str
    address: str
    weight: int = 1
    backup: bool = False
    maxconn: int = 0
    check: bool = False
    inter: float = 2.0
    rise: int = 2
    fall: int = 3
    ssl: bool = False
    verify: bool = True
    ca_file: str | None = None
    crt: str | None = None
    sni: str | None = None
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """A ``backend`` section of a ``haproxy.cfg``, as far as it matters to SPOE.

    Attributes:
        balance: ``roundrobin``, ``leastconn``, ``random`` or ``first``.
        spop_check: a health check exchanges HELLO; otherwise it only connects.
        connect_timeout, server_timeout, check_timeout: None if there is no such line.
        mode: ``tcp``, ``http`` or ``spop``.
        random_draws: the number of servers that ``balance random`` compares.
    """

    name: str
    servers: tuple[ServerConfig, ...]
    balance: str = "roundrobin"
    spop_check: bool = False
    connect_timeout: float | None = None
    server_timeout: float | None = None
    check_timeout: float | None = None
    mode: str = "tcp"
    random_draws: int = 2
    location: Location | None = None
