"""``spop validate``: is an SPOE file what HAProxy takes?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from spop.cli.parameters import EXISTING_FILE, HAPROXY_VERSION, bufsize_option


@click.command(short_help="Check an SPOE file as HAProxy does.")
@click.argument("path", metavar="FILE", type=EXISTING_FILE)
@click.option(
    "--scope", metavar="NAME", help="The engine of `filter spoe engine NAME`.  [default: every one]"
)
@click.option(
    "--proxy", type=click.Choice(["frontend", "listen", "backend"]), default="frontend",
    show_default=True, help="The kind of section that the filter stands in.",
)  # fmt: skip
@click.option(
    "--haproxy-version", type=HAPROXY_VERSION, metavar="X.Y", default="3.4", show_default=True,
    help="The HAProxy that decides.",
)  # fmt: skip
@click.option(
    "--haproxy-cfg", type=EXISTING_FILE, help="Check the haproxy.cfg around the file, too."
)
@click.option(
    "--agent", metavar="MODULE:AGENT", help="Check the agent's handlers against the file, too."
)
@bufsize_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def validate(
    path: Path,
    scope: str | None,
    proxy: str,
    haproxy_version: str,
    haproxy_cfg: Path | None,
    agent: str | None,
    bufsize: int | None,
    as_json: bool,
) -> None:
    """Check an SPOE file as HAProxy does, with all errors at once and where they are.

    The exit status is 0 when HAProxy would start with the file, with or without warnings and
    notes, 1 when it would not or there is another error, 2 for a mistake in the command.

    \b
    Examples:
      spop validate spoe.cfg
      spop validate spoe.cfg --scope ip-reputation --haproxy-version 3.2
      spop validate spoe.cfg --haproxy-cfg haproxy.cfg --agent app:agent
      spop validate spoe.cfg --json
    """
    from spop.cli.verdict import Verdict

    loaded = None
    if agent is not None:
        from spop.cli.loading import load_for_command

        loaded = load_for_command(agent)
    verdict = Verdict.of(path, scope, proxy, haproxy_version, haproxy_cfg, loaded, bufsize)
    click.echo(verdict.as_json() if as_json else verdict.as_text())
    sys.exit(0 if verdict.valid else 1)
