"""A connection that logs each of its frames, for the option `log_frames`."""

from __future__ import annotations

from spop import codec
from spop.connection import AgentConnection, AgentEvent
from spop.errors import ProtocolError
from spop.frames import Control, Frame, engine_digest
from spop.logs import SafeLogger, fields
from spop.values import Buffer

logger: SafeLogger = SafeLogger("spop.frames")


class LoggedConnection(AgentConnection):
    """`AgentConnection` with a log line for each frame of either direction."""

    __slots__ = ("_partial",)

    def receive_data(self, data: Buffer, end: int | None = None) -> list[AgentEvent]:
        received = bytes(data) if end is None else bytes(memoryview(data)[:end])
        # Logged afterwards, as HELLO shows how the peer writes flags.
        events = super().receive_data(data, end)
        partial: bytes = getattr(self, "_partial", b"") + received
        self._partial = partial[self._log("from", partial) :]
        return events

    def data_to_send(self) -> bytes | bytearray:
        data = super().data_to_send()
        if data:
            self._log("to", data)
        return data

    def _log(self, direction: str, data: Buffer) -> int:
        """Log the frames at the front of `data`; returns how many bytes they were."""
        try:
            frames, consumed = codec.decode_frames(
                data,
                max_frame_size=max(self.max_frame_size, len(data)),
                little_endian=self.intake.little_endian,
                whole=self.intake.whole,
            )
        except ProtocolError as error:
            what = fields("damaged frame", direction=direction, peer=self.address, error=error)
            logger.info("%s %s: damaged frame: %s", direction, self.address, error, extra=what)
            return len(data)
        for frame in frames:
            shown = _shown(frame)
            what = fields("frame", direction=direction, peer=self.address, frame=repr(shown))
            logger.info("%s %s: %r", direction, self.address, shown, extra=what)
        return consumed


def _shown(frame: Frame) -> Frame:
    """The frame without the engine-id, which is not for logs."""
    engine_id = frame.items.get("engine-id") if isinstance(frame, Control) else None
    if not isinstance(frame, Control) or engine_id is None:
        return frame
    return Control(frame.type, {**frame.items, "engine-id": engine_digest(str(engine_id))})
