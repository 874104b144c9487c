"""Does an installed spop work? An agent answers an engine, and `spop serve` the other commands.

    python ci/smoke.py [IMPLEMENTATION]        "c", the compiled codec, by default, or "python"

It needs the extra ``cli``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
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

SPOP = [*os.environ.get("SPOP_PYTHON", sys.executable).split(), "-m", "spop"]
"""The command. An interpreter that is emulated does not know how it was started."""

agent = Agent()


@agent.message("check")
def check(ip: IPv4Address) -> dict[str, int]:
    return {"sess.score": ip.packed[-1]}


def answer_an_engine() -> None:
    """In this process."""
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


def answer_the_commands() -> None:
    """In two workers of ``spop serve``, until SIGTERM."""
    serve = [*SPOP, "serve", f"{__file__}:agent", "--bind", "127.0.0.1:0", "--processes", "2"]
    serve += ["--start-timeout", "300"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = ""
        try:
            while not (found := re.search(r"serves on (127\.0\.0\.1:\d+)", log)):
                line = process.stderr.readline()
                assert line, log
                log += line
            address = found[1]
            subprocess.run([*SPOP, "check", address], check=True)
            notify = [*SPOP, "notify", address, "check", "ip=192.0.2.7", "--json"]
            answer = json.loads(subprocess.check_output(notify))
            assert [action["value"] for action in answer["actions"]] == [7], answer
            process.terminate()
            log += process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 0, log


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else "c"
    assert wanted == codec.IMPLEMENTATION, codec.IMPLEMENTATION
    module = "spop._dispatch" if wanted == "c" else "spop._dispatch_py"
    assert Dispatcher.__module__ == module, Dispatcher.__module__
    answer_an_engine()
    answer_the_commands()
    print(f"Python {sys.version.split()[0]}, {codec.IMPLEMENTATION}: it works")


if __name__ == "__main__":
    main()
