"""The end of a server's loops: it is waited for as long as the drain timeout allows.

A handler may never end. It is left behind then, in a thread that ends with its process, and the
log names it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from spop.frames import Peer
from spop.logs import SafeLogger, fields
from spop.server.executor import Job
from spop.server.leaving import CANCEL_GRACE
from spop.server.loop import Loop
from spop.server.signals import Hurry
from spop.server.stuck import place_of

logger: SafeLogger = SafeLogger("spop.server")

SLACK = 1.0
"""Seconds beyond its drain timeout that a loop has to close its connections."""
STEP = 0.05
MAX_NAMED = 20
"""Number of messages that the log names."""

Hurries = Callable[[float], bool]
"""Waits up to so many seconds. Returns whether the loops get no more time."""


def wait_for_end(loops: Sequence[Loop], timeout: float, hurries: Hurries | None) -> None:
    """Wait for the threads of loops that drain with this timeout.

    Args:
        hurries: by default Ctrl-C says so, if it comes `AGAIN` after the begin.

    Raises:
        KeyboardInterrupt: Ctrl-C came meanwhile.
    """
    interrupt: KeyboardInterrupt | None = None
    hurry, began = Hurry(), time.monotonic()
    hurry.signalled()
    while True:
        try:
            left = [loop for loop in loops if loop.thread.is_alive()]
            # A loop that has ended cancels the tasks of handlers.
            grace = SLACK if any(loop.alive for loop in left) else SLACK + CANCEL_GRACE
            if not left or time.monotonic() - began > timeout + grace:
                break
            if hurries is None:
                left[0].thread.join(STEP)
            elif hurries(STEP):
                break
        except KeyboardInterrupt as error:
            interrupt = error
            if hurry.signalled():
                break
    if interrupt is not None:
        raise interrupt


def log_left_behind(loops: Iterable[Loop], jobs: Iterable[Job]) -> None:
    """Log by name what has not ended."""
    left = list(_left_behind(loops, jobs))
    for each in left[:MAX_NAMED]:
        what = fields("left behind", what=each)
        logger.warning("%s did not end and is left behind", each, extra=what)
    if len(left) > MAX_NAMED:
        more = len(left) - MAX_NAMED
        what = fields("more left behind", count=more)
        logger.warning("%d more did not end and are left behind", more, extra=what)


def _left_behind(loops: Iterable[Loop], jobs: Iterable[Job]) -> Iterator[str]:
    for loop in loops:
        if loop.thread.is_alive():
            names = ", ".join(sorted(_messages(loop))[:MAX_NAMED])
            yield f"{loop.thread.name}, in {place_of(loop.thread)}, with {names or 'no message'},"
    for job in jobs:
        name, _, _, peer = job.call.running or (job.call.route.name, 0, 0, None)
        yield f"the handler of {_message(name, peer)}"


def _messages(loop: Loop) -> Iterator[str]:
    """The messages that a loop which does not come round may be busy with."""
    running = loop.running_message()
    if running is not None:
        yield _message(running.name, running.connection)
        return
    with contextlib.suppress(RuntimeError):  # It does come round just now.
        for connection in loop.connections:
            kept = [call for call in connection.protocol.intake.calls if call.running is None]
            present = [exchange.present() for exchange in connection.exchanges]
            for call in filter(None, [*kept, *present]):
                yield _message(call.route.name, connection.protocol.peer)


def _message(name: str, peer: Peer | None) -> str:
    return f"message {name!r} of {peer.address if peer else 'a lost connection'}"
