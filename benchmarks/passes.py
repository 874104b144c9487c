"""The longest time for which one peer holds a loop, in processor time, which other processes
don't change.

    python benchmarks/passes.py

The worst that peers can send comes in pieces of 256 KiB, as a loop receives it. A pass is all
that happens before other connections have their turn.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from typing import Any

from neighbours import AGENT, MIB, WORST

from spop.codec import IMPLEMENTATION
from spop.connection import AgentConnection, EngineConnection
from spop.options import MAX_PASS
from spop.server.loop import RECV_SIZE


def passes(data: bytes) -> list[float]:
    """Seconds of each pass over the bytes of a peer."""
    namespace: dict[str, Any] = {}
    exec(AGENT, namespace)
    dispatcher = namespace["agent"].dispatcher(max_pass=MAX_PASS)
    protocol = AgentConnection(dispatcher=dispatcher, max_frame_size=MIB)
    protocol.receive_data(EngineConnection(max_frame_size=MIB).data_to_send())
    taken: list[float] = []

    def measure(call: Callable[..., object], *args: object) -> None:
        began = time.thread_time()
        dispatcher.new_pass()
        call(*args)
        protocol.data_to_send()
        taken.append(time.thread_time() - began)

    for start in range(0, len(data), RECV_SIZE):
        measure(protocol.receive_data, data[start : start + RECV_SIZE])
        while protocol.stalled:
            measure(protocol.resume)
    return taken


def table() -> str:
    logging.basicConfig(stream=io.StringIO())  # Lines are made, and cost what they cost.
    lines = ["| a peer sends | passes | longest |", "|---|---|---|"]
    for name, data in WORST.items():
        taken = passes(data)
        lines.append(f"| {name} | {len(taken)} | {max(taken) * 1e3:.1f} ms |")
    return "\n".join(lines)


def main() -> None:
    print(f"codec: {IMPLEMENTATION}\n\n{table()}")


if __name__ == "__main__":
    main()
