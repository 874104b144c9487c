"""Make the packet captures in tests/captures from the traffic of real HAProxys.

    python ci/make_captures.py [HAPROXY...]

It needs tcpdump and may capture on the loopback interface. Each HAProxy asks an agent a few
times, with a body that it sends in fragments if it can; what went over the wire is written to
``haproxy-VERSION.pcap``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from ipaddress import IPv4Address
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from haproxy import HAProxy, installed, version, wait_until  # noqa: E402

from spop import Agent  # noqa: E402

SPOE = """
spoe-agent test-agent
    messages check
    option var-prefix test
    {frame_size}
    timeout hello 5s
    timeout idle 1m
    timeout processing 5s

spoe-message check
    args ip=src method=method path=path flag=bool(true) missing=req.hdr(x-missing) body=req.body
    event on-frontend-http-request
"""


def main() -> None:
    target = ROOT / "tests" / "captures"
    target.mkdir(exist_ok=True)
    for binary in sys.argv[1:] or installed():
        path = target / f"haproxy-{'.'.join(map(str, version(binary)[:2]))}.pcap"
        capture(binary, path)
        print(f"{path}: {path.stat().st_size} bytes")


def capture(binary: str, path: Path, spoe: str = SPOE) -> None:
    agent = Agent()

    @agent.message("check")
    def check(ip: IPv4Address, body: bytes = b"") -> dict[str, object]:
        return {"txn.score": ip.packed[-1], "txn.length": len(body)}

    # What fits no frame goes in fragments, from the versions that have them.
    frame_size = "max-frame-size 4096" if version(binary) < (3, 1) else ""
    with (
        tempfile.TemporaryDirectory() as folder,
        agent.serve_in_background() as server,
        HAProxy(
            binary,
            Path(folder),
            agent=str(server.address),
            spoe=spoe.format(frame_size=frame_size),
            rules="http-request redirect location /%[var(txn.test.score)]",
            frontend_options="option http-buffer-request",
        ) as proxy,
    ):
        sniffer = subprocess.Popen(
            [
                "tcpdump",
                "-Z",
                "root",
                "-i",
                "lo",
                "-U",
                "--immediate-mode",
                "-w",
                str(path),
                f"tcp port {server.address.port}",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert sniffer.stderr is not None
        while "listening on" not in sniffer.stderr.readline():
            pass
        proxy.wait_until_up()
        for source in ("127.0.0.2", "127.0.0.3"):
            proxy.request(source)
        proxy.request("127.0.0.4", b"x" * 6_000)
        time.sleep(0.5)  # The sniffer is a little behind.
        sniffer.terminate()
        wait_until(lambda: sniffer.poll() is not None, "tcpdump's end")
        sniffer.stderr.close()


if __name__ == "__main__":
    main()
