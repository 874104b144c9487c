"""What ``spop serve --check-config`` shows, and which variables of the environment mean nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import click

from spop.agent import Agent
from spop.cli.configuration import UNKNOWN
from spop.settings import PREFIX

logger: logging.Logger = logging.getLogger("spop.cli")

_SOURCES = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file"}
_NOT_SHOWN = ("check_config", "help")
_OTHERS = {"SPOP_PURE", "SPOP_COMPLETE"}
"""Variables that are no options of the command."""


def shown_options(context: click.Context, agent: Agent) -> Iterator[str]:
    """A line for each option: its name, its value, and where that comes from."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in _NOT_SHOWN:
            continue
        found = context.get_parameter_source(name)
        source = _SOURCES.get(found.name if found else "", "default")
        value = context.params[name]
        if value is None and hasattr(agent, name):
            value, source = getattr(agent, name), "agent"
        option = "agent" if name == "target" else name.replace("_", "-")
        yield f"{option} = {_shown(value)}  ({source})"


def _shown(value: Any) -> str:
    """A value as TOML has it."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def warn_of_unknown(context: click.Context, variables: Mapping[str, str]) -> None:
    """Log each variable that looks like an option's and is none, and each such key of the file."""
    for text in context.meta.get(UNKNOWN, ()):
        logger.warning("%s", text)
    options = [each for each in context.command.params if isinstance(each.envvar, str)]
    known = {str(each.envvar) for each in options} | _OTHERS
    unknown = {name for name in variables if name.startswith("SPOP_")} - known
    for name in sorted(unknown):
        if not name.startswith((PREFIX, "SPOP_TEST_")):
            import difflib

            close = difflib.get_close_matches(name, known, 1)
            hint = f"; is it {close[0]}?" if close else ""
            logger.warning("there is no option for the variable %s%s", name, hint)
