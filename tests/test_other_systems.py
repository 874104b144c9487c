"""What there is where a system has no epoll, no fork and no Unix sockets, as Windows. It is simulated."""

from __future__ import annotations

import os
import subprocess
import sys

from spop import Agent

WITHOUT = """
import importlib.abc, os, select, signal, socket, sys

for owner, names in (
    (select, "epoll poll"),
    (os, "fork register_at_fork eventfd memfd_create getuid"),
    (socket, "AF_UNIX SO_REUSEPORT MSG_DONTWAIT"),
    (signal, "SIGUSR1 SIGHUP SIGCHLD"),
):
    for name in names.split():
        if hasattr(owner, name):
            delattr(owner, name)


def socketpair():  # Python's own for such a system.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


socket.socketpair = socketpair
for name in ("grp", "pwd", "fcntl", "resource", "termios"):
    sys.modules[name] = None
"""

CLIENT = """
import spop.engine, spop.cli, spop.load, spop.testing, spop.web
from spop.client import Client

with Client(sys.argv[1]) as client:
    print([(each.variable, each.value) for each in client.notify("double", n=21).actions])
"""


def test_a_client_and_the_tools_need_no_epoll_no_fork_and_no_unix_sockets() -> None:
    agent = Agent()

    @agent.message("double")
    def double(n: int) -> dict[str, int]:
        return {"sess.n": 2 * n}

    with agent.serve_in_background() as server:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT + CLIENT, str(server.address)],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"SPOP_PURE": "1"},  # The wheel for every system.
        )
    assert done.stdout == "[('sess.n', 42)]\n", done.stderr
