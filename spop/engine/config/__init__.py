"""HAProxy's own configuration files: the SPOE file, and the backends of a ``haproxy.cfg``."""

from spop.engine.config.diagnostics import ConfigError, Diagnostic, Severity
from spop.engine.config.model import AgentConfig, BackendConfig, Location, Proxy
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
    "check_spoe",
    "load_spoe",
    "parse_spoe",
    "scopes",
]
