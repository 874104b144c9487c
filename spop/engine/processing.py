"""A processing: the messages of one event or group, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spop.client.pool import Exchange
from spop.frames import Action, Message


class Processing(Exchange):
    """The messages of one event or group of a stream, and what became of them.

    Attributes:
        label: ``EVENT:on-client-session`` or ``GROUP:name``.
        messages: the messages that were sent.
        status: an `EngineStatus`, or 256 plus a `Status` of the protocol; 0 is success.
        started_at, queued_at, ended_at: the time of a step, as `sent_at` and `acked_at` of the
            exchange are: as `time.monotonic` gives it, 0 for a step that did not happen.
    """

    __slots__ = ("ended_at", "label", "queued_at", "started_at", "status")

    messages: Sequence[Message]
    label: str
    started_at: float
    queued_at: float
    ended_at: float
    status: int

    if TYPE_CHECKING:

        def __init__(self) -> None: ...

    else:  # `Filter.begin` fills it in, as `EngineCore.begin` does a stream.
        __init__ = object.__init__

    @property
    def actions(self) -> Sequence[Action]:
        """The actions of the agent's ACK, permitted or not."""
        return () if self.ack is None else self.ack.actions

    @property
    def times(self) -> tuple[int, int, int, int, int]:
        """Milliseconds for each step, as in HAProxy's log (section 4).

        They are: to evaluate the messages, until they are sent, until the ACK comes, to act on it,
        and in all. A step that did not happen is -1.
        """
        return (
            _milliseconds(self.started_at, self.queued_at),
            _milliseconds(self.queued_at, self.sent_at),
            _milliseconds(self.sent_at, self.acked_at),
            -1 if self.status else _milliseconds(self.acked_at, self.ended_at),
            _milliseconds(self.started_at, self.ended_at),
        )

    def __repr__(self) -> str:
        return f"<Processing {self.label} status={self.status:d}>"


def _milliseconds(begin: float, end: float) -> int:
    return int((end - begin) * 1000) if begin and end else -1
