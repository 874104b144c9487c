"""One connection to an agent, for commands that show what goes over it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from time import monotonic
from typing import Any, Self

from spop.address import Address
from spop.client.dial import Dialogue, Endpoint, Trace, connect
from spop.connection import Disconnect, EngineConnection
from spop.errors import DisconnectedError, SpopTimeoutError
from spop.frames import Ack, Message, Peer

GOODBYE = 0.1
"""Seconds that an agent has to answer a DISCONNECT."""

IDS = 1, 1
"""Stream-id and frame-id of the NOTIFY."""


class Wire:
    """Inside of a ``with`` statement: connected, and HELLO exchanged.

    Args:
        timeout: seconds to connect, to exchange HELLO, to be answered.
        options: those of `EngineConnection`.

    Attributes:
        end: how the agent ended the connection, or what it sent that is no frame; None while it
            has done neither.

    Raises:
        OSError: there is no connection to be had.
        SpopTimeoutError: no HELLO came in time.
        DisconnectedError: the agent refused.
    """

    peer: Peer
    end: Disconnect | None = None

    def __init__(
        self, address: Address, timeout: float, trace: Trace | None = None, **options: Any
    ) -> None:
        self._address = address
        self._timeout = timeout
        self._trace = trace
        self._protocol = EngineConnection(**options)
        self._dialogue: Dialogue

    def __enter__(self) -> Self:
        endpoint, timeout = Endpoint(self._address), self._timeout
        self._dialogue = connect(endpoint, self._protocol, timeout, timeout, self._trace)
        assert self._protocol.peer is not None
        self.peer = self._protocol.peer
        return self

    def notify(self, messages: Sequence[Message]) -> Ack:
        """Send a NOTIFY and wait for its ACK.

        Raises:
            OSError: the connection broke.
            FrameTooBigError: it is too long for a frame and the agent takes no fragments.
            SpopTimeoutError: no ACK came in time.
            DisconnectedError: the agent ended the connection.
        """
        self._protocol.notify(*IDS, messages)
        deadline = monotonic() + self._timeout
        try:
            # What the agent said before it closed is still to be heard.
            with contextlib.suppress(ConnectionError):
                self._dialogue.send(deadline)
            while (ack := self._receive(deadline)) is None:
                if self.end is not None:
                    raise DisconnectedError(self.end.message, self.end.code)
        except TimeoutError:
            raise SpopTimeoutError(f"no ACK in {self._timeout:g} s") from None
        return ack

    def _receive(self, deadline: float) -> Ack | None:
        """The ACK, if it is among what one recv brings."""
        found = None
        for event in self._dialogue.receive(deadline):
            if isinstance(event, Disconnect):
                self.end = event
            elif isinstance(event, Ack) and (event.stream_id, event.frame_id) == IDS:
                found = event
        return found

    def __exit__(self, *exc_info: object) -> None:
        with self._dialogue.sock:
            end = self._dialogue.say_goodbye(GOODBYE)
            self.end = self.end or end
