"""Finding the agent that a user names on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

import click

from spop.agent import Agent
from spop.logs import text_of
from spop.server.sources import SourceLoader

# Frames of these say nothing to who wrote the agent.
_OURS = (str(Path(__file__).parents[1]), importlib.__file__, "<frozen importlib")


class StartFailure(click.ClickException):
    """The command is right, but the agent can't be served. The message, a line, says why."""

    exit_code = 2


def load_agent(target: str) -> Agent:
    """The agent that ``MODULE:AGENT`` names; MODULE is dotted or the path of a ``.py`` file.

    Raises:
        click.UsageError: there is none. The message says why.
        StartFailure: the module can't be imported.
    """
    module_name, colon, attribute = target.rpartition(":")
    if not colon or not module_name or not attribute:
        raise click.UsageError(f"{target!r} is not MODULE:AGENT, as in 'app:agent'")
    agent = getattr(_load_module(module_name), attribute, None)
    if not isinstance(agent, Agent):
        found = "has no such name" if agent is None else f"has a {type(agent).__name__} there"
        raise click.UsageError(f"{target!r} names no spop.Agent: the module {found}")
    return agent


def _load_module(name: str) -> ModuleType:
    try:
        return _load_file(Path(name)) if name.endswith(".py") else _import(name)
    except click.UsageError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        told, place = " ".join(text_of(error).split()), _place(error)
        where = "" if place in told else f" ({place})"
        raise StartFailure(
            f"cannot import {name!r}: {type(error).__name__}: {told}{where}"
        ) from None


def _place(error: BaseException) -> str:
    """File and line of the agent's code, or of what it imports, where an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = ([frame for frame in frames if not frame.filename.startswith(_OURS)] or frames)[-1]
    return f"{place.filename}:{place.lineno}"


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
