"""Every option of a server, once: its meaning, default and range.

`Server` takes them by name; the command line, the environment and the configuration file are
made from this table.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import ipaddress
import os
import re
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict, Unpack

from spop.address import MAX_PORT, Address, Addresses, texts_of
from spop.constants import (
    MAX_ANSWER_SIZE,
    MAX_ARGUMENTS,
    MAX_MESSAGES,
    MAX_SECONDS,
    MIN_FRAME_SIZE,
)

LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_PASS = 500_000
"""Nanoseconds for which the frames of a connection are answered before others have their turn."""

DEFAULT_BIND = "127.0.0.1:9000"


def _option(
    default: Any, help: str, low: float | None = None, high: float | None = None, **more: Any
) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, **more})


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of a server. Times are seconds.

    Each field's metadata has ``help``. ``low`` and ``high`` are its range, if it has one.
    ``size`` is true for a size in bytes. ``choices`` lists the values, if only some are allowed.
    ``supervised`` is true if the supervisor of ``spop serve`` does it, for its workers.

    Raises:
        TypeError: a value is of another type. The message names the option.
        ValueError: a value is out of range or can't be read. The message names the option.
        ModuleNotFoundError: an option needs an extra. The message says which.
    """

    bind: tuple[str, ...] = _option(
        (DEFAULT_BIND,),
        "HOST:PORT, unix@PATH, abns@NAME or fd@NUMBER to listen on, or HOST:PORT-PORT with a port "
        "for each of the processes; may be repeated.",
        metavar="ADDRESS",
    )
    processes: int = _option(1, "Worker processes.", 1, 1024, supervised=True)
    threads: int = _option(1, "Selector loops of a worker, each in a thread of its own.", 1, 256)
    pool_size: int = _option(
        16, "Threads of a worker for handlers that are blocking=True.", 1, 10_000
    )
    max_queue: int = _option(
        10_000, "Messages of a worker that may wait for a thread or run on asyncio.", 1
    )
    drain_timeout: float = _option(
        10.0, "Seconds that handlers have to finish when the server stops.", 0
    )
    lame_duck: float = _option(
        0.0,
        "Seconds before the drain in which a server that stops serves on, but is not ready, so "
        "that HAProxy's checks fail and its requests go elsewhere.",
        0,
    )
    start_timeout: float = _option(
        30.0, "Seconds that a worker has to import the agent and to start; 0: no limit.", 0
    )
    max_requests: int = _option(
        0, "NOTIFY frames of a worker, up to 10 % less, after which workers are replaced; "
        "0: no limit.", 0, supervised=True,
    )  # fmt: skip
    max_worker_memory: int = _option(
        0, "Resident memory of a worker, up to 10 % less, above which workers are replaced; "
        "0: no limit.", 0, size=True, supervised=True,
    )  # fmt: skip
    busy_poll: float = _option(
        0.0, "Seconds for which a loop looks for frames again and again before it sleeps: less "
        "latency for one processor of each loop that has something to do.", 0, 1,
    )  # fmt: skip
    stuck_timeout: float = _option(
        30.0, "Seconds after which a loop that does not come round is stuck; 0: never.", 0
    )
    slow_handler: float = _option(
        0.1,
        "Seconds that a handler may keep its loop before it is logged, as all wait; 0: never.",
        0,
    )
    event_loop: str = _option(
        "asyncio", "Event loop of async handlers.", choices=("asyncio", "uvloop")
    )
    max_connections: int = _option(20_000, "Connections of a worker.", 1)
    max_connections_per_peer: int = _option(
        0, "Connections of a worker from one address; 0: no limit of its own.", 0
    )
    handshake_timeout: float = _option(
        10.0, "Seconds that a peer has to say HELLO, TLS included.", 0.01
    )
    idle_timeout: float = _option(
        600.0, "Seconds without a frame after which a connection is closed; 0: never.", 0
    )
    max_connection_age: float = _option(
        0.0, "Seconds, 10 % more or less, after which a connection is closed; 0: never.", 0
    )
    max_frame_size: int | None = _option(
        None, "Largest frame.  [default: the agent's, 1M]", MIN_FRAME_SIZE, size=True
    )
    max_payload_size: int | None = _option(
        None, "Largest payload in fragments.  [default: the agent's, 16M]", 1, size=True
    )
    max_in_flight: int | None = _option(
        None, "Frames of a connection that wait for handlers.  [default: the agent's, 1000]", 1
    )
    max_unsent: int = _option(
        MAX_ANSWER_SIZE, "Size of unsent answers above which a connection is not read from.", 1024,
        size=True,
    )  # fmt: skip
    max_memory: int = _option(
        512 * 2**20, "Memory that the connections of a worker may take.", 2**20, size=True
    )
    max_messages: int = _option(MAX_MESSAGES, "Messages in a frame.", 1)
    max_arguments: int = _option(MAX_ARGUMENTS, "Arguments in a frame.", 1)
    allow: tuple[str, ...] = _option(
        (), "Network (CIDR) that may connect over TCP; may be repeated; all where there is none.",
        metavar="CIDR",
    )  # fmt: skip
    tls_cert: str | None = _option(None, "Certificate chain (PEM); TCP is TLS then.", path=True)
    tls_key: str | None = _option(None, "Its key, if that is another file.", path=True)
    tls_client_ca: str | None = _option(
        None, "Who signs the certificates that peers must show (PEM).", path=True
    )
    unix_mode: str = _option("", "Mode of unix sockets, octal, as in 660.")
    unix_owner: str = _option("", "Owner of unix sockets, USER[:GROUP].")
    user: str = _option("", "User to run workers as.", supervised=True)
    group: str = _option("", "Group to run workers as.", supervised=True)
    admin: str = _option(
        "", "HOST:PORT for /metrics, /healthz, /readyz and a status page.", metavar="ADDRESS"
    )
    admin_host: tuple[str, ...] = _option(
        (), "Name by which a browser may ask for the status page, beside addresses and localhost; "
        "may be repeated.", metavar="NAME",
    )  # fmt: skip
    log_connections: str = _option(
        "info", "Level of the log lines of connections that begin and end.", choices=LOG_LEVELS
    )
    log_health: str = _option(
        "debug", "Level of the log lines of HAProxy's health checks.", choices=LOG_LEVELS
    )
    log_handlers: str = _option(
        "error", "Level of the log lines of handlers that fail.", choices=LOG_LEVELS
    )
    log_frames: bool = _option(False, "Log every frame.")

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            _check_type(each, getattr(self, each.name))
            _check_range(each, getattr(self, each.name))
            _check_choice(each, getattr(self, each.name))
        if self.event_loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
            raise ModuleNotFoundError(
                "event_loop uvloop needs an extra: pip install 'haproxy-spop[uvloop]'"
            )
        for text in self.bind:
            count = len(_addresses(text))
            if _is_range(text) and count != self.processes:
                raise ValueError(
                    f"bind {text} has {count} ports, but processes is {self.processes}: "
                    "each worker has a port of a range"
                )
        if self.admin:
            Address.parse(self.admin)
        for network in self.allow:
            _check_network(network)
        if (self.tls_key or self.tls_client_ca) and not self.tls_cert:
            raise ValueError("tls_key and tls_client_ca need tls_cert")
        if self.unix_mode and not _is_octal(self.unix_mode):
            raise ValueError(f"unix_mode is {self.unix_mode!r}, not an octal mode like 660")

    @classmethod
    def of(cls, bind: Addresses, **options: Unpack[ServeOptions]) -> Options:
        """Options with one address or several.

        Raises:
            TypeError: there is no option of that name.
        """
        return cls(bind=tuple(texts_of(bind)), **options)

    def alone(self) -> Self:
        """The same, for a server in a program. It refuses what only the supervisor of ``spop serve`` does.

        Raises:
            ValueError: such an option is set.
        """
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.metadata.get("supervised") and value != each.default:
                raise ValueError(
                    f"{each.name} is {value!r}, but a server in a program is this one process: "
                    "`spop serve` has worker processes"
                )
        return self

    @property
    def addresses(self) -> list[Address]:
        """Where to listen, each port of a range by itself."""
        return [address for text in self.bind for address in _addresses(text)]

    @property
    def port_numbers(self) -> list[int | None]:
        """Of each address, the number of its port in its range, from 0 on; None: in no range."""
        return [
            number if _is_range(text) else None
            for text in self.bind
            for number, _ in enumerate(_addresses(text))
        ]


