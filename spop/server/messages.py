"""What a worker may send to its supervisor, which believes nothing else."""

from __future__ import annotations

from types import NoneType
from typing import Any

from spop.counters import row_size
from spop.metrics import Description
from spop.server.board import ROW_BYTES

_FIELDS: dict[str, dict[str, type]] = {
    "ready": {"agent": str, "handlers": list, "metrics": list, "files": list},
    "failed": {"error": str, "traceback": str, "exit_code": int},
    "connection": {"id": int, "state": dict},
    "moved": {"id": int, "giver": int, "taken": bool},
    "answer": {"id": int, "connections": list, "without_handler": dict},
    "awake": {},
    "uneven": {},
}
_ITEMS = {"handlers": str, "files": str, "connections": dict, "without_handler": int}

_OF_CONNECTIONS = {"host": (str, NoneType), "port": (int, NoneType), "began": (float,)}


def check_message(message: Any, fds: list[int]) -> None:
    """Check a message of a worker.

    Raises:
        ValueError: it is none. The text says why.
    """
    type_ = message.get("type") if isinstance(message, dict) else None
    fields = _FIELDS.get(type_) if isinstance(type_, str) else None
    if fields is None:
        raise ValueError(f"there is no message of type {type_!r}")
    for name, wanted in fields.items():
        value = message.get(name)
        items = value.values() if isinstance(value, dict) else value
        checked = items if name in _ITEMS and type(value) is wanted else ()
        if type(value) is not wanted or any(type(each) is not _ITEMS[name] for each in checked):
            raise ValueError(f"{name} of a message {type_!r} is malformed")
    if fds and type_ != "connection":
        raise ValueError(f"a message {type_!r} has no descriptors")
    for name, types in _OF_CONNECTIONS.items() if type_ == "connection" else ():
        if not isinstance(message["state"].get(name), types):
            raise ValueError(f"the {name} of a connection is malformed")
    for description in message.get("metrics", ()):
        Description.from_json(description)
    if type_ == "ready" and 8 * row_size(len(message["handlers"])) > ROW_BYTES:
        raise ValueError("there are too many handlers")
