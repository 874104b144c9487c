"""All decoders of the codec, and the encoders for what they found."""

from __future__ import annotations

from typing import Any

from pair import Twins, attempt, exact
from structure import OPTIONS, Options, mutate

__all__ = ["mutate", "outcome"]

DECODERS = ("varint", "string", "value", "kv_list", "messages", "actions")


def outcome(twins: Twins, data: bytes) -> Any:
    options, codec = Options(data), twins.codec
    limits = {
        "max_frame_size": options.take([1 << 20, 256, 16380, 40]),
        "little_endian": options.take([False, True]),
        "whole": options.take([False, True]),
        "lenient": options.take([False, True]),
    }
    stream = exact(data[OPTIONS:])
    start = options.take([0, 0, 0, 1, 9]) % (len(stream) + 1)
    found = attempt(codec.decode_frames, stream, start, **limits)
    outcomes = [found, options.take([_of_payloads, _of_stream])(codec, stream, start)]
    if not isinstance(found, tuple):
        return outcomes
    outcomes += [_encoded(codec, frame, limits["little_endian"]) for frame in found[0]]
    return outcomes


def _encoded(codec: Any, frame: Any, little_endian: bool) -> Any:
    """A frame as we send it, or why we don't: our own variables have well-formed names."""
    try:
        return codec.encode_frame(frame, little_endian=little_endian)
    except ValueError as error:
        return str(error)


def _of_stream(codec: Any, stream: Any, start: int) -> list[Any]:
    """A payload alone: of the first frame, mostly."""
    view = memoryview(stream)[start:]
    return [attempt(getattr(codec, f"decode_{name}"), view) for name in DECODERS]


def _of_payloads(codec: Any, stream: Any, start: int) -> list[Any]:
    return _of_stream(codec, stream, min(len(stream), start + 11))
