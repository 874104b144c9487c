"""What `make demo` shows: an agent, HAProxy asking it, and the variable that it set.

Runs ``spop serve examples/ip_reputation.py:agent``, puts HAProxy in front of it where one is
installed (2.2 or later), and sends requests from some addresses. Without HAProxy the
package's own engine runs HAProxy's files.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from spop.engine import Engine, Request

HERE = Path(__file__).parent
CLIENTS = ("127.0.0.1", "127.0.0.7", "127.0.0.42")

HAPROXY_CONFIG = """
global
    log stdout format raw daemon warning

defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s

frontend www
    bind 127.0.0.1:{http_port}
    filter spoe engine ip-reputation config {spoe_config}
    http-request return status 200 hdr X-IP-Score %[var(sess.iprep.ip_score)]

backend agents
    mode {mode}
    option spop-check
    server agent 127.0.0.1:{agent_port} check
"""

SPOE_CONFIG = """
[ip-reputation]

spoe-agent ip-reputation-agent
    messages check-client-ip
    option var-prefix iprep
    timeout hello 2s
    timeout idle 2m
    timeout processing 500ms
    use-backend agents

spoe-message check-client-ip
    args ip=src
    event on-client-session
"""


def main() -> None:
    agent_port, http_port = free_port(), free_port()
    path, version = find_haproxy() or (None, (2, 6))
    with tempfile.TemporaryDirectory() as folder, agent(agent_port):
        spoe_config, config = Path(folder, "spoe.cfg"), Path(folder, "haproxy.cfg")
        spoe_config.write_text(SPOE_CONFIG)
        config.write_text(
            HAPROXY_CONFIG.format(
                http_port=http_port,
                agent_port=agent_port,
                spoe_config=spoe_config,
                mode="spop" if version >= (3, 1) else "tcp",
            )
        )
        if path is None:
            print("HAProxy 2.2 or later is not installed: its files are run by spop.engine")
            ask_with_engine(spoe_config, config)
        else:
            print(f"$ haproxy -f haproxy.cfg    (HAProxy {version[0]}.{version[1]})")
            with running([path, "-db", "-f", str(config)], http_port):
                for address in CLIENTS:
                    print(f"client {address:<12} {request(address, http_port)}")


@contextlib.contextmanager
def agent(port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "spop", "serve", f"{HERE / 'ip_reputation.py'}:agent"]
    command += ["--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
    print("$ spop", *command[3:])
    with running(command, port):
        yield


def ask_with_engine(spoe_config: Path, config: Path) -> None:
    with Engine.from_file(spoe_config, "ip-reputation", backends=config) as engine:
        for address in CLIENTS:
            source = ipaddress.ip_address(address)
            with engine.stream(source=source, request=Request("GET", "/")) as stream:
                stream.event("on-client-session")
                print(f"client {address:<12} x-ip-score: {stream.vars['sess.iprep.ip_score']}")


def request(address: str, port: int) -> str:
    """Ask HAProxy from an address of this machine; the header that has the variable."""
    command = ["curl", "-s", "-i", "--interface", address, f"http://127.0.0.1:{port}/"]
    if shutil.which("curl") is None:
        with socket.create_connection(("127.0.0.1", port), 5, (address, 0)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n")
            response = sock.makefile().read()
    else:
        response = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    header = re.search(r"(?im)^x-ip-score:.*$", response)
    if header is None:
        sys.exit(f"no X-IP-Score header in the response to {address}:\n{response}")
    return header[0].strip()


def find_haproxy() -> tuple[str, tuple[int, int]] | None:
    path = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        return None
    shown = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=10).stdout
    found = re.search(r"version (\d+)\.(\d+)", shown)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return (path, version) if version >= (2, 2) else None


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
