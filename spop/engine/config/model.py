"""What an SPOE configuration says, as plain data, everything resolved and compiled.

`spop.engine.config.spoe` makes these of a file; the engine runs on them and never sees text.
Times are seconds. Names of variables are whole, such as ``"txn.waf.action"``.
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
    """When messages are sent, in the order in which a stream comes by (section 2.4)."""

    ON_CLIENT_SESSION = "on-client-session"
    ON_FRONTEND_TCP_REQUEST = "on-frontend-tcp-request"
    ON_FRONTEND_HTTP_REQUEST = "on-frontend-http-request"
    ON_BACKEND_TCP_REQUEST = "on-backend-tcp-request"
    ON_BACKEND_HTTP_REQUEST = "on-backend-http-request"
    ON_SERVER_SESSION = "on-server-session"
    ON_TCP_RESPONSE = "on-tcp-response"
    ON_HTTP_RESPONSE = "on-http-response"


class Proxy(Enum):
    """The kinds of section of HAProxy's configuration that a filter may stand in."""

    FRONTEND = "frontend"
    LISTEN = "listen"
    BACKEND = "backend"


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a configuration file; lines and columns count from 1."""

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Argument:
    """One word of an ``args`` line. An argument that isn't named has an empty name."""

    name: str
    expression: Expression


@dataclass(frozen=True, slots=True)
class MessageConfig:
    """A ``spoe-message`` section.

    Attributes:
        event: None where it has none, as in groups.
        condition: what follows ``if`` or ``unless`` on the ``event`` line.
        unless: the condition has to fail.
    """

    name: str
    location: Location
    arguments: tuple[Argument, ...] = ()
    event: Event | None = None
    condition: AclCondition | None = None
    unless: bool = False

    def applies(self, stream: Stream) -> bool:
        """Whether the message is to be sent for this stream."""
        return self.condition is None or self.condition.holds(stream) is not self.unless


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """A ``spoe-group`` section, its messages resolved."""

    name: str
    location: Location
    messages: tuple[MessageConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class LogTarget:
    """A ``log`` line: where lines go (``stdout``, ``HOST:PORT``, a socket's path), and which.

    `level` is the least severe that is sent, `min_level` the most severe that a line is given.
    With `sample_ranges`, only the lines with these numbers, from 1 on, of each `sample_size`.
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
    """A ``spoe-agent`` section with its messages and groups: one engine.

    Attributes:
        engine: the scope it was found in, or the agent's name in the anonymous scope.
        backend: the name on the ``use-backend`` line.
        events: the messages of each event, in the order of the ``messages`` lines.
        groups: those that the ``groups`` lines name.
        hello_timeout, idle_timeout, processing_timeout: None where there is no such line.
        maxconnrate, maxerrrate: in a second; 0 is no limit.
        var_prefix: ``option var-prefix``, by default the agent's name.
        set_on_error, set_process_time, set_total_time: whole names, as ``txn.PREFIX.NAME``.
        known_variables: those that the configuration reads, registers or sets.
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


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A ``server`` line of a backend.

    Attributes:
        address: ``HOST:PORT`` or ``unix:PATH``.
        weight: 0 to 256; 0 takes no new connections.
        maxconn: connections at a time; 0 is no limit.
        check: its health is watched.
        disabled: it takes no connections until somebody enables it.
        inter: seconds between checks.
        rise, fall: good checks in a row that bring it back, bad ones that take it out.
        ssl: speak TLS; `ca_file` verifies, `crt` is one's own certificate with its key.
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
    """A ``backend`` section of HAProxy's own configuration, as far as SPOE goes.

    Attributes:
        balance: ``roundrobin``, ``leastconn``, ``random`` or ``first``.
        spop_check: checks speak HELLO; otherwise they only connect.
        connect_timeout, server_timeout, check_timeout: None where there is no such line.
        mode: ``tcp``, ``http`` or ``spop``.
        random_draws: the servers that ``balance random`` compares.
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
