"""The command line. Each command is a module; `loading` finds the agent that is named."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import click

from spop.cli.output import Main
from spop.version import __version__

NAMES = (
    "bench", "check", "completion", "config", "decode", "engine", "new", "notify", "serve", "top",
    "validate",
)  # fmt: skip


class _Commands(Mapping[str, click.Command]):
    """The commands by name. Each is imported once it is asked for, from the module of its name."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in NAMES:
            raise KeyError(name)
        module = importlib.import_module(f"spop.cli.{name}")
        return cast("click.Command", getattr(module, name))

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


# click only reads it.
_commands = cast("dict[str, Any]", _Commands())


@click.group(cls=Main, commands=_commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spop")
def main() -> None:
    """Agents for HAProxy's Stream Processing Offload Engine."""
