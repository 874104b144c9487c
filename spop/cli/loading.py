"""Finding the agent that a user names on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import click

from spop.agent import Agent
from spop.server.sources import SourceLoader
from spop.start_errors import StartError, start_error

READY = "spop.agents."
"""The ready agents, which need packages of their own."""
_READY_NAMES = ("forward_auth", "mirror", "ratelimit", "reputation", "score")


class StartFailure(click.ClickException):
    """The command is right, but the agent can't be served. It shows a `StartError`."""

    def __init__(self, error: StartError) -> None:
        super().__init__(str(error))
        self.exit_code: int = error.exit_code  # type: ignore[misc]
        self._traceback = error.traceback

    def show(self, file: IO[Any] | None = None) -> None:
        if self._traceback:
            click.echo(self._traceback.rstrip(), file=file or sys.stderr)
        super().show(file)


def load_agent(target: str) -> Agent:
    """The agent that ``MODULE:AGENT`` names; MODULE is dotted or the path of a ``.py`` file.

    Raises:
        click.UsageError: there is none. The message says why.
        StartError: the module can't be imported.
    """
    module_name, colon, attribute = target.rpartition(":")
    if not colon or not module_name or not attribute:
        raise click.UsageError(f"{target!r} is not MODULE:AGENT, as in 'app:agent'")
    module = _load_module(module_name)
    agent = getattr(module, attribute, None)
    if not isinstance(agent, Agent):
        found = "has no such name" if agent is None else f"has a {type(agent).__name__} there"
        agents = [name for name, value in vars(module).items() if isinstance(value, Agent)]
        others = f"; its agents are: {', '.join(agents)}" if agents else "; it has no agent"
        raise click.UsageError(f"{target!r} names no spop.Agent: the module {found}{others}")
    return agent


def load_for_command(target: str) -> Agent:
    """`load_agent` for a command that needs the agent in its own process.

    Raises:
        click.UsageError: as `load_agent`.
        StartFailure: the module can't be imported.
    """
    try:
        return load_agent(target)
    except StartError as error:
        raise StartFailure(error) from None


def _load_module(name: str) -> ModuleType:
    try:
        return _load_file(Path(name)) if name.endswith(".py") else _import(name)
    except (click.UsageError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0]:  # Nothing of the user's has run.
            where = "in this folder or installed"
            raise StartError(f"cannot import {name!r}: {error} {where}") from None
        if name.startswith(READY) and error.name == name:
            ready = ", ".join(_READY_NAMES)
            raise StartError(f"there is no {name}: the ready agents are {ready}") from None
        if name.startswith(READY) and not str(error.name).startswith("spop"):
            extra = "score" if name == f"{READY}score" else "agents"
            why = f"{name} needs {error.name}: pip install 'haproxy-spop[{extra}]'"
            raise StartError(why) from None
        raise start_error(f"cannot import {name!r}", error) from None
    except BaseException as error:
        raise start_error(f"cannot import {name!r}", error) from None


def _import(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise click.UsageError(f"no file {path}")
    sys.path.insert(0, str(path.parent.resolve()))
    loader = SourceLoader(path.stem, str(path.absolute()))
    spec = importlib.util.spec_from_loader(path.stem, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    loader.exec_module(module)
    return module