class ServeOptions(TypedDict, total=False):
    """The same by name, without `bind`, for type checkers: what servers take as ``**options``."""

    processes: int
    threads: int
    pool_size: int
    max_queue: int
    drain_timeout: float
    start_timeout: float
    busy_poll: float
    stuck_timeout: float
    slow_handler: float
    event_loop: str
    max_connections: int
    max_connections_per_peer: int
    handshake_timeout: float
    idle_timeout: float
    max_frame_size: int | None
    max_payload_size: int | None
    max_in_flight: int | None
    max_unsent: int
    max_memory: int
    max_messages: int
    max_arguments: int
    allow: tuple[str, ...]
    tls_cert: str | None
    tls_key: str | None
    tls_client_ca: str | None
    unix_mode: str
    unix_owner: str
    user: str
    group: str
    admin: str
    admin_host: tuple[str, ...]
    log_connections: str
    log_health: str
    log_handlers: str
    lame_duck: float
    max_connection_age: float
    max_requests: int
    max_worker_memory: int
    log_frames: bool


# The host may have a prefix, as in ``ipv6@``. A path or name may end like a range and is none.
_RANGE = re.compile(
    r"(?!/|(?:stream\+)?(?:unix|uxst|abnsz?)[@:])(.*):([0-9]{1,5})-([0-9]{1,5})",
    re.ASCII | re.DOTALL,
)


