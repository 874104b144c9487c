"""``spop top``: a live view of a running service, read from its ``--admin`` address."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any

import click

from spop.address import Address
from spop.cli.parameters import ADDRESS, Seconds, Whole, timeout_option
from spop.client.dial import Endpoint, dial
from spop.counters import quantile
from spop.errors import reason
from spop.logs import escaped

_BEGIN, _END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The terminal's other screen, without a cursor, and back."""
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"

Fields = dict[str, Any]
Wait = Callable[[], bool]
"""Waits for the next look. False: the user wants no more."""


@click.command(short_help="Show what a service does now.")
@click.argument("admin", type=ADDRESS)
@click.option(
    "--interval", type=Seconds(0.1), default=2.0, show_default=True, metavar="SECONDS",
    help="Time between two looks.",
)  # fmt: skip
@click.option(
    "--count", type=Whole(1),
    help="Number of looks.  [default: no end on a terminal, else 1]",
)  # fmt: skip
@timeout_option(5.0)
def top(admin: Address, interval: float, count: int | None, timeout: float) -> None:
    """Show rates, latencies, errors, queues and workers of a service, again and again.

    ADMIN is the address of its --admin. On a terminal, q ends it. Elsewhere the output is plain
    text. All values are those of the interval, but for those that say "now".

    \b
    Examples:
      spop top 127.0.0.1:9001
      spop top 127.0.0.1:9001 --interval 10 --count 6 > minute.txt
    """
    live = sys.stdout.isatty()
    with (
        contextlib.suppress(KeyboardInterrupt),
        _terminal(interval) if live else _pipe(interval) as (wait, show),
    ):
        for lines in _looks(admin, timeout, wait, count or (None if live else 1), patient=live):
            show(lines)


def _looks(
    admin: Address, timeout: float, wait: Wait, count: int | None, *, patient: bool
) -> Iterator[list[str]]:
    """The text of each look. If nobody answers, a patient user sees that; else it is an error."""
    last: Fields | None = None
    while count is None or count > 0:
        try:
            status = _ask(admin, timeout)
        except (OSError, http.client.HTTPException, _NotAdminError) as error:
            text = f"{admin} does not answer: {reason(error)}"
            if not patient:
                raise click.ClickException(text) from error
            yield [text]
        else:
            if last is not None and status["time"] > last["time"]:
                yield list(report(last, status))
                count = count - 1 if count else None
            last = status
        if count != 0 and not wait():
            return


