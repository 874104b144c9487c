"""Streams of an engine: events, groups, variables, errors, and how waiting ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from haproxy import wait_until
from scripted_agent import ChaoticAgent, Move, ScriptedAgent, Told, Wire, answers

from spop import Agent, LocalProtocolError, Message
from spop.constants import EngineStatus
from spop.engine import AsyncEngine, Engine, Request, Response, Session, fetch
from spop.engine.samples.registry import FETCHES
from spop.engine.variables import PROCESS, Variables
from spop.values import UNSET, DecodedValue

REAL = Path(__file__).parent.parent / "config" / "real"

SPOE = """spoe-agent test
    messages session fe be response
    groups both none
    use-backend agents
    option var-prefix p
    timeout hello 10s
    timeout idle 1m
    {lines}
spoe-message session
    args n=var(txn.n) src
    event on-client-session
spoe-message fe
    args n=var(txn.n) path=path
    event on-frontend-http-request {condition}
spoe-message be
    args n=var(txn.n) before=var(req.p.a) body=req.body
    event on-backend-http-request
spoe-message response
    args n=var(txn.n) before=var(req.p.a) status=status
    event on-http-response
spoe-message grouped
    args n=var(txn.n) path=path
spoe-message never
    args n=var(txn.n)
spoe-group both
    messages grouped never