def _is_range(text: str) -> bool:
    return _RANGE.fullmatch(text) is not None


def _addresses(text: str) -> list[Address]:
    """Read one address, or ``HOST:PORT-PORT``."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return [Address.parse(text, listens=True)]
    host, first, last = found[1], int(found[2]), int(found[3])
    if not 0 < first <= last <= MAX_PORT:
        raise ValueError(f"bind {text!r}: its ports are not from low to high, {MAX_PORT} at most")
    return [Address.parse(f"{host}:{port}") for port in range(first, last + 1)]


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (int,),
    "str": (str, os.PathLike),
    "tuple[str, ...]": (tuple, list),
}
"""What an option may be, by its annotation."""


def _check_type(option: dataclasses.Field[Any], value: Any) -> None:
    annotation, _, may_be_none = str(option.type).partition(" | ")
    if not isinstance(value, _KINDS[annotation]) and (value is not None or not may_be_none):
        raise TypeError(f"{option.name} is {value!r}, {annotation} is needed")


def _check_range(option: dataclasses.Field[Any], value: Any) -> None:
    low, high = option.metadata["low"], option.metadata["high"]
    if value is None or (low is None and high is None):
        return
    if option.type == "float" and high is None:
        high = MAX_SECONDS
    # No comparison with "not a number" is true.
    if not ((low is None or value >= low) and (high is None or value <= high)):
        wanted = f"{low:g} at least" if high is None else f"not in {low:g} to {high:g}"
        raise ValueError(f"{option.name} is {value:g}, {wanted}")


def check_seconds(name: str, value: object) -> None:
    """Refuse what is no time to wait, for `name`.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, or has no end.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}, a number of seconds is needed")
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{name} is {value!r}, not in 0 to {MAX_SECONDS:g} seconds")


def _check_choice(option: dataclasses.Field[Any], value: Any) -> None:
    choices = option.metadata.get("choices")
    if choices and value not in choices:
        raise ValueError(f"{option.name} is {value!r}, not one of {', '.join(choices)}")


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"allow: {text!r} is no network, like 10.0.0.0/8") from None


def _is_octal(text: str) -> bool:
    return text.isascii() and all(c in "01234567" for c in text) and int(text, 8) <= 0o777
