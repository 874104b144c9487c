"""Frames as a tree of text, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from spop.cli.notation import as_json, described
from spop.constants import FrameFlag, FrameType
from spop.frames import Ack, Action, Control, Frame, Message, Notify
from spop.values import UNSET

_COLOURS: dict[int, str] = {
    FrameType.HAPROXY_HELLO: "cyan",
    FrameType.AGENT_HELLO: "cyan",
    FrameType.HAPROXY_DISCONNECT: "magenta",
    FrameType.AGENT_DISCONNECT: "magenta",
    FrameType.NOTIFY: "yellow",
    FrameType.ACK: "green",
}


def type_label(number: int) -> str:
    """A frame's type as the specification writes it."""
    try:
        return FrameType(number).name.replace("_", "-")
    except ValueError:
        return f"type {number}"


def lines(frame: Frame) -> Iterator[str]:
    """A frame: a line for its header, then indented ones for what is in it."""
    header = click.style(type_label(frame.type), fg=_COLOURS.get(frame.type), bold=True)
    if isinstance(frame, Control):
        yield header
        for key, value in frame.items.items():
            yield f"  {key} = {described(value)}"
        return
    header += f" stream {frame.stream_id} frame {frame.frame_id}"
    if isinstance(frame, Notify):
        yield header
        for message in frame.messages:
            yield from _message(message)
    elif isinstance(frame, Ack):
        yield header + (" aborted" if frame.aborted else "")
        for action in frame.actions:
            yield f"  {action_line(action)}"
        if frame.ignored:
            yield f"  {ignored_line(frame)}"
    else:
        yield f"{header} {_flags(frame.flags)} {len(frame.payload)} bytes"


def _message(message: Message) -> Iterator[str]:
    yield f"  {message.name}"
    for name, value in zip(message.names, message.values, strict=True):
        yield f"    {name or '(no name)'} = {described(value)}"


def action_line(action: Action) -> str:
    """What an action does."""
    if action.value is UNSET:
        return f"unset {action.variable}"
    return f"set {action.variable} = {described(action.value)}"


def ignored_line(ack: Ack) -> str:
    """What is said of an ACK with malformed actions."""
    return f"malformed, passed over as HAProxy does: {ack.ignored}"


def _flags(flags: int) -> str:
    return "|".join(flag.name or "" for flag in FrameFlag if flags & flag) or "no flags"


def answer(ack: Ack) -> dict[str, Any]:
    """What an ACK says, as JSON can have it."""
    actions = [{"variable": action.variable, **as_json(action.value)} for action in ack.actions]
    ignored = {"ignored": ack.ignored} if ack.ignored else {}
    return {"aborted": ack.aborted, "actions": actions, **ignored}


def as_object(frame: Frame) -> dict[str, Any]:
    """A frame as JSON can have it."""
    shown: dict[str, Any] = {"type": type_label(frame.type)}
    if isinstance(frame, Control):
        shown["items"] = {key: as_json(value) for key, value in frame.items.items()}
        return shown
    shown |= {"stream_id": frame.stream_id, "frame_id": frame.frame_id}
    if isinstance(frame, Notify):
        shown["messages"] = [
            {
                "name": message.name,
                "args": [
                    {"name": name, **as_json(value)}
                    for name, value in zip(message.names, message.values, strict=True)
                ],
            }
            for message in frame.messages
        ]
    elif isinstance(frame, Ack):
        shown |= answer(frame)
    else:
        shown |= {"flags": frame.flags, "payload": frame.payload.hex()}
    return shown
