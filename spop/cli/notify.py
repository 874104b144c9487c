"""``spop notify``: send messages to an agent and print what it answers."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from typing import Any

import click

from spop import codec
from spop.address import Address
from spop.cli import tree
from spop.cli.decoder import Decoder, Found
from spop.cli.notation import parse_messages
from spop.cli.parameters import ADDRESS, max_frame_size_option, timeout_option
from spop.cli.wire import Wire
from spop.constants import Status
from spop.errors import DisconnectedError, SpopError, reason
from spop.frames import Ack, Message


@click.command(short_help="Send messages to an agent and print its answer.")
@click.argument("address", type=ADDRESS)
@click.argument("words", nargs=-1, required=True, metavar="MESSAGE [name=value]...")
@timeout_option(5.0)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as a JSON object.")
@click.option("--hex", "as_hex", is_flag=True, help="Print the bytes of each frame, too.")
@click.option("-v", "--verbose", is_flag=True, help="Show each frame of both directions.")
@click.option("--engine-id", help="The engine that the connection belongs to.")
@max_frame_size_option
@click.option("--dry-run", is_flag=True, help="Print the NOTIFY as hex and send nothing.")
def notify(
    address: Address,
    words: tuple[str, ...],
    as_json: bool,
    as_hex: bool,
    verbose: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Send messages in a NOTIFY and print the actions that answer it.

    An argument is name=value; the value's type is what it looks like: 5, -1, true, null,
    10.0.0.1, ::1, text, @FILE for a file's bytes. name:type=value says it: null, bool, int,
    int32, uint32, int64, uint64, ip, ipv4, ipv6, str, binary; a binary may be hex:00ff,
    base64:AP8= or @FILE. A + stands between two messages of the NOTIFY.

    The actions are printed as soon as the ACK is there. The exit status is 0 when an ACK came, 1
    when none did, 2 for a mistake in the command.

    \b
    Examples:
      spop notify 127.0.0.1:9000 check-client-ip ip=10.0.0.1
      spop notify unix:/run/agent.sock check path=/login body=@request.bin n:uint32=5 --json
      spop notify 127.0.0.1:9000 first a=1 + second b=2 -v
    """
    messages = parse_messages(words)
    try:
        frame = codec.encode_notify(1, 1, messages)
    except (TypeError, ValueError, OverflowError) as error:
        raise click.UsageError(reason(error)) from None
    if dry_run:
        click.echo(frame.hex())
        return
    trace = _Trace(as_hex) if verbose or as_hex else None
    try:
        _exchange(Wire(address, trace=trace, **options), messages, f"{address}", as_json)
    finally:
        if trace is not None:
            trace.finish()


def _exchange(wire: Wire, messages: list[Message], address: str, as_json: bool) -> None:
    """Print what comes as soon as it is there; the goodbye is said afterwards."""
    with contextlib.ExitStack() as stack:
        try:
            ack = stack.enter_context(wire).notify(messages)
        except (OSError, SpopError) as error:
            click.echo(f"Error: {address}: {_why(error)}", err=True)
            sys.exit(1)
        _print(ack, as_json)
        if ack.ignored:
            click.echo(f"{address}: {tree.ignored_line(ack)}", err=True)
    end = wire.end
    if end is not None and end.code not in (Status.NORMAL, Status.IO):
        click.echo(
            f"{address}: after the ACK: {_why(DisconnectedError(end.message, end.code))}", err=True
        )


def _why(error: Exception) -> str:
    status = getattr(error, "code", None)
    return reason(error) + (f" (status {status})" if status is not None else "")


def _print(ack: Ack, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(tree.answer(ack)))
        return
    # HAProxy looks at ABORT only while a payload is sent in fragments. The actions count.
    if ack.aborted:
        click.echo("aborted: the agent takes no payload of this size")
    if not ack.actions and not ack.aborted:
        click.echo("no actions")
    for action in ack.actions:
        click.echo(tree.action_line(action))


class _Trace:
    """Shows frames on standard error, as they pass."""

    def __init__(self, as_hex: bool) -> None:
        self._as_hex = as_hex
        self._decoders = {True: Decoder(), False: Decoder()}

    def __call__(self, sent: bool, data: bytes) -> None:
        self._show(sent, self._decoders[sent].feed(data))

    def finish(self) -> None:
        """Show what came and is no whole frame."""
        self._show(False, self._decoders[False].finish())

    def _show(self, sent: bool, frames: Iterable[Found]) -> None:
        arrow = "→" if sent else "←"
        for found in frames:
            if self._as_hex:
                click.echo(f"{arrow} {found.data.hex()}", err=True)
            for line in tree.lines(found.frame) if found.frame else [found.damage]:
                click.echo(f"{arrow} {line}", err=True)
