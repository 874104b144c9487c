"""What `make demo` shows: an agent, HAProxy asking it, and the variable that it set.

Runs ``spop serve examples/ip_reputation.py:agent``, puts HAProxy in front of it where one is
installed (2.2 or later), and sends requests from some addresses. Without HAProxy the
package's own engine runs its SPOE file.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from spop.engine import Engine
from spop.testing.haproxy import Process, find_haproxy, version

HERE = Path(__file__).parent
CLIENTS = ("127.0.0.1", "127.0.0.42", "127.0.0.66")
SPOE_FILE = HERE / "spoe.cfg"
HAPROXY_FILE = HERE / "haproxy.cfg"


def main() -> None:
    port = free_port()
    address, binary = f"127.0.0.1:{port}", find_haproxy()
    with tempfile.TemporaryDirectory() as folder, agent(port):
        if binary is None or version(binary) < (2, 2):
            print("HAProxy 2.2 or later is not installed: spop.engine runs its SPOE file")
            ask_with_engine(address)
        else:
            ask_haproxy(binary, Path(folder), address)


@contextlib.contextmanager
def agent(port: int) -> Iterator[None]:
    path = os.path.relpath(HERE / "ip_reputation.py")
    command = [sys.executable, "-m", "spop", "serve", f"{path}:agent"]
    command += ["--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
    print("$ spop", *command[3:])
    with running(command, port):
        yield


def ask_haproxy(binary: str, folder: Path, agent: str) -> None:
    config = HAPROXY_FILE.read_text().replace("{", "{{").replace("}", "}}")
    config = config[config.index("frontend") :].replace("127.0.0.1:9000", agent)
    config = config.replace("bind 127.0.0.1:8080", "bind fd@{fd}")
    config = config.replace("config spoe.cfg", "config {folder}/spoe.cfg")
    proxy = Process(binary, folder, config=config, spoe=SPOE_FILE.read_text())
    print(f"$ haproxy -f haproxy.cfg    (HAProxy {proxy.version.major}.{proxy.version.minor})")
    with proxy:
        for address in CLIENTS:
            print(f"client {address:<12} {request(address, proxy.port)}")


def ask_with_engine(agent: str) -> None:
    score = "sess.iprep.ip_score"
    with Engine.from_file(SPOE_FILE, backends={"agents": agent}, variables=[score]) as engine:
        for address in CLIENTS:
            with engine.stream(source=ipaddress.ip_address(address)) as stream:
                stream.event("on-client-session")
                print(f"client {address:<12} x-ip-score: {stream.vars[score]}")


def request(address: str, port: int) -> str:
    """Ask HAProxy from an address of this machine; the status, and the header that has the score.

    HAProxy lets a request through if its agent takes too long, as a busy machine's may at first.
    """
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, 10, source_address=(address, 0))
        with contextlib.closing(connection):
            connection.request("GET", "/")
            response = connection.getresponse()
        answer = f"{response.status} {response.reason}"
        if score := response.getheader("X-IP-Score"):
            return f"{answer}    x-ip-score: {score}"
        if response.status != 200:
            return answer
    sys.exit(f"no X-IP-Score header in the responses to {address}")


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """Run a server, from when it accepts connections until the end of the block."""
    process = subprocess.Popen(command)
    try:
        wait_for(port, process)
        yield
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    sys.exit(f"{process.args} does not listen on port {port}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
