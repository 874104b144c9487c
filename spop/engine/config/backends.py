"""Reads the backends of a ``haproxy.cfg``, whose servers are an engine's agents: `load_backends`.

It reads the sections ``backend`` and ``listen``, and their settings in ``defaults`` and ``global``.
It skips what does not matter to SPOE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from spop.engine.config.diagnostics import Collector, ConfigError, listed, refusal
from spop.engine.config.lines import Line, Reader, not_in_names
from spop.engine.config.model import AgentConfig, BackendConfig, Location, ServerConfig
from spop.engine.config.servers import NO_SERVER, TlsDefaults, read_default, read_server
from spop.engine.config.spoe import read_file
from spop.engine.config.values import leading_integer, seconds, size_of
from spop.engine.samples.errors import did_you_mean

SECTIONS = frozenset(
    (
        "acme", "backend", "cache", "crt-store", "defaults", "fcgi-app", "frontend", "global",
        "healthcheck", "http-errors", "listen", "log-forward", "log-profile", "mailers",
        "namespace_list", "peers", "program", "resolvers", "ring", "traces", "userlist",
    )
)  # fmt: skip
"""The keywords that open a section of a ``haproxy.cfg``."""

_BALANCE = {
    "roundrobin": "roundrobin",
    "static-rr": "roundrobin",
    "leastconn": "leastconn",
    "random": "random",
    "first": "first",
}
_RANDOM = re.compile(r"random(?:\((.*)\))?")
_CHECKS = frozenset(
    (
        "external-check", "httpchk", "ldap-check", "mysql-check", "pgsql-check", "redis-check",
        "smtpchk", "spop-check", "ssl-hello-chk", "tcp-check",
    )
)  # fmt: skip
_TIMEOUTS = ("check", "connect", "server")


def load_backends(
    path: str | PathLike[str], names: Collection[str] | None = None
) -> dict[str, BackendConfig]:
    """Read the backends of a ``haproxy.cfg``, by name.

    Args:
        names: read only these, and ignore mistakes in others.

    Raises:
        ConfigError: the file can't be read, HAProxy would refuse a backend, or an engine can't use
            it.
    """
    return parse_backends(read_file(path), str(path), names)


def load_bufsize(path: str | PathLike[str]) -> int | None:
    """``tune.bufsize`` of a ``haproxy.cfg``, in bytes; None if it is not set.

    Raises:
        ConfigError: the file can't be read.
    """
    found = None
    for line in _reader(path):
        if line.section == "global" and line.keyword == "tune.bufsize" and line.arguments:
            found = size_of(line.arguments[0])
    return found or None


def load_environment(path: str | PathLike[str]) -> dict[str, str]:
    """The environment as ``setenv`` and its like of a ``haproxy.cfg`` leave it.

    Raises:
        ConfigError: the file can't be read.
    """
    reader = _reader(path)
    for _ in reader:
        pass
    return reader.environment


def _reader(path: str | PathLike[str]) -> Reader:
    """The lines of a ``haproxy.cfg``, whose mistakes are not reported."""
    return Reader(read_file(path), str(path), Collector(), SECTIONS, strict=False)


def parse_backends(
    text: str | bytes, file: str = "<text>", names: Collection[str] | None = None
) -> dict[str, BackendConfig]:
    """Read a text as `load_backends` does. `file` is its name in locations.

    Raises:
        ConfigError: as `load_backends`.
    """
    collector = Collector()
    sections = _Sections(collector, names)
    for line in Reader(text, file, collector, SECTIONS, strict=False):
        with collector.collecting():
            sections.take(line)
    if collector.failed:
        raise ConfigError(collector.all())
    return {name: backend.config for name, backend in sections.backends.items()}


def backend_of(agent: AgentConfig, backends: Mapping[str, BackendConfig]) -> BackendConfig:
    """The backend that an agent's ``use-backend`` line names.

    Raises:
        ConfigError: there is no such backend, or SPOE can't use its mode.
    """
    backend = backends.get(agent.backend)
    if backend is None:
        hint = did_you_mean(agent.backend, backends)
        message = f"agent '{agent.name}' uses a backend '{agent.backend}', which there isn't"
        raise refusal(agent.location, message, hint)
    if backend.mode not in ("tcp", "spop"):
        message = f"backend '{backend.name}' is in mode {backend.mode}"
        hint = f"agent '{agent.name}' needs 'mode tcp', or 'mode spop' since HAProxy 3.1"
        raise refusal(backend.location or agent.location, message, hint)
    return backend


@dataclass(slots=True)
class _ProxySection:
    """A ``backend``, ``listen`` or ``defaults`` section that is being read."""

    config: BackendConfig
    server: ServerConfig

    def copy(self, name: str, location: Location) -> _ProxySection:
        """A section that starts with the settings of this one."""
        config = replace(self.config, name=name, location=location, servers=())
        return _ProxySection(config, self.server)

    def change(self, **settings: Any) -> None:
        self.config = replace(self.config, **settings)

    def take(self, line: Line, tls: TlsDefaults) -> None:
        if line.keyword == "server":
            self._add_server(line, tls)
        elif line.keyword == "default-server":
            self.server = read_default(line, self.server, tls)
        elif line.keyword in _KEYWORDS:
            _KEYWORDS[line.keyword](self, line)

    def _add_server(self, line: Line, tls: TlsDefaults) -> None:
        server = read_server(line, self.server, tls)
        if any(server.name == other.name for other in self.config.servers):
            raise refusal(line.at(1), f"another server has the name '{server.name}'")
        self.change(servers=(*self.config.servers, server))

    def set_balance(self, line: Line) -> None:
        word = line.arguments[0] if line.arguments else "roundrobin"
        name, parenthesis, _ = word.partition("(")
        if name not in _BALANCE or (parenthesis and name != "random"):
            raise refusal(
                line.at(1), f"an engine has no 'balance {word}'", f"it has {listed(list(_BALANCE))}"
            )
        self.change(balance=_BALANCE[name])
        if name == "random":
            self.change(random_draws=_draws(line, word))

    def set_option(self, line: Line) -> None:
        name = line.arguments[0] if line.arguments else ""
        if name == "spop-check":
            line.take(1)
            if line.modifier:
                raise refusal(line.at(1), f"'{line.modifier}' is not for 'option {name}'")
        if name in _CHECKS:
            self.change(spop_check=name == "spop-check")

    def set_timeout(self, line: Line) -> None:
        if not line.arguments or line.arguments[0] not in _TIMEOUTS:
            return
        name, *value = line.take(2)
        if not value:
            raise refusal(line.at(2), f"'timeout {name}' needs a time, as '5s'")
        with line.refusing(2):
            self.change(**{f"{name}_timeout": seconds(value[0]) or None})

    def set_mode(self, line: Line) -> None:
        self.change(mode="".join(line.arguments[:1]))


_KEYWORDS: Mapping[str, Callable[[_ProxySection, Line], None]] = {
    "balance": _ProxySection.set_balance,
    "mode": _ProxySection.set_mode,
    "option": _ProxySection.set_option,
    "timeout": _ProxySection.set_timeout,
}


def _draws(line: Line, word: str) -> int:
    """The number of servers that ``random(N)`` compares."""
    match = _RANDOM.fullmatch(word)
    if match is None or not (match[1] or "1").isdecimal():
        raise refusal(line.at(1), f"'{word}' is not as 'random(2)'")
    draws = leading_integer(match[1]) if match[1] else 2
    if draws < 1:
        raise refusal(line.at(1), "'random' compares one server or more")
    return draws


class _Sections:
    """Collects the sections of a file, line by line."""

    def __init__(self, collector: Collector, names: Collection[str] | None) -> None:
        self.backends: dict[str, _ProxySection] = {}
        self._collector = collector
        self._names = names
        self._defaults: dict[str, _ProxySection | None] = {}
        self._last_defaults: _ProxySection | None = None
        self._open: _ProxySection | None = None
        self._tls = TlsDefaults()

    def take(self, line: Line) -> None:
        if line.opens:
            self._open = None
            if line.section == "defaults":
                self._open = self._open_defaults(line)
            elif line.section in ("backend", "listen"):
                self._open = self._open_backend(line)
        elif line.section == "global":
            self._take_global(line)
        elif self._open:
            self._open.take(line, self._tls)

    def _take_global(self, line: Line) -> None:
        value = "".join(line.arguments[:1])
        if line.keyword == "ssl-server-verify":
            self._tls.verify = value != "none"
        elif line.keyword == "ca-base":
            self._tls.ca_base = value
        elif line.keyword == "crt-base":
            self._tls.crt_base = value

    def _open_defaults(self, line: Line) -> _ProxySection:
        named = line.arguments and line.arguments[0] != "from"
        name = line.arguments[0] if named else ""
        defaults = (self._named_defaults(line) or self._fresh()).copy(name, line.at(0))
        self._last_defaults = defaults
        if name:
            # HAProxy allows two ``defaults`` of one name, as long as no section refers to it.
            self._defaults[name] = None if name in self._defaults else defaults
        return defaults

    def _open_backend(self, line: Line) -> _ProxySection | None:
        if not line.arguments:
            raise refusal(line.at(1), f"'{line.keyword}' needs a name")
        name = line.arguments[0]
        if self._names is not None and name not in self._names:
            return None
        if bad := not_in_names(name):
            raise refusal(line.at(1, name.index(bad)), f"a backend's name can't have '{bad}'")
        origin = self._named_defaults(line) or self._last_defaults or self._fresh()
        backend = origin.copy(name, line.at(1))
        if name in self.backends:
            first = self.backends[name].config.location
            where = f", in line {first.line}" if first else ""
            self._collector.error(line.at(1), f"another backend has the name '{name}'{where}")
        else:
            self.backends[name] = backend
        return backend

    def _fresh(self) -> _ProxySection:
        return _ProxySection(BackendConfig("", ()), replace(NO_SERVER, verify=self._tls.verify))

    def _named_defaults(self, line: Line) -> _ProxySection | None:
        """The ``defaults`` section that ``from`` names; None if there is no ``from``."""
        index = 2 if line.arguments[:1] == ["from"] and line.section == "defaults" else 3
        if line.arguments[index - 2 : index - 1] != ["from"] or len(line.arguments) < index:
            return None
        name = line.arguments[index - 1]
        found = self._defaults.get(name)
        if found is None:
            what = "several sections" if name in self._defaults else "no section"
            hint = None if name in self._defaults else did_you_mean(name, self._defaults)
            raise refusal(line.at(index), f"{what} 'defaults {name}'", hint)
        return found
