"""Checks an SPOE file together with the haproxy.cfg and the agent around it: `check_setup`.

Each rule is a short function in `RULES`, under the name that diagnostics have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from spop.engine.config.diagnostics import Diagnostic
from spop.engine.validate import handler_rules, haproxy_rules, variable_rules
from spop.engine.validate.handlers import facts_of
from spop.engine.validate.haproxy_cfg import read_haproxy_cfg
from spop.engine.validate.haproxy_rules import bufsize
from spop.engine.validate.setup import EngineSetup, Setup

RULES: Mapping[str, Callable[[Setup], Iterator[Diagnostic]]] = {
    "filter-line": haproxy_rules.filter_line,
    "filter-unknown": haproxy_rules.filter_unknown,
    "group-rule": haproxy_rules.group_rule,
    "group-unknown": haproxy_rules.group_unknown,
    "headers-bin": haproxy_rules.headers_bin,
    "handler-without-message": handler_rules.handler_without_message,
    "variable-prefix": variable_rules.prefix_unknown,
}
"""The rules about the whole setup."""

ENGINE_RULES: Mapping[str, Callable[[Setup, EngineSetup], Iterator[Diagnostic]]] = {
    "argument-missing": handler_rules.argument_missing,
    "argument-object": haproxy_rules.argument_objects,
    "argument-type": handler_rules.argument_type,
    "backend-check": haproxy_rules.backend_check,
    "backend-missing": haproxy_rules.backend_missing,
    "backend-mode": haproxy_rules.backend_mode,
    "backend-servers": haproxy_rules.backend_servers,
    "body": haproxy_rules.body_waits,
    "fail-open": haproxy_rules.fails_open,
    "filter-missing": haproxy_rules.filter_missing,
    "frame-size": haproxy_rules.frame_size,
    "group-engine": haproxy_rules.group_engine,
    "group-place": haproxy_rules.group_place,
    "group-unused": haproxy_rules.group_unused,
    "maxconn": haproxy_rules.server_maxconn,
    "message-without-handler": handler_rules.message_without_handler,
    "timeout-client": haproxy_rules.client_timeout,
    "timeout-server": haproxy_rules.server_timeout,
    "variable-early": variable_rules.variable_read_too_early,
    "variable-never-read": variable_rules.variable_never_read,
    "variable-never-set": variable_rules.variable_never_set,
    "variable-registered": variable_rules.variable_not_registered,
}
"""The rules about each engine."""


def check_setup(setup: Setup) -> Iterator[Diagnostic]:
    """The diagnostics of all rules."""
    for name, rule in RULES.items():
        yield from (replace(found, rule=name) for found in rule(setup))
    for name, engine_rule in ENGINE_RULES.items():
        for engine in setup.engines:
            yield from (replace(found, rule=name) for found in engine_rule(setup, engine))


__all__ = [
    "ENGINE_RULES",
    "RULES",
    "EngineSetup",
    "Setup",
    "bufsize",
    "check_setup",
    "facts_of",
    "read_haproxy_cfg",
]
