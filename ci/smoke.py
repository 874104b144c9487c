"""Does an installed spop work? An agent answers an engine.

python ci/smoke.py [IMPLEMENTATION]        "c", the compiled codec, by default, or "python"
"""

from __future__ import annotations

import sys
import tempfile
from ipaddress import IPv4Address
from pathlib import Path

from spop import Agent, codec
from spop.dispatch import Dispatcher
from spop.engine import Engine

SPOE = """\
[smoke]
spoe-agent smoke
    messages check
    register-var-names score
    timeout processing 5s
    use-backend agents
spoe-message check
    args ip=src
    event on-client-session
"""

agent = Agent()


@agent.message("check")
def check(ip: IPv4Address) -> dict[str, int]:
    return {"sess.score": ip.packed[-1]}


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else "c"
    assert wanted == codec.IMPLEMENTATION, codec.IMPLEMENTATION
    module = "spop._dispatch" if wanted == "c" else "spop._dispatch_py"
    assert Dispatcher.__module__ == module, Dispatcher.__module__
    with tempfile.TemporaryDirectory() as folder:
        spoe = Path(folder) / "spoe.cfg"
        spoe.write_text(SPOE)
        with (
            agent.serve_in_background() as server,
            Engine.from_file(spoe, backends={"agents": str(server.address)}) as engine,
            engine.stream(source=IPv4Address("192.0.2.7")) as stream,
        ):
            stream.event("on-client-session")
            assert stream.vars["sess.smoke.score"] == 7
    print(f"Python {sys.version.split()[0]}, {codec.IMPLEMENTATION}: it works")


if __name__ == "__main__":
    main()