spoe-group none
"""

Make = Callable[..., Engine]


def write(folder: Path, lines: str = "", condition: str = "") -> Path:
    file = folder / "spoe.cfg"
    if "timeout processing" not in lines:
        lines += "\n    timeout processing 10s"
    file.write_text(SPOE.format(lines=lines, condition=condition))
    return file


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes engines of an agent, lines of the agent's section and settings."""
    engines = []

    def make(agent: ScriptedAgent, lines: str = "", condition: str = "", **settings: Any) -> Engine:
        file = write(tmp_path, lines, condition)
        engines.append(Engine.from_file(file, backends={"agents": agent.address}, **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(autouse=True)
def no_process_variables() -> Iterator[None]:
    PROCESS.clear()
    yield
    PROCESS.clear()


def sets(**actions: Any) -> Move:
    """The move of an agent that sets variables; of scopes, `_` stands for the dot."""
    named = {name.replace("_", ".", 1): value for name, value in actions.items()}
    return lambda wire, told: wire.answer(told.notify, named)


REQUEST = {"request": Request("GET", "/path")}


# --- events and groups ---


def test_each_event_happens_once_and_in_order(make: Make) -> None:
    with ScriptedAgent() as agent:
        stream = make(agent).stream(**REQUEST)
        assert stream.event("on-client-session") is not None
        assert stream.event("on-client-session") is None
        assert stream.event("on-server-session") is None  # It has no messages.
        with pytest.raises(LocalProtocolError, match="after a later event"):
            stream.event("on-frontend-http-request")
        assert [told.names for told in agent.told] == [["session"]]


def test_an_unknown_event_or_group_is_named(make: Make) -> None:
    with ScriptedAgent() as agent:
        stream = make(agent).stream()
        with pytest.raises(ValueError, match="did you mean 'on-http-response'"):
            stream.event("on-http-respons")
        with pytest.raises(ValueError, match=r"unknown group 'all': both, none"):
            stream.send_group("all")


def test_groups_are_sent_whenever_they_are_asked_for(make: Make) -> None:
    with ScriptedAgent(sets(txn_n=1)) as agent:
        stream = make(agent).stream(**REQUEST)
        for _ in range(2):
            processing = stream.send_group("both")
            assert processing is not None
            assert processing.label == "GROUP:both"
        assert stream.send_group("none") is None
        assert [told.names for told in agent.told] == [["grouped", "never"]] * 2
        assert [told.notify.frame_id for told in agent.told] == [1, 2]


def test_nothing_is_sent_where_no_message_applies(make: Make) -> None:
    with ScriptedAgent() as agent:
        engine = make(agent, condition="unless { path /path }")
        assert engine.stream(**REQUEST).event("on-frontend-http-request") is None
        assert engine.stream(request=Request()).event("on-frontend-http-request") is not None
        assert len(agent.told) == 1
        assert engine.traffic.nb_processed == 1


def test_a_fetch_that_raises_is_not_available(make: Make, tmp_path: Path) -> None:
    @fetch("test_raises")
    def raises(stream: Any) -> int:
        raise RuntimeError("no")

    try:
        file = write(tmp_path)
        file.write_text(file.read_text().replace("args n=var(txn.n) src", "args test_raises src"))
        with (
            ScriptedAgent() as agent,
            Engine.from_file(file, backends={"agents": agent.address}) as engine,
        ):
            source = IPv4Address("192.0.2.1")
            processing = engine.stream(source=source).event("on-client-session")
            assert processing is not None
            assert not processing.status
            assert agent.told[0].notify.messages[0].values == (None, source)
    finally:
        del FETCHES["test_raises"]


# --- variables ---


def test_variables_live_as_long_as_their_scope(make: Make) -> None:
    move = sets(sess_a=1, txn_a=2, req_a=3, res_a=4)
    with ScriptedAgent(move) as agent:
        engine = make(agent, "option force-set-var")
        session = Session()
        stream = engine.stream(session=session, **REQUEST)
        stream.event("on-frontend-http-request")
        assert dict(stream.vars) == {"sess.p.a": 1, "txn.p.a": 2, "req.p.a": 3}
        stream.event("on-backend-http-request")
        assert agent.told[-1].notify.messages[0]["before"] == 3
        stream.stream.response = Response()
        stream.event("on-http-response")
        assert agent.told[-1].notify.messages[0]["before"] is None
        assert dict(stream.vars) == {"sess.p.a": 1, "txn.p.a": 2, "res.p.a": 4}
        assert dict(engine.stream(session=session).vars) == {"sess.p.a": 1}
        assert dict(engine.stream().vars) == {}


def test_a_variable_that_another_thread_removes_while_it_is_read_is_not_set() -> None:
    class Removed(dict[str, DecodedValue]):
        """The other thread is next when it was seen that there is a variable."""

        def __contains__(self, name: object) -> bool:
            return self.pop(str(name), None) is not None

    session = Session()
    session.variables = Removed({"sess.a": 1})
    assert Variables(session=session).get("sess.a", "gone") in (1, "gone")


def test_null_and_unset_remove_a_variable(make: Make) -> None:
    with ScriptedAgent(sets(txn_a=None, txn_b=UNSET)) as agent:
        engine = make(agent, "option force-set-var")
        stream = engine.stream(variables={"txn.p.a": 1, "txn.p.b": 2, "txn.p.c": 3})
        stream.event("on-client-session")
        assert dict(stream.vars) == {"txn.p.c": 3}


@pytest.mark.parametrize(
    ("lines", "settings", "admitted"),
    [
        ("", {}, {"req.p.a"}),  # A message reads it: a name is known in all scopes.
        ("register-var-names b", {}, {"txn.p.b", "req.p.a"}),
        ("", {"variables": ["txn.p.b"]}, {"txn.p.b", "req.p.a"}),
        ("", {"variables": ["txn.other.b"]}, {"req.p.a"}),
        ("option force-set-var", {}, {"txn.p.b", "req.p.a", "sess.p.c", "proc.p.d"}),
        ("", {"haproxy_version": "2.6"}, {"txn.p.b", "req.p.a", "sess.p.c"}),
        ("", {"haproxy_version": "2.4"}, {"req.p.a"}),
    ],
)
def test_which_variables_an_agent_may_set(
    lines: str, settings: dict[str, Any], admitted: set[str], make: Make
) -> None:
    sent = {"req.p.a": 1, "txn.p.b": 2, "sess.p.c": 3, "proc.p.d": 4}
    with ScriptedAgent(sets(req_a=1, txn_b=2, sess_c=3, proc_d=4)) as agent:
        stream = make(agent, lines, **settings).stream()
        stream.event("on-client-session")
        assert set(stream.vars) == admitted
        assert stream.ignored == {n: v for n, v in sent.items() if n not in admitted}


def test_a_process_variable_is_set_where_it_exists(make: Make) -> None:
    PROCESS["proc.p.d"] = 0
    with ScriptedAgent(sets(proc_d=4, proc_e=5)) as agent:
        engine = make(agent, haproxy_version="2.6")
        engine.stream().event("on-client-session")
        assert engine.stream().vars["proc.p.d"] == 4
        assert "proc.p.e" not in PROCESS


def test_times_are_told_by_variables(make: Make) -> None:
    lines = "option set-process-time took\n    option set-total-time total"
    with ScriptedAgent() as agent:
        stream = make(agent, lines).stream()
        processing = stream.event("on-client-session")
        assert processing is not None
        assert stream.vars["txn.p.took"] == processing.times[-1]
        assert stream.vars["txn.p.total"] == stream.total_time


# --- errors and rates ---


def test_an_error_disables_the_engine_for_the_stream_and_no_other(make: Make) -> None:
    def move(wire: Wire, told: Told) -> None:
        wire.disconnect(13) if told.names == ["session"] else answers(wire, told)

    with ScriptedAgent(move) as agent:
        engine = make(agent, "option set-on-error error\n    no option async")
        stream = engine.stream(**REQUEST)
        processing = stream.event("on-client-session")
        assert processing is not None
        assert (processing.status, stream.vars["txn.p.error"]) == (256 + 13, 256 + 13)
        assert not stream.enabled
        assert stream.event("on-frontend-http-request") is None
        assert stream.send_group("both") is None
        other = engine.stream(**REQUEST).event("on-frontend-http-request")
        assert other is not None
        assert not other.status
        assert engine.traffic.nb_errors == 1


def test_maxerrrate_holds_events_back_for_a_second(make: Make) -> None:
    with ScriptedAgent(lambda wire, told: wire.disconnect(99)) as agent:
        engine = make(agent, "maxerrrate 2\n    no option async")
        for _ in range(2):
            processing = engine.stream().event("on-client-session")
            assert processing is not None
            assert processing.status == 256 + 99
        assert engine.stream().event("on-client-session") is None
        assert len(agent.told) == 2
        wait_until(lambda: engine.stream().event("on-client-session") is not None, "an event")
        assert len(agent.told) == 3


def test_maxconnrate_counts_connections_and_not_events(make: Make) -> None:
    with ScriptedAgent() as agent:
        engine = make(agent, "maxconnrate 1")
        for _ in range(20):
            processing = engine.stream().event("on-client-session")
            assert processing is not None
            assert not processing.status
        assert len(agent.connections) == 1


def test_a_payload_that_the_agent_gives_up_is_status_4(make: Make) -> None:
    with ScriptedAgent(max_payload_size=1000) as agent:
        engine = make(agent, "max-frame-size 500\n    option continue-on-error")
        stream = engine.stream(request=Request("POST", body=b"x" * 5000))
        processing = stream.event("on-backend-http-request")
        assert processing is not None
        assert processing.status == EngineStatus.FRAGMENTATION_ABORTED
        stream.stream.response = Response()
        after = stream.event("on-http-response")
        assert after is not None
        assert not after.status


def test_a_late_ack_does_no_harm(make: Make) -> None:
    """Again where the second ACK is late, too, as the machine stood still."""
    wait_until(lambda: second_is_right(make), "an ACK within a second")


def second_is_right(make: Make) -> bool:
    """Whether the second event had its ACK in time. It is not that of the first, which was late."""
    late: list[tuple[Wire, Told]] = []

    def move(wire: Wire, told: Told) -> None:
        if told.names == ["session"]:
            late.append((wire, told))
        else:
            for wire_then, told_then in late:
                wire_then.answer(told_then.notify, {"txn.a": "late"})
            wire.answer(told.notify, {"txn.a": "right"})

    with ScriptedAgent(move, capabilities=frozenset({"pipelining"})) as agent:
        lines = "timeout processing 1s\n    option continue-on-error"
        stream = make(agent, lines).stream(**REQUEST)
        processing = stream.event("on-client-session")
        assert processing is not None
        assert processing.status == EngineStatus.TIMEOUT
        assert "txn.p.a" not in stream.vars
        processing = stream.event("on-frontend-http-request")
        assert processing is not None
        assert len(agent.connections) == 1
        assert stream.vars.get("txn.p.a") == (None if processing.status else "right")
        return not processing.status


# --- how waiting ends ---


def test_acks_come_on_any_connection_of_the_engine(make: Make) -> None:
    held: list[tuple[Wire, Told]] = []

    def move(wire: Wire, told: Told) -> None:
        held.append((wire, told))
        if len(held) == 2:
            (first, one), (second, other) = held
            first.answer(other.notify, {"txn.a": "other"})
            second.answer(one.notify, {"txn.a": "one"})

    with ScriptedAgent(move) as agent, ThreadPoolExecutor(2) as pool:
        engine = make(agent, "max-waiting-frames 1")
        streams = [engine.stream(variables={"txn.n": name}) for name in ("1", "2")]
        done = list(pool.map(lambda stream: stream.event("on-client-session"), streams))
        assert [processing and processing.status for processing in done] == [0, 0]
        assert len(agent.connections) == 2
        assert {hello.peer.engine_id for hello in agent.hellos} == {engine.engine_id}
        (_, first), _ = held
        order = ["one", "other"] if first.notify.messages[0]["n"] == "1" else ["other", "one"]
        assert [stream.vars["txn.p.a"] for stream in streams] == order


def never(wire: Wire, told: Told) -> None:
    """The move of an agent that does not answer."""


def test_closing_the_engine_interrupts_what_waits(make: Make) -> None:
    with ScriptedAgent(never) as agent, ThreadPoolExecutor(3) as pool:
        engine = make(agent)
        streams = [engine.stream() for _ in range(3)]
        waiting = [pool.submit(stream.event, "on-client-session") for stream in streams]
        agent.wait_for(3)
        engine.close()
        for future, stream in zip(waiting, streams, strict=True):
            processing = future.result(10)
            assert processing is not None
            assert processing.status == stream.status == EngineStatus.INTERRUPTED


def test_a_keyboard_interrupt_ends_the_wait(make: Make) -> None:
    """Also one that comes on the way into the wait, as it does now and then."""

    def move(wire: Wire, told: Told) -> None:
        if told.names == ["session"]:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            answers(wire, told)

    for _ in range(50):
        with ScriptedAgent(move) as agent:
            engine = make(agent, "option continue-on-error\n    no option pipelining")
            stream = engine.stream(**REQUEST)
            began = monotonic()
            with pytest.raises(KeyboardInterrupt):
                stream.event("on-client-session")
            assert monotonic() - began < 8, "a processing timeout"
            assert stream.status == EngineStatus.INTERRUPTED
            after = stream.event("on-frontend-http-request")
            assert after is not None
            assert not after.status
            engine.close()


def test_a_cancelled_task_is_an_interrupted_processing(tmp_path: Path) -> None:
    def move(wire: Wire, told: Told) -> None:
        if told.names != ["session"]:
            answers(wire, told)

    async def run(agent: ScriptedAgent) -> None:
        file = write(tmp_path, "option set-on-error error")
        async with AsyncEngine.from_file(file, backends={"agents": agent.address}) as engine:
            stream = engine.stream(**REQUEST)
            task = asyncio.create_task(stream.event("on-client-session"))
            await asyncio.to_thread(agent.wait_for, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert stream.status == stream.vars["txn.p.error"] == EngineStatus.INTERRUPTED
            assert not stream.enabled
            after = await engine.stream(**REQUEST).event("on-frontend-http-request")
            assert after is not None
            assert not after.status

    with ScriptedAgent(move) as agent:
        asyncio.run(run(agent))


def test_closing_an_async_engine_interrupts_what_waits(tmp_path: Path) -> None:
    async def run(agent: ScriptedAgent) -> None:
        file = write(tmp_path)
        async with AsyncEngine.from_file(file, backends={"agents": agent.address}) as engine:
            streams = [engine.stream() for _ in range(3)]
            tasks = [asyncio.create_task(s.event("on-client-session")) for s in streams]
            await asyncio.to_thread(agent.wait_for, 3)
            await engine.close()
            done = await asyncio.gather(*tasks)
            assert [p and p.status for p in done] == [EngineStatus.INTERRUPTED] * 3

    with ScriptedAgent(never) as agent:
        asyncio.run(run(agent))


# --- many at a time ---

CHAOS = "timeout processing 5s\n    register-var-names n size"


def ended_rightly(number: int, status: int, answered: object) -> bool:
    """With one's own answer, or with an error that has a name and no answer."""
    if status == 0:
        return answered == number
    return status not in (EngineStatus.UNKNOWN, EngineStatus.INTERRUPTED) and answered is None


def test_64_threads_get_their_own_answers(make: Make) -> None:
    with ChaoticAgent(5, remembers=False) as agent, ThreadPoolExecutor(64) as pool:
        engine = make(agent, CHAOS)

        def one(number: int) -> tuple[int, bool]:
            stream = engine.stream(variables={"txn.n": number})
            processing = stream.event("on-client-session")
            assert processing is not None
            status = processing.status
            return status, ended_rightly(number, status, stream.vars.get("sess.p.n"))

        ends = list(pool.map(one, range(4000), timeout=60))
        assert all(rightly for _, rightly in ends)
        assert sum(status == 0 for status, _ in ends) > 3000
        assert engine.traffic.nb_processed == 4000
        assert engine.traffic.nb_errors == sum(status != 0 for status, _ in ends)
        assert engine.traffic[3] == 0


def test_1000_tasks_get_their_own_answers(tmp_path: Path) -> None:
    async def run(agent: ScriptedAgent) -> list[tuple[int, bool]]:
        file = write(tmp_path, CHAOS)
        async with AsyncEngine.from_file(file, backends={"agents": agent.address}) as engine:

            async def one(number: int) -> tuple[int, bool]:
                stream = engine.stream(variables={"txn.n": number})
                processing = await stream.event("on-client-session")
                assert processing is not None
                status = processing.status
                return status, ended_rightly(number, status, stream.vars.get("sess.p.n"))

            async with asyncio.timeout(60):
                return await asyncio.gather(*map(one, range(1000)))

    with ChaoticAgent(5, remembers=False) as agent:
        ends = asyncio.run(run(agent))
    assert all(rightly for _, rightly in ends)
    assert sum(status == 0 for status, _ in ends) > 500


# --- the files that real agents ship ---


def recording(names: list[str], answer: dict[str, Any]) -> tuple[Agent, dict[str, Message]]:
    agent = Agent()
    heard: dict[str, Message] = {}

    def handle(message: Message) -> dict[str, Any]:
        heard[message.name] = message
        return answer

    for name in names:
        agent.message(name)(handle)
    return agent, heard


SOURCE = {
    "source": IPv4Address("192.0.2.7"),
    "source_port": 4000,
    "destination": IPv4Address("192.0.2.1"),
    "destination_port": 80,
    "unique_id": "id-1",
}
POSTED = Request(
    "POST", "/a?b=c", "1.1", [("Host", "example.com"), ("Cookie", "name=value")], b"body"
)
ANSWERED = Response(200, "1.1", [("Expires", "never")], b"page")


def patient(folder: Path, name: str) -> Path:
    """A copy of the file whose timeouts suit a busy machine."""
    file = folder / name
    file.write_text(re.sub(r"(timeout\s+\w+\s+)\w+", r"\g<1>10s", (REAL / name).read_text()))
    return file


def test_a_firewalls_file(tmp_path: Path) -> None:
    agent, heard = recording(["waf-check-request", "waf-check-response"], {"txn.action": "deny"})
    with (
        agent.serve_in_background() as server,
        Engine.from_file(
            patient(tmp_path, "waf.cfg"),
            "waf",
            backends={"waf-agents": str(server.address)},
            variables=["txn.waf.action"],
        ) as engine,
    ):
        stream = engine.stream(request=POSTED, variables={"txn.waf.app": "shop"}, **SOURCE)
        processing = stream.send_group("waf-request")
        assert processing is not None
        assert not processing.status
        request = heard["waf-check-request"]
        assert (request["app"], request["src-ip"]) == ("shop", IPv4Address("192.0.2.7"))
        assert (request["path"], request["query"], request["body"]) == ("/a", "b=c", b"body")
        assert request["flag"] is False
        assert stream.vars["txn.waf.action"] == "deny"
        stream.stream.response = ANSWERED
        stream.send_group("waf-response")
        response = heard["waf-check-response"]
        assert (response["status"], response["body"]) == (200, b"page")


def test_a_bouncers_file(tmp_path: Path) -> None:
    names = ["bouncer-ip", "bouncer-body", "bouncer-no-body"]
    agent, heard = recording(names, {"txn.remediation": "captcha"})
    with (
        agent.serve_in_background() as server,
        Engine.from_file(
            patient(tmp_path, "bouncer.cfg"), backends={"bouncer-agents": str(server.address)}
        ) as engine,
    ):
        stream = engine.stream(request=POSTED, **SOURCE)
        stream.event("on-client-session")
        assert heard["bouncer-ip"]["id"] == "id-1"
        assert stream.vars["txn.bouncer.remediation"] == "captcha"
        stream.send_group("bouncer-http-body")
        stream.send_group("bouncer-http-no-body")
        assert heard["bouncer-body"]["remediation"] == "captcha"
        assert (heard["bouncer-body"]["body"], heard["bouncer-body"]["ssl"]) == (b"body", False)
        assert heard["bouncer-no-body"]["url"] == "/a?b=c"
        assert "body" not in heard["bouncer-no-body"]


def test_an_application_proxys_two_scopes(tmp_path: Path) -> None:
    agent, heard = recording(["on-request", "on-response"], {"txn.session": "s", "txn.token": "t"})
    file = patient(tmp_path, "proxy.cfg")
    with agent.serve_in_background() as server:
        settings: dict[str, Any] = {
            "backends": {"application-proxy": str(server.address)},
            "variables": ["txn.proxy.session", "txn.proxy.token"],
        }
        with (
            Engine.from_file(file, "request-engine", **settings) as requests,
            Engine.from_file(file, "response-engine", **settings) as responses,
        ):
            first = requests.stream(request=POSTED, **SOURCE)
            second = responses.stream(first.stream)
            first.event("on-frontend-http-request")
            assert heard["on-request"]["cookie"] == "value"
            first.stream.response = ANSWERED
            second.event("on-http-response")
            response = heard["on-response"]
            assert (response["token"], response["expires"]) == ("t", "never")


def test_arguments_without_names(tmp_path: Path) -> None:
    agent, heard = recording(["first", "second"], {})
    with (
        agent.serve_in_background() as server,
        Engine.from_file(
            patient(tmp_path, "unnamed.cfg"),
            backends={"agents": str(server.address)},
            haproxy_version="2.2",
        ) as engine,
    ):
        stream = engine.stream(request=POSTED, **SOURCE)
        stream.event("on-client-session")
        stream.event("on-frontend-http-request")
        assert heard["second"].values == (IPv4Address("192.0.2.7"), 4000)
        assert heard["first"].names == ("",) * 5
        assert heard["first"].values == (
            True,
            1234,
            IPv4Address("192.0.2.7"),
            IPv6Address("::55"),
            "example.com",
        )
