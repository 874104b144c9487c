"""``spop bench``: load for an agent, and how it bears it."""

from __future__ import annotations

import ipaddress
import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from spop.address import Address
from spop.cli.notation import parse_argument, parse_messages
from spop.cli.parameters import (
    ADDRESS,
    EXISTING_FILE,
    FILE,
    HAPROXY_VERSION,
    max_frame_size_option,
    timeout_option,
)
from spop.errors import reason
from spop.frames import Message
from spop.load import report
from spop.load.generator import MODES, Plan
from spop.load.run import LoadError, run

HEADERS = "".join(f"x-header-{number}: {'v' * 28}\r\n" for number in range(14))

PROFILES = {
    "small": [Message("check-client-ip", ip=ipaddress.IPv4Address("192.0.2.10"))],
    "web": [
        Message(
            "check-request",
            ip=ipaddress.IPv4Address("192.0.2.10"),
            port=51234,
            method="GET",
            path="/index.html",
            ssl=True,
            headers=HEADERS,
        )
    ],
    "body": [Message("check-body", method="POST", path="/upload", body=bytes(64 * 1024))],
}


class DefaultGroup(click.Group):
    """A group whose first command is meant where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named or not args else ["run", *args])


@click.group(cls=DefaultGroup)
def bench() -> None:
    """Put load on an agent, or compare what came of it.

    "spop bench ADDRESS …" is short for "spop bench run ADDRESS …".

    \b
    Examples:
      spop bench 127.0.0.1:9000
      spop bench 127.0.0.1:9000 --mode ping-pong --connections 64 --duration 10
      spop bench 127.0.0.1:9000 --rate 20000 --json now.json --plot now.svg
      spop bench compare before.json now.json
    """


@bench.command("run")
@click.argument("address", type=ADDRESS)
@click.argument("words", nargs=-1, metavar="[MESSAGE name=value...]")
@click.option(
    "--mode", type=click.Choice(list(MODES)), default="pipelined", show_default=True,
    help="What is asked of the agent: one frame at a time, ACKs in any order, on any connection.",
)  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 20_000), default=16, show_default=True)
@click.option(
    "--depth", type=click.IntRange(1, 10_000), default=20, show_default=True,
    help="Frames in flight on each connection; 1 in ping-pong.",
)  # fmt: skip
@click.option(
    "--duration", type=click.FloatRange(0.1), default=5.0, show_default=True,
    help="Seconds that are measured.",
)  # fmt: skip
@click.option("--count", type=click.IntRange(1), help="Frames, instead of a duration.")
@click.option(
    "--rate", type=click.FloatRange(0.1),
    help="Frames a second, sent when they are due whether or not answers come (open loop); "
    "latency counts from then.  [default: as fast as answers come]",
)  # fmt: skip
@click.option(
    "--profile", type=click.Choice(list(PROFILES)), default="small", show_default=True,
    help="What to send where no MESSAGE is given: an address; six arguments with 600 bytes; "
    "64 KiB.",
)  # fmt: skip
@click.option(
    "--messages", type=click.File("r"),
    help="File of the messages to send in each NOTIFY, a line for each as on the command line.",
)  # fmt: skip
@click.option(
    "--warm-up", type=click.FloatRange(0), default=0.5, show_default=True,
    help="Seconds before, which are not measured.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(1, 256), default=1, show_default=True,
    help="Generators, each in a process of its own.",
)  # fmt: skip
@click.option(
    "--expect", multiple=True, metavar="scope.name=value",
    help="What each ACK must set, all of it; may be repeated.",
)  # fmt: skip
@click.option(
    "--haproxy-version", type=HAPROXY_VERSION, metavar="X.Y",
    help="Connect as this one: since 3.1, without async, 20 frames at most on each connection.",
)  # fmt: skip
@click.option("--pid", type=click.IntRange(1), help="The agent's process: measure its CPU, too.")
@timeout_option(5.0)
@max_frame_size_option
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write the result as JSON; - is standard output.",
)  # fmt: skip
@click.option("--csv", "csv_file", type=FILE, help="Write the distribution of latencies.")
@click.option("--plot", type=FILE, help="Plot it, as .svg or .png.")
@click.option("--quiet", is_flag=True, help="No progress while it runs.")
def run_(
    address: Address,
    words: tuple[str, ...],
    json_file: Path | None,
    csv_file: Path | None,
    plot: Path | None,
    quiet: bool,
    profile: str,
    messages: Any,
    expect: tuple[str, ...],
    processes: int,
    pid: int | None,
    count: int | None,
    duration: float,
    **options: Any,
) -> None:
    """Send NOTIFY frames, match every ACK, and say how it went.

    The exit status is 0 when every ACK was right, 1 when something went wrong, 2 for a mistake
    in the command.
    """
    _check_plot(plot)
    try:
        plan = Plan(
            address=address,
            messages=_messages(words, profile, messages),
            expected=dict(_expected(word) for word in expect) if expect else None,
            count=count,
            duration=None if count else duration,
            **options,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    progress = _Progress(quiet or not sys.stderr.isatty())
    try:
        result = run(plan, processes, progress, agent_pid=pid)
    except LoadError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    finally:
        progress.end()
    shown = report.as_object(plan, processes, result)
    if json_file is None or str(json_file) != "-":
        _print(shown)
    _write(shown, json_file, csv_file, plot)
    if count is not None and result.frames < count:
        missed = f"no ACK in {plan.timeout:g} s, {result.frames} of {count} frames were answered"
        click.echo(f"Error: {address}: {missed}", err=True)
    sys.exit(1 if result.errors else 0)


def _messages(words: tuple[str, ...], profile: str, file: Any) -> list[Message]:
    if words and file:
        raise click.UsageError("messages come from the command line or from a file, not both")
    if file:
        lines = [line.split() for line in file if line.strip() and not line.startswith("#")]
        if not lines:
            raise click.UsageError(f"{file.name} has no message")
        return [message for line in lines for message in parse_messages(line)]
    return parse_messages(words) if words else PROFILES[profile]


def _expected(word: str) -> tuple[str, Any]:
    name, value = parse_argument(word)
    # Handlers answer with the smallest integer type, as the codec does for plain numbers.
    return name, int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_plot(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix not in (".svg", ".png"):
        raise click.UsageError(f"--plot {path}: the name must end in .svg or .png")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise click.UsageError("plots need an extra: pip install 'haproxy-spop[bench]'") from None


def _print(shown: dict[str, Any]) -> None:
    for name, value in report.table(shown):
        click.echo(f"{name:<22} {value}")
    if shown["generator"]["is_the_bottleneck"]:
        text = "The generator was the bottleneck: use more --processes, or fewer connections."
        click.echo(click.style(text, fg="yellow"), err=True)


def _write(
    shown: dict[str, Any], json_file: Path | None, csv_file: Path | None, plot: Path | None
) -> None:
    try:
        if json_file is not None and str(json_file) == "-":
            click.echo(json.dumps(shown))
        elif json_file is not None:
            json_file.write_text(json.dumps(shown, indent=1) + "\n", "utf-8")
        if csv_file is not None:
            report.write_csv(csv_file, shown)
        if plot is not None:
            report.write_plot(plot, {shown["plan"]["address"]: shown})
    except OSError as error:
        raise click.UsageError(f"cannot write {error.filename}: {reason(error)}") from None


class _Progress:
    """A line that changes, on a terminal."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._last: tuple[float, int] | None = None
        self._shown = False

    def __call__(self, frames: int, measuring: bool) -> None:
        now = time.monotonic()
        last, self._last = self._last, (now, frames)
        if self._quiet or last is None or now <= last[0]:
            return
        rate = (frames - last[1]) / (now - last[0])
        state = "measuring" if measuring else "warming up"
        click.echo(f"\r{state}: {frames:,} frames, {rate:,.0f}/s\x1b[K", nl=False, err=True)
        self._shown = True

    def end(self) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)


@bench.command()
@click.argument("first", type=EXISTING_FILE)
@click.argument("second", type=EXISTING_FILE)
@click.option("--plot", type=FILE, help="Plot both, as .svg or .png.")
def compare(first: Path, second: Path, plot: Path | None) -> None:
    """Compare two results that "spop bench --json" wrote.

    \b
    Example:
      spop bench compare before.json now.json --plot both.svg
    """
    _check_plot(plot)
    try:
        runs = {str(path): report.load(path) for path in (first, second)}
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    width = max(len(str(first)), len(str(second)), 16)
    click.echo(f"{'':<22} {first!s:>{width}} {second!s:>{width}}    ratio")
    for name, one, other, ratio in report.comparison(runs[str(first)], runs[str(second)]):
        click.echo(f"{name:<22} {one:>{width}} {other:>{width}} {ratio:>8}")
    if plot is not None:
        report.write_plot(plot, runs)
