"""HAProxy's configuration files: the SPOE file, and the backends in a ``haproxy.cfg``."""

from spop.engine.config.backends import (
    backend_of,
    load_backends,
    load_bufsize,
    load_environment,
    parse_backends,
)
from spop.engine.config.diagnostics import ConfigError, Diagnostic, Severity
from spop.engine.config.model import AgentConfig, BackendConfig, Location, Proxy
from spop.engine.config.resolution import group_for_rule
from spop.engine.config.spoe import Report, check_spoe, load_spoe, parse_spoe, scopes

__all__ = [
    "AgentConfig",
    "BackendConfig",
    "ConfigError",
    "Diagnostic",
    "Location",
    "Proxy",
    "Report",
    "Severity",
    "backend_of",
    "check_spoe",
    "group_for_rule",
    "load_backends",
    "load_bufsize",
    "load_environment",
    "load_spoe",
    "parse_backends",
    "parse_spoe",
    "scopes",
]
