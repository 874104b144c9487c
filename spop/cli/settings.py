"""The agent's own settings: from the table ``[settings]`` of the file, and the environment."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import click

from spop.agent import Agent
from spop.cli.configuration import SETTINGS, read_toml
from spop.settings import SettingsError, Source, environment, fill


def give_settings(agent: Agent, path: Path | None) -> None:
    """Fill `Agent.config`. The file is read now, so that a reload takes what it has then.

    Raises:
        click.UsageError: a setting can't be used. The message has file, line, key and reason.
    """
    sources = _sources(path)
    if agent.config_class is None:
        _check_none(agent, sources)
        return
    try:
        agent.config = fill(agent.config_class, *sources)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None


def _sources(path: Path | None) -> list[Source]:
    try:
        found = [environment(os.environ)]
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    if path is not None:
        values, text = read_toml(path)
        table = values.get(SETTINGS, {})
        if not isinstance(table, dict):
            raise click.UsageError(f"{path}: {SETTINGS} is a table: [{SETTINGS}]")
        found.insert(0, Source("file", table, lambda key: f"{path}:{_line_of(key, text)}"))
    return found


def _check_none(agent: Agent, sources: list[Source]) -> None:
    for source in sources:
        for key in source.table:
            raise click.UsageError(
                f"{source.place(key)}: agent {agent.name!r} has no settings for a file: "
                "it needs Agent(config=A_DATACLASS)"
            )


def shown_settings(agent: Agent, path: Path | None) -> list[str]:
    """A line for each setting: its value, and where that comes from.

    A field with ``repr=False`` is a secret, whose value is not shown.
    """
    if agent.config is None:
        return []
    sources = _sources(path) if agent.config_class else []
    lines = []
    for each in dataclasses.fields(agent.config):
        value = repr(getattr(agent.config, each.name)) if each.repr else "(not shown)"
        lines.append(f"{SETTINGS}.{each.name} = {value}  ({_origin(each.name, sources)})")
    return lines


def _origin(name: str, sources: list[Source]) -> str:
    names = [
        source.name for source in sources if name in {key.replace("-", "_") for key in source.table}
    ]
    return names[-1] if names else "default"


def _line_of(path: str, text: str) -> int:
    """The line of a key of the table, or that of the table itself."""
    *outer, key = [SETTINGS, *filter(None, path.split("."))]
    for depth in range(len(outer), 0, -1):
        header = _find(rf"^\s*\[\s*{_joined(outer[:depth])}\s*\]", text, 0)
        found = header and _find(rf"^\s*{_joined([*outer[depth:], key])}\s*[=.]", text, header[1])
        if found:
            return found[0]
    found = _find(rf"^\s*\[?\s*{_joined([*outer, key])}\b", text, 0)
    found = found or _find(rf"^\s*\[?\s*{SETTINGS}\b", text, 0)
    return found[0] if found else 1


def _joined(keys: list[str]) -> str:
    return r"\s*\.\s*".join(rf"[\"']?{re.escape(key)}[\"']?" for key in keys)


def _find(pattern: str, text: str, start: int) -> tuple[int, int] | None:
    """Line and end of the first match behind `start`."""
    found = re.compile(pattern, re.MULTILINE).search(text, start)
    if found is None:
        return None
    return text.count("\n", 0, found.start()) + found[0].count("\n") + 1, found.end()
