"""``spop bench``: load for an agent, and how it bears it."""

from __future__ import annotations

import ipaddress
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from spop.address import Address
from spop.cli.notation import parse_argument, parse_messages
from spop.cli.parameters import (
    ADDRESS,
    EXISTING_FILE,
    HAPROXY_VERSION,
    OUTPUT_FILE,
    Parsed,
    Seconds,
    Whole,
    max_frame_size_option,
    timeout_option,
)
from spop.errors import reason
from spop.frames import Message
from spop.load import report, series
from spop.load.generator import MODES, Plan, Result
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


LIMIT = Parsed("limit", report.Limit.parse)


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
      spop bench 127.0.0.1:9000 --rate 20000 --output now.json --output now.svg
      spop bench 127.0.0.1:9000 --rate 1000,5000,20000
      spop bench 127.0.0.1:9000 --against 127.0.0.1:9001
      spop bench compare before.json now.json
    """


@bench.command("run")
@click.argument("address", type=ADDRESS)
@click.argument("words", nargs=-1, metavar="[MESSAGE name=value...]")
@click.option(
    "--mode", type=click.Choice(list(MODES)), default="pipelined", show_default=True,
    help="What is asked of the agent: one frame at a time, ACKs in any order, on any connection.",
)  # fmt: skip
@click.option("--connections", type=Whole(1, 20_000), default=16, show_default=True)
@click.option(
    "--depth", type=Whole(1, 10_000), default=20, show_default=True,
    help="Frames in flight on each connection; 1 in ping-pong.",
)  # fmt: skip
@click.option(
    "--duration", type=Seconds(0.1), default=5.0, show_default=True,
    help="Seconds that are measured.",
)  # fmt: skip
@click.option("--count", type=Whole(1), help="Frames, instead of a duration.")
@click.option(
    "--rate", "rates", type=Parsed("rates", series.parse_rates), metavar="RATE[,RATE...]",
    help="Frames a second, sent when they are due whether or not answers come (open loop); "
    "latency counts from then. Each of several is a stage.  [default: as fast as answers come]",
)  # fmt: skip
@click.option(
    "--against", type=ADDRESS, metavar="ADDRESS",
    help="Measure this agent in turn with the first, and print the ratios.",
)  # fmt: skip
@click.option(
    "--rounds", type=Whole(2, 1000), default=5, show_default=True,
    help="Parts of the duration, or of the count, in which --against takes turns.",
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
    "--warm-up", type=Seconds(0), default=0.5, show_default=True,
    help="Seconds before, which are not measured.",
)  # fmt: skip
@click.option(
    "--processes", type=Whole(1, 256), default=1, show_default=True,
    help="Generators, each in a process of its own.",
)  # fmt: skip
@click.option(
    "--expect", multiple=True, metavar="scope.name=value",
    help="What each ACK must set, all of it; may be repeated. An integer may have any type, unless "
    "one is given: name:int64=value.",
)  # fmt: skip
@click.option(
    "--haproxy-version", type=HAPROXY_VERSION, metavar="X.Y",
    help="Connect as this one: since 3.1, without async, 20 frames at most on each connection.",
)  # fmt: skip
@click.option("--pid", type=Whole(1), help="The agent's process: measure its CPU, too.")
@timeout_option(5.0)
@max_frame_size_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object.")
@click.option(
    "--output", "outputs", type=OUTPUT_FILE, multiple=True, metavar="FILE",
    help="Write the result as .json, the latencies as .csv, or their plot as .svg or .png; may be "
    "repeated.",
)  # fmt: skip
@click.option(
    "--fail-if", "limits", type=LIMIT, multiple=True, metavar="FIGURE>LIMIT",
    help="Exit with status 1 if so, as in p99>5ms or rate<10000; may be repeated.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress while it runs.")
def run_(
    address: Address,
    words: tuple[str, ...],
    as_json: bool,
    outputs: tuple[Path, ...],
    limits: tuple[report.Limit, ...],
    quiet: bool,
    profile: str,
    messages: Any,
    expect: tuple[str, ...],
    processes: int,
    pid: int | None,
    count: int | None,
    duration: float,
    rates: tuple[float, ...] | None,
    against: Address | None,
    rounds: int,
    **options: Any,
) -> None:
    """Send NOTIFY frames, match every ACK, and say how it went.

    The exit status is 0 when every ACK was right, 1 when something went wrong, 2 for a mistake
    in the command. Ctrl-C prints the result so far, with status 130.
    """
    _check_words(words)
    for path in outputs:
        _check_output(path)
    _check_pid(pid)
    if against and (pid or len(rates or ()) > 1):
        raise click.UsageError("--against goes with neither --pid nor stages of --rate")
    options |= {"count": count, "duration": None if count else duration}
    options["rate"] = rates[0] if rates else None
    plan = _plan(address, _messages(words, profile, messages), expect, options)
    progress = _Progress(quiet or not sys.stderr.isatty())
    job = partial(run, processes=processes, progress=progress, agent_pid=pid)
    try:
        runs, shown = _measure(plan, rates or (None,), against and (against, rounds), job)
    except LoadError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    finally:
        progress.end()
    if as_json:
        click.echo(json.dumps(shown))
    else:
        _print(shown)
    _write(shown, outputs)
    sys.exit(
        max(_status(*each, shown, limits) for each, shown in zip(runs, _each(shown), strict=True))
    )


def _measure(
    plan: Plan,
    rates: Sequence[float | None],
    against: tuple[Address, int] | None,
    job: partial[Result],
) -> tuple[list[tuple[Plan, Result]], dict[str, Any]]:
    """Run the plan, or its stages, or its rounds against another agent; and the whole result."""
    processes = job.keywords["processes"]
    if against:
        pair = series.in_turn(plan, *against, job)
        shown = series.against_object(*pair, processes)
        return [(side.plan, side.total) for side in pair], shown
    runs = list(series.stages(plan, rates, job))
    stages = [report.as_object(stage, processes, result) for stage, result in runs]
    return runs, {"stages": stages} if len(rates) > 1 else stages[0]


def _each(shown: dict[str, Any]) -> list[dict[str, Any]]:
    """The single runs: one, those of stages, or the two agents'."""
    if "stages" in shown:
        return list(shown["stages"])
    return [shown["first"], shown["second"]] if "second" in shown else [shown]