class _Connection(http.client.HTTPConnection):
    """HTTP to an address, which may be a unix socket's."""

    def __init__(self, address: Address, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = dial(Endpoint(self._address), self.timeout or 0.0)


class _NotAdminError(Exception):
    """Something else than an admin page has answered."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; give the address of --admin")


def _ask(admin: Address, timeout: float) -> Fields:
    connection = _Connection(admin, timeout)
    with contextlib.closing(connection):
        connection.request("GET", "/status.json")
        try:
            answer = connection.getresponse()
        except http.client.RemoteDisconnected:  # As a service that ends may do.
            raise
        except http.client.BadStatusLine:
            raise _NotAdminError("this is not HTTP") from None
        text = answer.read()
    if answer.status != 200:
        raise _NotAdminError(f"it says {answer.status} {answer.reason}")
    with contextlib.suppress(ValueError):
        status = json.loads(text)
        if isinstance(status, dict) and "counts" in status:
            return status
    raise _NotAdminError("this is HTTP, but no service of spop")


@contextlib.contextmanager
def _pipe(interval: float) -> Iterator[tuple[Wait, Callable[[list[str]], None]]]:
    def wait() -> bool:
        time.sleep(interval)
        return True

    def show(lines: list[str]) -> None:
        click.echo("\n".join([*lines, ""]))
        sys.stdout.flush()

    yield wait, show


@contextlib.contextmanager
def _terminal(interval: float) -> Iterator[tuple[Wait, Callable[[list[str]], None]]]:
    keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = termios.tcgetattr(keyboard) if keyboard is not None else None
    sys.stdout.write(f"{_BEGIN}{_HOME}one moment …\n")

    def wait() -> bool:
        sys.stdout.flush()
        if keyboard is None:
            time.sleep(interval)
            return True
        pressed, _, _ = select.select([keyboard], [], [], interval)
        return not pressed or os.read(keyboard, 100) not in (b"q", b"Q", b"")

    def show(lines: list[str]) -> None:
        width, height = shutil.get_terminal_size()
        shown = "".join(f"{line[:width]}{_CLEAR_LINE}\r\n" for line in lines[: height - 1])
        sys.stdout.write(f"{_HOME}{shown}{_CLEAR_REST}")

    try:
        if keyboard is not None:
            tty.setcbreak(keyboard)
        yield wait, show
    finally:
        if keyboard is not None and before is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        sys.stdout.write(_END)
        sys.stdout.flush()


def report(last: Fields, status: Fields) -> Iterator[str]:
    """The lines that tell what happened between two statuses."""
    seconds = status["time"] - last["time"]
    yield from _summary(last, status, seconds)
    yield ""
    yield from _table(
        "MESSAGE CALLS/S ERRORS/S TIMEOUTS/S P50 P99 CACHE-HITS",
        _pairs(last["handlers"], status["handlers"], "name"),
        lambda old, new: _handler(old, new, seconds),
    )
    for name, count in status.get("without_handler", {}).items():
        yield f"no handler for {escaped(name)}: {count} messages to the workers that serve"
    if status["workers"]:
        yield ""
        yield from _table(
            "WORKER STATE UP CONNS FRAMES/S IN-HAND QUEUED RUNNING CPU MEMORY",
            _pairs(last["workers"], status["workers"], "pid"),
            lambda old, new: _worker(old, new, seconds, status["time"]),
        )


def _summary(last: Fields, status: Fields, seconds: float) -> Iterator[str]:
    now, before = status["counts"], last["counts"]
    state = "ready" if status["ready"] else "not ready" if status["alive"] else "stuck"
    yield (
        f"{escaped(status['agent'])} is {'draining' if status['draining'] else state}, "
        f"up for {_span(status['time'] - status['started'])}, spop {status['version']}, "
        f"{time.strftime('%H:%M:%S', time.localtime(status['time']))}"
    )
    rates = {
        name: _rate(before[count], now[count], seconds)
        for name, count in {
            "frames/s": "frames_received", "answers/s": "frames_sent",
            "unknown/s": "unknown_messages", "dropped/s": "acks_dropped",
        }.items()
    }  # fmt: skip
    yield "  ".join(f"{name} {value}" for name, value in rates.items())
    yield (
        f"now: connections {now['connections']}  in hand {now['frames_in_hand']}  "
        f"queued {now['queued']} (longest {_time(now['oldest_job'])})  running {now['running']}"
    )
    yield f"since the start: restarts {status['restarts']}  frames lost {status['frames_lost']}"


def _handler(old: Fields, new: Fields, seconds: float) -> list[str]:
    earlier = dict(old.get("buckets", ()))
    calls = {bound: count - earlier.get(bound, 0) for bound, count in new["buckets"]}
    hits, misses = (new.get(each, 0) - old.get(each, 0) for each in ("hits", "misses"))
    return [
        escaped(new["name"]),
        *(_rate(old.get(each, 0), new[each], seconds) for each in ("calls", "errors", "timeouts")),
        *(_time(quantile(calls, q)) for q in (0.5, 0.99)),
        f"{hits / (hits + misses):.1%}" if hits + misses > 0 else "-",
    ]


def _worker(old: Fields, new: Fields, seconds: float, now: float) -> list[str]:
    cpu = new["cpu_seconds"] - old.get("cpu_seconds", new["cpu_seconds"])
    return [
        str(new["pid"]),
        new["state"],
        _span(now - new["started"]),
        str(new["connections"]),
        _rate(old.get("frames_received", 0), new["frames_received"], seconds),
        *(str(new[each]) for each in ("frames_in_hand", "queued", "running")),
        f"{cpu / seconds:.0%}",
        f"{new['memory_bytes'] / 2**20:.0f}M",
    ]


def _pairs(last: list[Fields], now: list[Fields], key: str) -> list[tuple[Fields, Fields]]:
    """Each of `now` with what it was, or nothing if it is new."""
    before = {each[key]: each for each in last}
    return [(before.get(each[key], {}), each) for each in now]


def _table(
    titles: str,
    pairs: list[tuple[Fields, Fields]],
    row: Callable[[Fields, Fields], list[str]],
) -> Iterator[str]:
    """Lines of columns, the first to the left and the others to the right."""
    rows = [titles.split(), *(row(old, new) for old, new in pairs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells])


def _rate(before: float, now: float, seconds: float) -> str:
    rate = max(0.0, now - before) / seconds
    return f"{rate:.0f}" if rate >= 100 or not rate else f"{rate:.1f}"


def _time(seconds: float | None) -> str:
    if not seconds:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
