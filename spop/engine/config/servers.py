"""Reads ``server`` and ``default-server`` lines (section 5.2 of HAProxy's manual).

Keywords that an engine does not use are skipped, together with their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from spop.engine.config.addresses import read_server_address
from spop.engine.config.diagnostics import ConfigError, refusal
from spop.engine.config.lines import Line, not_in_names
from spop.engine.config.model import ServerConfig
from spop.engine.config.values import leading_integer, seconds
from spop.engine.samples import compile_expression
from spop.engine.samples.errors import SampleError
from spop.engine.stream import Stream

NO_SERVER = ServerConfig("", "")
"""HAProxy's defaults of a server."""

_FLAGS: Mapping[str, tuple[str, bool]] = {
    "backup": ("backup", True),
    "no-backup": ("backup", False),
    "check": ("check", True),
    "no-check": ("check", False),
    "disabled": ("disabled", True),
    "enabled": ("disabled", False),
    "ssl": ("ssl", True),
    "no-ssl": ("ssl", False),
}

_PASSED_OVER = frozenset(
    (
        "addr", "agent-addr", "agent-inter", "agent-port", "agent-send", "alpn", "check-alpn",
        "check-proto", "check-sni", "ciphers", "ciphersuites", "cookie", "crl-file", "downinter",
        "error-limit", "fastinter", "id", "init-addr", "interface", "log-proto", "max-reuse",
        "maxqueue", "minconn", "namespace", "npn", "observe", "on-error", "on-marked-down",
        "on-marked-up", "pool-low-conn", "pool-max-conn", "pool-purge-delay", "port", "proto",
        "proxy-v2-options", "redir", "resolve-net", "resolve-opts", "resolve-prefer", "resolvers",
        "slowstart", "socks4", "source", "ssl-max-ver", "ssl-min-ver", "tcp-ut", "track",
        "usesrc", "verifyhost", "ws",
    )
)  # fmt: skip
"""Unused keywords with a value. The value may look like a keyword, so it is skipped, too."""


@dataclass(slots=True)
class TlsDefaults:
    """The settings of ``global`` for the TLS of servers."""

    verify: bool = True
    ca_base: str = ""
    crt_base: str = ""


def read_server(line: Line, template: ServerConfig, tls: TlsDefaults) -> ServerConfig:
    """Read a ``server`` line.

    Args:
        template: the settings of the ``default-server`` lines before it.

    Raises:
        ConfigError: HAProxy would refuse the line, or an engine can't connect to the address.
    """
    if len(line.arguments) < 2:
        raise refusal(line.at(len(line.arguments) + 1), "a server needs a name and an address")
    name, address = line.arguments[:2]
    if bad := not_in_names(name):
        raise refusal(line.at(1, name.index(bad)), f"a server's name can't have '{bad}'")
    with line.refusing(2):
        template = replace(template, name=name, address=read_server_address(address))
    server = _Parameters(line, 3, tls).apply(template)
    if server.ssl and server.verify and not server.ca_file:
        hint = "add 'ca-file FILE' or 'verify none'"
        raise refusal(line.at(1), f"nothing verifies the certificate of server '{name}'", hint)
    return server


def read_default(line: Line, template: ServerConfig, tls: TlsDefaults) -> ServerConfig:
    """The template for the servers after a ``default-server`` line.

    Raises:
        ConfigError: HAProxy would refuse the line.
    """
    return _Parameters(line, 1, tls).apply(template)


@dataclass(slots=True)
class _Parameters:
    """Reads the parameters of a server from the words of a line."""

    line: Line
    index: int
    tls: TlsDefaults
    changes: dict[str, Any] = field(default_factory=dict)

    def apply(self, template: ServerConfig) -> ServerConfig:
        while self.index <= len(self.line.arguments):
            keyword = self.line.arguments[self.index - 1]
            self.index += 1
            if keyword in _FLAGS:
                name, value = _FLAGS[keyword]
                self.changes[name] = value
            elif keyword in _VALUES:
                _VALUES[keyword](self, self._value(keyword))
            elif keyword in _PASSED_OVER:
                self._value(keyword)
        return replace(template, **self.changes)

    def _value(self, keyword: str) -> str:
        if self.index > len(self.line.arguments):
            raise refusal(self.line.at(self.index), f"'{keyword}' needs a value")
        self.index += 1
        return self.line.arguments[self.index - 2]

    def _refuse(self, message: str) -> ConfigError:
        return refusal(self.line.at(self.index - 1), message)

    def _inter(self, value: str) -> None:
        with self.line.refusing(self.index - 1):
            self.changes["inter"] = seconds(value)
        if not self.changes["inter"]:
            raise self._refuse("'inter' is more than 0")

    def _rise(self, value: str) -> None:
        self.changes["rise"] = self._positive("rise", value)

    def _fall(self, value: str) -> None:
        self.changes["fall"] = self._positive("fall", value)

    def _positive(self, keyword: str, value: str) -> int:
        number = leading_integer(value)
        if number < 1:
            raise self._refuse(f"'{keyword}' is a number from 1, not '{value}'")
        return number

    def _weight(self, value: str) -> None:
        weight = leading_integer(value)
        if not 0 <= weight <= 256:
            raise self._refuse(f"'weight' is a number from 0 to 256, not '{value}'")
        self.changes["weight"] = weight

    def _maxconn(self, value: str) -> None:
        self.changes["maxconn"] = max(0, leading_integer(value))

    def _verify(self, value: str) -> None:
        if value not in ("none", "required"):
            raise self._refuse(f"'verify' is 'none' or 'required', not '{value}'")
        self.changes["verify"] = value == "required"

    def _ca_file(self, value: str) -> None:
        self.changes["ca_file"] = _under(self.tls.ca_base, value)

    def _crt(self, value: str) -> None:
        self.changes["crt"] = _under(self.tls.crt_base, value)

    def _sni(self, value: str) -> None:
        # A connection to an agent belongs to no request: only a constant expression gives a name.
        try:
            name = compile_expression(value).evaluate(Stream())
        except SampleError as error:
            # Backends of web servers may have fetches that the engine lacks: that is no mistake.
            if value.startswith("str("):
                raise self._refuse(error.message) from None
            name = None
        self.changes["sni"] = name if isinstance(name, str) else None


def _under(base: str, file: str) -> str:
    return f"{base}/{file}" if base and not file.startswith(("/", "@")) else file


_VALUES: Mapping[str, Callable[[_Parameters, str], None]] = {
    "ca-file": _Parameters._ca_file,
    "crt": _Parameters._crt,
    "fall": _Parameters._fall,
    "inter": _Parameters._inter,
    "maxconn": _Parameters._maxconn,
    "rise": _Parameters._rise,
    "sni": _Parameters._sni,
    "verify": _Parameters._verify,
    "weight": _Parameters._weight,
}