def _status(
    plan: Plan, result: Result, shown: dict[str, Any], limits: Iterable[report.Limit]
) -> int:
    """The exit status of a run. Print what is wrong."""
    if result.interrupted:
        return 130
    failed = [limit for limit in limits if limit.is_reached(shown)]
    for limit in failed:
        click.echo(f"Error: {limit}", err=True)
    count, frames = plan.count, result.frames
    if count is not None and frames < count:
        missed = f"no ACK in {plan.timeout:g} s, {frames} of {count} frames were answered"
        click.echo(f"Error: {plan.address}: {missed}", err=True)
    return 1 if result.errors or failed or not frames else 0


def _plan(
    address: Address, messages: list[Message], expect: tuple[str, ...], options: dict[str, Any]
) -> Plan:
    expected = dict(map(_expected, expect)) if expect else None
    try:
        return Plan(address=address, messages=messages, expected=expected, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _messages(words: tuple[str, ...], profile: str, file: Any) -> list[Message]:
    if words and file:
        raise click.UsageError("messages come from the command line or from a file, not both")
    if file:
        try:
            lines = [line.split() for line in file if line.strip() and not line.startswith("#")]
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"cannot read {file.name}: {reason(error)}") from None
        if not lines:
            raise click.UsageError(f"{file.name} has no message")
        return [message for line in lines for message in parse_messages(line)]
    return parse_messages(words) if words else PROFILES[profile]


def _expected(word: str) -> tuple[str, Any]:
    name, value = parse_argument(word)
    is_typed = ":" in word.partition("=")[0]
    if isinstance(value, int) and not isinstance(value, bool) and not is_typed:
        value = int(value)
    return name, value


def _check_words(words: tuple[str, ...]) -> None:
    """A lone word that ends as a file's name is one that lacks its option."""
    if len(words) == 1 and Path(words[0]).suffix in _WRITERS:
        raise click.UsageError(f"{words[0]!r} is no message: to write it, say --output {words[0]}")


def _check_pid(pid: int | None) -> None:
    if pid and not Path(f"/proc/{pid}/stat").exists():
        raise click.UsageError(f"there is no process {pid}")


def _check_output(path: Path) -> None:
    if path.suffix not in _WRITERS:
        raise click.UsageError(f"--output {path}: the name must end in {', '.join(_WRITERS)}")
    if path.suffix in PLOTS:
        _check_plot(path)


def _check_plot(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix not in PLOTS:
        raise click.UsageError(f"--plot {path}: the name must end in .svg or .png")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise click.UsageError("plots need an extra: pip install 'haproxy-spop[bench]'") from None


def _print(shown: dict[str, Any]) -> None:
    if "stages" in shown:
        lines = report.stages_table(shown["stages"])
    elif "second" in shown:
        lines = report.against_table(shown)
    else:
        lines = [f"{name:<22} {value}" for name, value in report.table(shown)]
    click.echo("\n".join(lines))
    if any(each["generator"]["is_the_bottleneck"] for each in _each(shown)):
        text = "The generator was the bottleneck: use more --processes, or fewer connections."
        click.echo(click.style(text, fg="yellow"), err=True)


def _write(shown: dict[str, Any], outputs: Iterable[Path]) -> None:
    for path in outputs:
        _save(path, partial(_WRITERS[path.suffix], path, shown))


def _save(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {reason(error)}") from None


def _write_json(path: Path, shown: dict[str, Any]) -> None:
    path.write_text(json.dumps(shown, indent=1) + "\n", "utf-8")


def _write_plot(path: Path, shown: dict[str, Any]) -> None:
    def name(each: dict[str, Any]) -> str:
        plan = each["plan"]
        return f"{plan['rate']:g}/s" if "stages" in shown else str(plan["address"])

    report.write_plot(path, {name(each): each for each in _each(shown)})


def _write_csv(path: Path, shown: dict[str, Any]) -> None:
    report.write_csv(path, _each(shown))


PLOTS = (".svg", ".png")
_WRITERS: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    ".json": _write_json,
    ".csv": _write_csv,
    **dict.fromkeys(PLOTS, _write_plot),
}


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
@click.option("--plot", type=OUTPUT_FILE, help="Plot both, as .svg or .png.")
def compare(first: Path, second: Path, plot: Path | None) -> None:
    """Compare two results that "spop bench --output FILE.json" wrote.

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
        _save(plot, partial(report.write_plot, plot, runs))
