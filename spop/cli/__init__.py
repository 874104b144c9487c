"""The command line. Each command is a module; `loading` finds the agent that is named."""

from __future__ import annotations

import click

from spop.cli.bench import bench
from spop.cli.check import check
from spop.cli.completion import completion
from spop.cli.config import config
from spop.cli.decode import decode
from spop.cli.engine import engine
from spop.cli.new import new
from spop.cli.notify import notify
from spop.cli.output import Main
from spop.cli.serve import serve
from spop.cli.top import top
from spop.cli.validate import validate
from spop.version import __version__


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spop")
def main() -> None:
    """Agents for HAProxy's Stream Processing Offload Engine."""


for _command in (
    serve, check, notify, decode, bench, engine, validate, config, new, top, completion,
):  # fmt: skip
    main.add_command(_command)
