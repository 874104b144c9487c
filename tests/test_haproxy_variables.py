"""docs/variables.md: which variables an agent sets in a HAProxy, and in the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import haproxy
import pytest

from spop import Agent
from spop.engine import Engine
from spop.engine.variables import PROCESS

SPOE = """
spoe-agent a
    messages m
    option var-prefix x
    {option}
    timeout hello 1s
    timeout idle 1m
    timeout processing 5s

spoe-message m
    args ip=src
    event on-frontend-http-request
"""
NAMES = ("txn.mentioned", "txn.unknown", "proc.mentioned", "proc.registered", "proc.unknown")

LUA = """
core.register_service("shown", "http", function(applet)
    local found = {}
    for _, name in ipairs({"txn.x.mentioned", "txn.x.unknown", "proc.x.mentioned",
                           "proc.x.registered", "proc.x.unknown"}) do
        if applet:get_var(name) ~= nil then found[#found + 1] = name end
    end
    applet:set_status(200)
    applet:add_header("location", table.concat(found, ","))
    applet:start_response()
end)
"""

OPTIONS = {
    "": "register-var-names registered",
    "force-set-var": "option force-set-var\n    register-var-names registered",
}


def expected(option: str, branch: tuple[int, ...]) -> set[str]:
    """The table of docs/variables.md."""
    found = {"txn.x.mentioned", "proc.x.mentioned", "proc.x.registered"}
    if option:
        return found | {"txn.x.unknown", "proc.x.unknown"}
    return found | ({"txn.x.unknown"} if branch >= (2, 5) else set())


@pytest.fixture
def agent() -> Agent:
    it = Agent()

    @it.message("m")
    def m(ip: object) -> dict[str, object]:
        return dict.fromkeys(NAMES, 1)

    return it


@pytest.mark.parametrize("option", OPTIONS)
def test_which_variables_haproxy_sets(
    haproxy_binary: str, option: str, agent: Agent, tmp_path: Path
) -> None:
    script = tmp_path / "shown.lua"
    script.write_text(LUA)
    rules = """http-request set-header a %[var(txn.x.mentioned)]%[var(proc.x.mentioned)]
    http-request use-service lua.shown"""
    with (
        agent.serve_in_background("127.0.0.1:0") as server,
        haproxy.HAProxy(
            haproxy_binary, tmp_path, agent=str(server.address), rules=rules,
            spoe=SPOE.format(option=OPTIONS[option]), global_options=f"lua-load {script}",
        ) as proxy,
    ):  # fmt: skip
        proxy.wait_until_up()
        found = proxy.request().location
    assert set(found.split(",")) == expected(option, haproxy.version(haproxy_binary)[:2])


@pytest.fixture
def no_variables_of_the_process() -> Iterator[None]:
    before = dict(PROCESS)
    PROCESS.clear()
    yield
    PROCESS.clear()
    PROCESS.update(before)


@pytest.mark.usefixtures("no_variables_of_the_process")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("version", ["2.2", "2.6", "3.4"])
def test_which_variables_the_engine_sets(
    version: str, option: str, agent: Agent, tmp_path: Path
) -> None:
    path = tmp_path / "spoe.cfg"
    spoe = SPOE.format(option=OPTIONS[option]).replace(
        "messages m", "messages m\n    use-backend b"
    )
    path.write_text(f"[test]\n{spoe.strip()}\n")
    with (
        agent.serve_in_background("127.0.0.1:0") as server,
        Engine.from_file(
            path, backends={"b": str(server.address)}, haproxy_version=version,
            variables=["txn.x.mentioned", "proc.x.mentioned"],
        ) as engine,
        engine.stream() as stream,
    ):  # fmt: skip
        stream.event("on-frontend-http-request")
        found = {f"{name.replace('.', '.x.')}" for name in NAMES} - set(stream.ignored)
    branch = tuple(map(int, version.split(".")))
    assert found == expected(option, branch)
