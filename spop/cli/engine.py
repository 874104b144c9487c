"""``spop engine``: one stream through an SPOE file, from the command line."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from spop.address import Address
from spop.cli.parameters import ADDRESS, EXISTING_FILE, HAPROXY_VERSION, ParamType, bufsize_option


class EventName(ParamType):
    """The name of an event."""

    name = "event"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        known = _events()
        if value not in known:
            self.fail(f"there is no event {value!r}: there are {', '.join(known)}", param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return _items(_events(), incomplete)


def _events() -> list[str]:
    from spop.engine import Event

    return list(Event)


def _complete_group(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The groups of the file, if it can be read."""
    from spop.engine.config import load_spoe, scopes

    names: list[str] = []
    with contextlib.suppress(Exception):  # A shell shows no errors.
        # The option lacks its value, so that click has not come to the arguments.
        path, scope = ctx.params.get("path") or ctx.args[0], ctx.params.get("scope")
        for each in scopes(path) if scope is None else [scope]:
            names += load_spoe(path, each).groups
    return _items(names, incomplete)


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command(short_help="Run one stream through an SPOE file, as HAProxy does.")
@click.argument("path", metavar="FILE", type=EXISTING_FILE)
@click.argument("words", nargs=-1, metavar="[name=value]...")
@click.option(
    "--event", "events", multiple=True, type=EventName(), metavar="EVENT",
    help="An event that happens. Several do in HAProxy's order.",
)  # fmt: skip
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", shell_complete=_complete_group,
    help="A group to send after the events.",
)  # fmt: skip
@click.option("--scope", metavar="NAME", help="The engine of `filter spoe engine NAME`.")
@click.option(
    "--agent", "agents", multiple=True, type=ADDRESS, metavar="ADDRESS",
    help="Where the agent is, for any `use-backend`.",
)  # fmt: skip
@click.option("--haproxy-cfg", type=EXISTING_FILE, help="The haproxy.cfg with the backend.")
@click.option("--haproxy-version", type=HAPROXY_VERSION, metavar="X.Y", help="Behave as this one.")
@click.option(
    "--missing", type=click.Choice(["error", "unavailable"]), default="error", show_default=True,
    help="What becomes of samples that HAProxy has and the engine can't evaluate.",
)  # fmt: skip
@bufsize_option
@click.option("--json", "as_object", is_flag=True, help="Print a JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Show the messages that are sent.")
def engine(
    path: Path,
    words: tuple[str, ...],
    events: tuple[str, ...],
    groups: tuple[str, ...],
    agents: tuple[Address, ...],
    haproxy_cfg: Path | None,
    **options: Any,
) -> None:
    """Run one stream through an SPOE file's engine, as HAProxy's filter would: evaluate the
    messages of its events, ask the agent, set variables. Prints those, and HAProxy's log lines.

    The stream is told by words: method=GET url=/x?y=z (or path= and query=) version=1.1
    hdr:NAME=VALUE body=TEXT (@FILE for a file's bytes) src=IP src_port=N dst=IP dst_port=N
    fe_name= be_name= unique_id= ssl=true ssl:sni=NAME, of the response status=200
    res.hdr:NAME=VALUE res.body= res.version=, and var:txn.NAME=VALUE for variables that are set
    already.

    The exit status is 0 when all went well, 1 when messages were not answered, 2 for a mistake
    in the command or in the file.

    \b
    Examples:
      spop engine spoe.cfg --agent 127.0.0.1:9000 --event on-client-session src=10.0.0.1
      spop engine spoe.cfg --haproxy-cfg haproxy.cfg --event on-frontend-http-request \\
          method=POST path=/login hdr:user-agent=curl body=@request.bin
      spop engine waf.cfg --agent unix:/run/waf.sock --group waf-request path=/ -v
    """
    if not events and not groups:
        raise click.UsageError("nothing happens: name an --event or a --group")
    if bool(agents) is bool(haproxy_cfg):
        raise click.UsageError("where is the agent? --agent ADDRESS or --haproxy-cfg FILE")
    from spop.cli.stream_run import run_stream

    addresses = [str(address) for address in agents]
    backends: Path | dict[str, list[str]] = haproxy_cfg or defaultdict(lambda: addresses)
    well = run_stream(path, words, events, groups, backends=backends, **options)
    sys.exit(0 if well else 1)
