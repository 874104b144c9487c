"""``spop serve``: run an agent.

Its options are those of `spop.server.Options`, from the command line, from the environment
(``SPOP_`` and the name in capitals) and from a TOML file, in this order of precedence.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from spop import logs
from spop.agent import Agent
from spop.cli.configuration import read_configuration
from spop.cli.in_force import shown_options, warn_of_unknown
from spop.cli.loading import StartFailure, load_agent
from spop.cli.parameters import FILE, OneOfSeveral, Seconds, SizeType, Whole
from spop.cli.settings import give_settings, shown_settings
from spop.constants import MAX_SECONDS
from spop.context import ContextFilter
from spop.errors import reason
from spop.options import LOG_LEVELS, Options
from spop.server.supervisor import Supervisor
from spop.start_errors import StartError


def option_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a flag for each field of `Options`."""
    hints = typing.get_type_hints(Options)
    for each in reversed(dataclasses.fields(Options)):
        command = _flag(each, hints[each.name])(command)
    return command


def _flag(each: dataclasses.Field[Any], hint: Any) -> Callable[..., Any]:
    multiple = typing.get_origin(hint) is tuple
    settings: dict[str, Any] = {
        "help": each.metadata["help"],
        "envvar": f"SPOP_{each.name.upper()}",
        "default": each.default,
        "multiple": multiple,
        "metavar": each.metadata.get("metavar"),
        "show_envvar": True,
        "show_default": each.default not in (None, "", (), False),
    }
    if hint is bool:
        settings["is_flag"] = True
    else:
        settings["type"] = _type(each, hint)
    return click.option(f"--{each.name.replace('_', '-')}", each.name, **settings)


def _type(each: dataclasses.Field[Any], hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(member for member in typing.get_args(hint) if member is not type(None))
    low, high = each.metadata["low"], each.metadata["high"]
    if each.metadata.get("size"):
        return SizeType(low, high)
    if each.metadata.get("choices"):
        return click.Choice(each.metadata["choices"])
    if typing.get_origin(hint) is tuple:
        return OneOfSeveral()
    if hint is int:
        return Whole(low, high)
    if hint is float:
        return Seconds(low, high, longest=MAX_SECONDS)
    return click.Path(dir_okay=False) if each.metadata.get("path") else str


@click.command(short_help="Serve an agent.")
@click.argument("target", metavar="MODULE:AGENT", envvar="SPOP_AGENT", required=False)
@option_flags
@click.option(
    "--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True,
    envvar="SPOP_LOG_LEVEL", help="Log from this level up.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(sorted(logs.FORMATTERS)), default="text",
    show_default=True, envvar="SPOP_LOG_FORMAT", help="Log lines of text, of JSON or of logfmt.",
)  # fmt: skip
@click.option(
    "--config", type=FILE, envvar="SPOP_CONFIG", is_eager=True, callback=read_configuration,
    metavar="FILE",
    help="TOML file: keys are the long options' names, agent = \"MODULE:AGENT\", and the table [settings].",
)  # fmt: skip
@click.option(
    "--reload", is_flag=True, envvar="SPOP_RELOAD", help="Restart workers when a source changes."
)
@click.option(
    "--check-config", is_flag=True, help="Say what is in force, import the agent, and leave."
)
@click.pass_context
def serve(
    context: click.Context,
    /,
    target: str | None,
    log_level: str,
    log_format: str,
    config: Path | None,
    reload: bool,
    check_config: bool,
    **options: Any,
) -> None:
    """Serve the agent that MODULE:AGENT names until SIGINT or SIGTERM.

    MODULE is a module's dotted name or the path of a .py file. SIGHUP replaces the workers with
    freshly imported code, SIGUSR1 logs the state of each connection.

    Each option can also come from the environment, as SPOP_THREADS=2 (several values are separated
    by spaces), or from the file that --config names; flags count first, then the environment, then the file.

    \b
    Examples:
      spop serve app:agent
      spop serve examples/ip_reputation.py:agent --bind 127.0.0.1:9000 --bind unix:/run/spop.sock
      spop serve app:agent --processes 4 --admin 127.0.0.1:9001 --log-format json
      spop serve --config spop.toml --check-config
    """
    if target is None:
        raise click.UsageError("Missing argument 'MODULE:AGENT'.")
    logs.configure(log_level, log_format, [ContextFilter()])
    warn_of_unknown(context, os.environ)
    try:
        checked = Options(**options)
        load = partial(_load, target, config)
        shown = _shown(context, load(), config) if check_config else ""
        supervisor = None if check_config else Supervisor(load, checked, watch=reload)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except ModuleNotFoundError as error:
        raise StartFailure(StartError(str(error))) from None
    except OSError as error:
        raise StartFailure(StartError(f"cannot start: {reason(error)}")) from None
    except StartError as error:
        raise StartFailure(error) from None
    if supervisor is None:
        click.echo(shown)
        return
    try:
        supervisor.run()
    except StartError as error:
        raise StartFailure(error) from None


def _load(target: str, config: Path | None) -> Agent:
    try:
        agent = load_agent(target)
        give_settings(agent, config)
    except click.UsageError as error:
        raise StartError(error.message) from None
    return agent


def _shown(context: click.Context, agent: Agent, config: Path | None) -> str:
    """The options in force, and where each comes from."""
    lines = (*shown_options(context, agent), *shown_settings(agent, config))
    return "\n".join((*lines, f"agent {agent.name!r} is fine"))
