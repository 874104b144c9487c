"""Reads ``server`` and ``default-server`` lines (section 5.2 of HAProxy's manual).

Keywords that an engine does not use are skipped, together with their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from spop.engine.config.addresses import read_server_address
from spop.engine.config.diagnostics import refusal
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
    server = _read_parameters(line, 3, template, tls)
    if server.ssl and server.verify and not server.ca_file:
        hint = "add 'ca-file FILE' or 'verify none'"
        raise refusal(line.at(1), f"nothing verifies the certificate of server '{name}'", hint)
    return server


def read_default(line: Line, template: ServerConfig, tls: TlsDefaults) -> ServerConfig:
    """The template for the servers after a ``default-server`` line.

    Raises:
        ConfigError: HAProxy would refuse the line.
    """
    return _read_parameters(line, 1, template, tls)


def _read_parameters(
    line: Line, index: int, template: ServerConfig, tls: TlsDefaults
) -> ServerConfig:
    """The template, changed by the parameters from a word on."""
    changes: dict[str, object] = {}
    words = line.arguments
    while index <= len(words):
        keyword = words[index - 1]
        if keyword in _FLAGS:
            name, value = _FLAGS[keyword]
            changes[name] = value
        elif keyword in _VALUES or keyword in _PASSED_OVER:
            index += 1
            if index > len(words):
                raise refusal(line.at(index), f"'{keyword}' needs a value")
            if keyword in _VALUES:
                with line.refusing(index):
                    changes[keyword.replace("-", "_")] = _VALUES[keyword](words[index - 1], tls)
        index += 1
    return replace(template, **changes)  # type: ignore[arg-type]


def _inter(value: str, tls: TlsDefaults) -> float:
    inter = seconds(value)
    if not inter:
        raise ValueError("'inter' is more than 0")
    return inter


def _number(keyword: str, allowed: range, described: str) -> Callable[[str, TlsDefaults], int]:
    def read(value: str, tls: TlsDefaults) -> int:
        number = leading_integer(value)
        if number not in allowed:
            raise ValueError(f"'{keyword}' is a number {described}, not '{value}'")
        return number

    return read


def _verify(value: str, tls: TlsDefaults) -> bool:
    if value not in ("none", "required"):
        raise ValueError(f"'verify' is 'none' or 'required', not '{value}'")
    return value == "required"


def _sni(value: str, tls: TlsDefaults) -> str | None:
    # A connection to an agent belongs to no request: only a constant expression gives a name.
    try:
        name = compile_expression(value).evaluate(Stream())
    except SampleError as error:
        # Backends of web servers may have fetches that the engine lacks: that is no mistake.
        if value.startswith("str("):
            raise ValueError(error.message) from None
        return None
    return name if isinstance(name, str) else None


def _under(base: str, file: str) -> str:
    return f"{base}/{file}" if base and not file.startswith(("/", "@")) else file


_VALUES: Mapping[str, Callable[[str, TlsDefaults], object]] = {
    "ca-file": lambda value, tls: _under(tls.ca_base, value),
    "crt": lambda value, tls: _under(tls.crt_base, value),
    "fall": _number("fall", range(1, 2**63), "from 1"),
    "inter": _inter,
    "maxconn": lambda value, tls: max(0, leading_integer(value)),
    "rise": _number("rise", range(1, 2**63), "from 1"),
    "sni": _sni,
    "verify": _verify,
    "weight": _number("weight", range(257), "from 0 to 256"),
}
"""The values of the keywords that an engine uses. Each may raise ValueError."""
