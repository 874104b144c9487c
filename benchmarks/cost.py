"""Instructions for each frame, which no noise of the machine changes.

    python benchmarks/cost.py

Fixed work runs under valgrind twice, once with twice as much of it; the difference is what the
work itself takes. Instructions differ with the interpreter's build, so they are given as a ratio
to a yardstick in the same interpreter: calling the benchmark's handler itself, with an address
that is there already, and throwing away what it returns.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "agents"), str(HERE.parent)]

FRAMES = 2000
BATCH = 20


def yardstick(count: int) -> None:
    from spop_agent import check_client_ip

    address = IPv4Address("192.0.2.10")
    for _ in range(count):
        check_client_ip(address)


def answering(message: str, arguments: dict[str, Any]) -> Callable[[int], None]:
    """Work that answers NOTIFY frames, in batches as they arrive with 20 in flight."""

    def answer(count: int) -> None:
        from spop_agent import agent

        from spop import Message, codec

        dispatcher = agent.dispatcher()
        batch = b"".join(
            codec.encode_notify(number, 1, [Message(message, arguments)]) for number in range(BATCH)
        )
        intake = open_intake()
        for _ in range(count // BATCH):
            dispatcher.receive(intake, batch)

    return answer


def ping_pong(count: int) -> None:
    """A frame at a time, over a socket, which takes the kernel's time and none of it counts."""
    from spop_agent import agent

    from spop import Message, codec
    from spop.port import FastPath, FastPaths

    shared = FastPaths(agent.dispatcher(), bytearray(65536), unexpected, unexpected, unexpected)
    notify = codec.encode_notify(1, 1, [Message("check-client-ip", ip=IPv4Address("192.0.2.10"))])
    engine, ours = socket.socketpair()
    with engine, ours:
        fast_path = FastPath(shared, open_intake(), ours.fileno(), None)
        fast_path.enabled = True
        for _ in range(count):
            engine.send(notify)
            fast_path(1)
            engine.recv(1024)


def open_intake() -> Any:
    """A connection's intake as it is after HELLO."""
    from spop import Peer
    from spop.dispatch import Intake

    intake = Intake(16380, 2**20)
    intake.peer = Peer("", "2.0", 16380, frozenset())
    intake.takes_fragments = True
    intake.is_open = True
    return intake


def unexpected(*args: object) -> None:
    raise AssertionError(args)


WORK: dict[str, Callable[[int], None]] = {
    "yardstick": yardstick,
    "ping-pong": ping_pong,
    "1 argument": answering("check-client-ip", {"ip": IPv4Address("192.0.2.10")}),
    "6 arguments + 600 bytes": answering(
        "check-request",
        {
            "ip": IPv4Address("192.0.2.10"),
            "port": 51234,
            "method": "GET",
            "path": "/index.html",
            "ssl": True,
            "headers": "v" * 600,
        },
    ),
}


def instructions(work: str) -> float:
    """For each repetition of a piece of work."""
    return (_counted(work, 2 * FRAMES) - _counted(work, FRAMES)) / FRAMES


def prepare() -> None:
    """Have Python compile what is imported, which it does the first time."""
    for work in WORK:
        _counted(work, BATCH)


def _counted(work: str, count: int) -> int:
    command = [
        "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
        sys.executable, "-S", "-E", __file__, work, str(count), os.pathsep.join(sys.path),
    ]  # fmt: skip
    shown = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONHASHSEED": "0",
            "SPOP_PURE": os.environ.get("SPOP_PURE", ""),
        },
    ).stderr
    found = re.search(r"Collected : (\d+)", shown)
    assert found, shown
    return int(found[1])


def is_available() -> bool:
    """There is a valgrind."""
    return shutil.which("valgrind") is not None


def main() -> None:
    if len(sys.argv) > 1:
        sys.path[:] = sys.argv[3].split(os.pathsep)
        gc.disable()  # A collection more in one of the two runs would count as a frame's.
        WORK[sys.argv[1]](int(sys.argv[2]))
        return
    if not is_available():
        sys.exit("valgrind is not installed")
    print(table())


def table() -> str:
    """The ratios to the yardstick."""
    prepare()
    unit = instructions("yardstick")
    lines = ["| frame | instructions | ratio to the handler's call |", "|---|---|---|"]
    for work in WORK:
        if work != "yardstick":
            count = instructions(work)
            lines.append(f"| {work} | {count:.0f} | {count / unit:.2f} × |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
