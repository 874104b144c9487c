"""``spop config``: the two files of HAProxy that fit an agent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from spop.address import Address
from spop.agent import Agent
from spop.cli.loading import load_for_command
from spop.cli.parameters import HAPROXY_VERSION, Parsed
from spop.engine.draft import DEFAULT_PATH, Draft, DraftError, Plan, draft
from spop.errors import reason
from spop.haproxy_version import Version


def _address(text: str) -> str:
    """An address as HAProxy's configuration has it: the text, once it is known to be one."""
    Address.parse(text)
    if not set(text).isdisjoint(" \t\r\n#\"'\\"):
        raise ValueError(f"{text!r} can't stand in haproxy.cfg as it is")
    return f"unix@{text.removeprefix('unix:')}" if text.startswith("unix:") else text


_ADDRESS = Parsed("address", _address)


@click.command(short_help="Write the files of HAProxy that fit an agent.")
@click.argument("target", metavar="MODULE:AGENT")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write DIR/spoe.cfg and DIR/haproxy.cfg. Files that exist are kept.  [default: print both]",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over files that exist.")
@click.option(
    "--listen", type=_ADDRESS, default=Plan.listen, show_default=True,
    help="Where HAProxy takes requests.",
)  # fmt: skip
@click.option(
    "--agent-address", type=_ADDRESS, default=Plan.agent_address, show_default=True,
    help="Where the agent is served.",
)  # fmt: skip
@click.option(
    "--server", type=_ADDRESS, default=Plan.server, show_default=True,
    help="The site behind HAProxy.",
)  # fmt: skip
@click.option(
    "--haproxy-version", type=HAPROXY_VERSION, metavar="X.Y", default="3.4", show_default=True,
    help="The HAProxy that reads the files.",
)  # fmt: skip
def config(
    target: str, output: Path | None, force: bool, haproxy_version: str, **addresses: str
) -> None:
    """Write spoe.cfg and haproxy.cfg for the agent that MODULE:AGENT names.

    They start as they are, from any folder. Arguments are guessed from the handlers' parameters;
    a line with "fill in" has a constant, for you to replace.

    \b
    Examples:
      spop config app:agent
      spop config app:agent --output haproxy --haproxy-version 3.0
      haproxy -f haproxy/haproxy.cfg
    """
    try:
        made = drafted(load_for_command(target), target, output, haproxy_version, **addresses)
    except DraftError as error:
        click.echo(f"Error: {target}: {error}", err=True)
        sys.exit(1)
    if output is None:
        click.echo(f"# spoe.cfg\n{made.spoe}\n# haproxy.cfg\n{made.haproxy}", nl=False)
        return
    files = {output / "spoe.cfg": made.spoe, output / "haproxy.cfg": made.haproxy}
    try:
        _write(output, files, force)
    except OSError as error:
        raise click.UsageError(f"cannot write to {output}: {reason(error)}") from None
    for path, text in files.items():
        todo = text.count("# fill in")
        click.echo(f"{path}{f': {todo} to fill in' if todo else ''}")


def drafted(
    agent: Agent, target: str, output: Path | None, haproxy_version: str, **addresses: Any
) -> Draft:
    """The files for an agent, to be written into a folder.

    Raises:
        DraftError: there is nothing to write for it.
    """
    version = Version.of_haproxy(haproxy_version)
    if output is not None and version.branch < DEFAULT_PATH:
        addresses["spoe_path"] = str(output.absolute() / "spoe.cfg")
    return draft(agent, Plan(target=target, version=version, **addresses))


def _write(folder: Path, files: dict[Path, str], force: bool) -> None:
    there = [str(path) for path in files if path.exists()]
    if there and not force:
        raise click.UsageError(f"{' and '.join(there)} exist: --force replaces them")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, "utf-8")
