"""Instructions for each frame, which no noise of the machine changes.

    python benchmarks/cost.py [--record]

All work runs in one process under valgrind, each kind twice: the first time, caches fill. Between
them the process calls `getppid`, where valgrind begins to count anew. Instructions differ with the
interpreter's build, so they are given as a ratio to a yardstick in the same interpreter: calling the
benchmark's handler itself, with an address that is there already, and throwing away what it returns.

``--record`` adds the figures to `HISTORY`, as the report does, and `plot` shows how they went.
"""

from __future__ import annotations

import csv
import gc
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "agents"), str(HERE.parent)]

BATCH = 20
ADDRESS = IPv4Address("192.0.2.10")
YARDSTICK = "handler's call"
HISTORY = HERE / "results" / "history.csv"

Work = Callable[[int], None]


def handler_alone(count: int) -> None:
    from spop_agent import check_client_ip

    for _ in range(count):
        check_client_ip(ADDRESS)


def answering(message: str, arguments: dict[str, Any]) -> Work:
    """NOTIFY frames in batches, as they arrive with 20 in flight."""
    from spop_agent import agent

    dispatcher, batch, intake = agent.dispatcher(), batch_of(message, arguments), open_intake()

    def work(count: int) -> None:
        for _ in range(count // BATCH):
            dispatcher.receive(intake, batch)

    return work


def batch_of(message: str, arguments: dict[str, Any]) -> bytes:
    from spop import Message, codec

    messages = [Message(message, arguments)]
    return b"".join(codec.encode_notify(number, 1, messages) for number in range(BATCH))


def ping_pong(stack: ExitStack) -> Work:
    """A frame at a time, over a socket, which takes the kernel's time and none of it counts."""
    from spop_agent import agent

    from spop import Message, codec
    from spop.port import FastPath, FastPaths

    shared = FastPaths(agent.dispatcher(), bytearray(65536), unexpected, unexpected, unexpected)
    notify = codec.encode_notify(1, 1, [Message("check-client-ip", ip=ADDRESS)])
    engine, ours = map(stack.enter_context, socket.socketpair())
    fast_path = FastPath(shared, open_intake(), ours.fileno(), None)
    fast_path.enabled = True

    def work(count: int) -> None:
        for _ in range(count):
            engine.send(notify)
            fast_path(1)
            engine.recv(1024)

    return work


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


def hello() -> Work:
    """A HELLO, from its bytes to those of the answer."""
    from spop.connection import AgentConnection, EngineConnection
    from spop.dispatch import Dispatcher

    dispatcher = Dispatcher()
    theirs = EngineConnection(engine_id="cost").data_to_send()

    def work(count: int) -> None:
        for _ in range(count):
            connection = AgentConnection(dispatcher=dispatcher)
            connection.receive_data(theirs)
            connection.data_to_send()

    return work


def served(stack: ExitStack) -> dict[str, Work]:
    """Over a connection to a server with an event loop and a pool: 20 frames, then their ACKs."""
    from kinds_agent import agent

    from spop import codec
    from spop.connection import EngineConnection
    from spop.constants import NO_LIMIT
    from spop.server import loop

    loop.MAX_PASS = NO_LIMIT  # Under valgrind a few frames take as long as a pass may.
    server = stack.enter_context(agent.serve_in_background())
    address = server.address.host, server.address.port
    protocol = EngineConnection(engine_id="cost")
    sock = stack.enter_context(socket.create_connection(address))
    sock.sendall(protocol.data_to_send())
    protocol.receive_data(sock.recv(4096))
    answers = BATCH * len(codec.encode_ack(1, 1, {"sess.ip_score": 10}))

    def asking(message: str) -> Work:
        batch = batch_of(message, {"ip": ADDRESS})

        def work(count: int) -> None:
            for _ in range(count // BATCH):
                sock.sendall(batch)
                sock.recv(answers, socket.MSG_WAITALL)

        return work

    def connections(count: int) -> None:
        theirs = EngineConnection(engine_id="cost").data_to_send()
        for _ in range(count):
            with socket.create_connection(address) as sock:
                sock.sendall(theirs)
                sock.recv(4096)

    return {
        "cached": asking("cached"),
        "async, at once": asking("async-at-once"),
        "async": asking("async"),
        "blocking": asking("blocking"),
        "connection": connections,
        "engine's event": engine_events(stack, "{}:{}".format(*address)),
    }


def engine_events(stack: ExitStack, address: str) -> Work:
    """Streams with an event each; both ends count."""
    from engine import EVENT, REQUEST, SOURCE, SPOE

    from spop.engine import Engine

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    (folder / "spoe.cfg").write_text(SPOE.replace("check-client-ip", "any"))
    engine = stack.enter_context(
        Engine.from_file(folder / "spoe.cfg", "benchmark", backends={"agents": address})
    )

    def work(count: int) -> None:
        for _ in range(count):
            with engine.stream(source=SOURCE, request=REQUEST) as stream:
                stream.event(EVENT)

    return work


SIX = {
    "ip": ADDRESS,
    "port": 51234,
    "method": "GET",
    "path": "/index.html",
    "ssl": True,
    "headers": "v" * 600,
}
COUNTS = {
    YARDSTICK: 2000, "ping-pong": 2000, "1 argument": 2000, "6 arguments + 600 bytes": 2000,
    "cached": 2000, "async, at once": 1000, "async": 500, "blocking": 500, "HELLO": 200,
    "connection": 50, "engine's event": 50,
}  # fmt: skip
"""All kinds of work, and how often each is done."""


def do_all() -> None:
    """The work that is counted. Its marks divide valgrind's counts."""
    gc.disable()  # A collection more in one of the kinds would count as a frame's.
    with ExitStack() as stack:
        work = {
            YARDSTICK: handler_alone,
            "ping-pong": ping_pong(stack),
            "1 argument": answering("check-client-ip", {"ip": ADDRESS}),
            "6 arguments + 600 bytes": answering("check-request", SIX),
            "HELLO": hello(),
            **served(stack),
        }
        for name, count in COUNTS.items():
            work[name](count // 2)
            os.getppid()
            work[name](count)
            os.getppid()


def instructions() -> dict[str, float]:
    """For each repetition of each kind of work."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--tool=callgrind", "--dump-before=getppid",
            f"--callgrind-out-file={folder}/dump",
            sys.executable, "-S", "-E", __file__, "--work", os.pathsep.join(sys.path),
        ]  # fmt: skip
        environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"}
        environment["SPOP_PURE"] = os.environ.get("SPOP_PURE", "")
        subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, timeout=300
        )
        # The odd dumps have imports and the first round of a kind.
        dumps = [Path(folder, f"dump.{2 * n + 2}").read_text() for n in range(len(COUNTS))]
    totals = [re.search(r"^(?:totals|summary): (\d+)", dump, re.MULTILINE) for dump in dumps]
    return {
        name: int(total[1]) / count
        for (name, count), total in zip(COUNTS.items(), totals, strict=True)
        if total
    }


def is_available() -> bool:
    """There is a valgrind."""
    return shutil.which("valgrind") is not None


def table(measured: dict[str, float]) -> str:
    """The ratios to the yardstick."""
    lines = ["| frame | instructions | ratio to the handler's call |", "|---|---|---|"]
    lines += [
        f"| {name} | {count:,.0f} | {count / measured[YARDSTICK]:.2f} × |"
        for name, count in measured.items()
    ]
    return "\n".join(lines)


# --- how they went ---


def record(measured: dict[str, float]) -> None:
    """Add a line for each kind to `HISTORY`, in place of those of this commit and Python."""
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%cs,%h"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    key = f"{commit},{platform.python_version()},"
    lines = [line for line in HISTORY.read_text().splitlines() if not line.startswith(key)]
    lines += [f'{key}"{name}",{count:.0f}' for name, count in measured.items()]
    HISTORY.write_text("\n".join(lines) + "\n")


def history() -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Kind of work; commits and their ratios to the yardstick, with the interpreter's version."""
    with HISTORY.open() as file:
        rows = list(csv.DictReader(file))
    units = {
        (row["commit"], row["python"]): float(row["instructions"])
        for row in rows
        if row["work"] == YARDSTICK
    }
    for name in COUNTS:
        points = [
            (row["commit"], float(row["instructions"]) / units[row["commit"], row["python"]])
            for row in rows
            if row["work"] == name and (row["commit"], row["python"]) in units
        ]
        if name != YARDSTICK and points:
            yield name, points


def newest() -> dict[str, float]:
    """The ratios of the commit that was recorded last with this very Python; empty if none was."""
    with HISTORY.open() as file:
        rows = [row for row in csv.DictReader(file) if row["python"] == platform.python_version()]
    last = {
        row["work"]: float(row["instructions"])
        for row in rows
        if row["commit"] == rows[-1]["commit"]
    }
    return {name: count / last[YARDSTICK] for name, count in last.items()}


def plot(path: Path) -> None:
    """Each kind's ratio, from commit to commit."""
    from plots import save, subplots

    figure, axes = subplots()
    for name, points in history():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_yscale("log")
    axes.set_ylabel("times the handler's call")
    axes.legend(fontsize=8)
    save(figure, path)


def main() -> None:
    if "--work" in sys.argv:
        sys.path[:] = sys.argv[2].split(os.pathsep)
        do_all()
        return
    if not is_available():
        sys.exit("valgrind is not installed")
    measured = instructions()
    print(table(measured))
    if "--record" in sys.argv:
        record(measured)


if __name__ == "__main__":
    main()
