"""How settings are refused."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest

from spop.cli.settings import give_settings


def said_of(name: str, folder: Path, table: str) -> str:
    """What ``spop serve`` says of a table of settings, from line 4 of the file on, without the
    file's name. `tests/test_settings.py` shows that it is one line and status 2."""
    file = folder / "spop.toml"
    file.write_text(f'bind = "unix@{folder}/agent.sock"\n\n[settings]\n{table}\n')
    agent = importlib.import_module(f"spop.agents.{name}").agent
    with pytest.raises(click.UsageError) as refused:
        give_settings(agent, file)
    assert "\n" not in refused.value.message
    return refused.value.message.replace(str(file), "")
