"""What an agent sees of HAProxy 3.1 and later, and that engine, clients and `spop bench` look the
same with ``haproxy_version``."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from haproxy import those
from odd_agents import Ids, Odd, OddAgent, Wire, ack, hello, parts
from proxied import Proxied

from spop import AsyncClient, Client, codec
from spop.cli.capture import Capture
from spop.connection import EngineConnection
from spop.engine import AsyncEngine, Engine, Request
from spop.frames import Control, Frame, Notify
from spop.load.generator import Plan

CAPTURE = Path(__file__).parents[1] / "captures" / "haproxy-3.4.pcap"

SPOE = """
[test]
spoe-agent test-agent
    messages check
    option var-prefix test
    timeout hello 60s
    timeout idle 1m
    timeout processing 60s
    use-backend agents

spoe-message check
    args ip=src method=method path=path flag=bool(true) missing=req.hdr(x-missing) body=req.body
    event on-frontend-http-request
"""

CONFIG = """
frontend www
    bind fd@{{fd}}
    filter spoe engine test config {{folder}}/spoe.cfg
    http-request return status 200
backend agents
    mode {{mode}}
    server agent {agent}
"""


class Recorder(OddAgent):
    """An agent that keeps the frames of each connection.

    Args:
        hold: number of NOTIFY frames that must wait before any is answered.
        capabilities: of its HELLO.
    """

    def __init__(self, hold: int = 1, capabilities: str = "pipelining") -> None:
        self.frames: dict[Wire, list[bytes]] = {}
        self._hold = hold
        self._capabilities = capabilities
        self._waiting: list[tuple[Wire, Ids]] = []
        self._lock = threading.Lock()
        super().__init__(Odd(greet=self._greet, answer=self._answer, part=parts))

    def _greet(self, wire: Wire, request: bytes) -> None:
        read, frames = wire.read, self.frames.setdefault(wire, [request])

        def record() -> bytes:
            frames.append(read())
            return frames[-1]

        wire.read = record  # type: ignore[method-assign]
        wire.send(hello(request, capabilities=self._capabilities))

    def _answer(self, wire: Wire, ids: Ids) -> None:
        with self._lock:
            self._waiting.append((wire, ids))
            if len(self._waiting) >= self._hold:
                self._hold = 1
                for waiting, its_ids in self._waiting:
                    waiting.send(ack(its_ids, b""))
                self._waiting.clear()

    @property
    def notifies(self) -> list[list[Notify]]:
        """Those of each connection that has some."""
        decoded = [[frame(data) for data in frames] for frames in self.frames.values()]
        found = [[one for one in frames if isinstance(one, Notify)] for frames in decoded]
        return [frames for frames in found if frames]


def frame(data: bytes) -> Frame:
    ((found,), _) = codec.decode_frames(len(data).to_bytes(4, "big") + data)
    return found


def spoe_file(folder: Path, options: str = "") -> Path:
    path = folder / "ours.cfg"
    path.write_text(SPOE.replace("    option var-prefix", f"    {options}\n    option var-prefix"))
    return path


# --- byte for byte, against a capture ---


def captured() -> list[list[bytes]]:
    """What HAProxy 3.4 sent on each connection: the one with NOTIFY frames, then health checks."""
    connections = []
    with CAPTURE.open("rb") as file:
        streams: dict[Any, bytes] = {}
        for conversation, piece in Capture(file).pieces(live=False):
            if piece.source == conversation.first and isinstance(piece.data, bytes):
                streams[conversation] = streams.get(conversation, b"") + piece.data
    for sent in streams.values():
        frames = []
        while sent:
            end = 4 + int.from_bytes(sent[:4], "big")
            frames.append(sent[4:end])
            sent = sent[end:]
        connections.append(frames)
    return connections


def without_engine_id(data: bytes) -> bytes:
    """A HELLO whose engine-id, a UUID, is the same for all."""
    control = frame(data)
    assert isinstance(control, Control)
    engine_id = str(control.items["engine-id"])
    assert len(engine_id) == 36
    return data.replace(engine_id.encode(), b"-" * 36)


STREAMS = [("127.0.0.2", "GET", b""), ("127.0.0.3", "GET", b""), ("127.0.0.4", "POST", b"x" * 6000)]


def stream_fields(source: str, method: str, body: bytes) -> dict[str, object]:
    return {"source": IPv4Address(source), "request": Request(method, "/", body=body)}


def test_the_engine_sends_what_haproxy_3_4_sent(tmp_path: Path) -> None:
    with (
        Recorder() as agent,
        Engine.from_file(
            spoe_file(tmp_path), backends={"agents": agent.address}, haproxy_version="3.4"
        ) as engine,
    ):
        for source, method, body in STREAMS:
            engine.stream(**stream_fields(source, method, body)).event("on-frontend-http-request")
        ((greeting, *notifies),) = agent.frames.values()
    (their_greeting, *their_notifies), *_ = captured()
    assert without_engine_id(greeting) == without_engine_id(their_greeting)
    assert notifies == their_notifies


def test_a_health_check_is_haproxys() -> None:
    _, (check,), *_ = captured()
    data = EngineConnection(healthcheck=True).data_to_send()
    assert data[4:] == check


# --- 20 exchanges on a connection, numbered on each ---

COUNT = 50
PATIENT: dict[str, Any] = {
    "haproxy_version": "3.4", "maximum": COUNT, "timeout": 60.0, "hello_timeout": 60.0
}  # fmt: skip
"""Settings of a client: with 50 threads and connections on a busy machine, each takes its time."""


def through_haproxy(binary: str, folder: Path, agent: Recorder, options: str) -> None:
    spoe = spoe_file(folder, options).read_text()
    config = CONFIG.format(agent=agent.address)
    with (
        Proxied(binary, folder, config=config, spoe=spoe) as proxy,
        ThreadPoolExecutor(COUNT) as pool,
    ):

        def ask(_: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
            with contextlib.closing(connection):
                connection.request("GET", "/")
                assert connection.getresponse().status == 200

        list(pool.map(ask, range(COUNT)))


def through_engine(folder: Path, agent: Recorder, options: str) -> None:
    spoe, backends = spoe_file(folder, options), {"agents": agent.address}
    with (
        Engine.from_file(spoe, backends=backends, haproxy_version="3.4") as engine,
        ThreadPoolExecutor(COUNT) as pool,
    ):

        def ask(_: int) -> None:
            processing = engine.stream(request=Request()).event("on-frontend-http-request")
            assert processing is not None
            assert processing.status == 0

        list(pool.map(ask, range(COUNT)))


def through_async_engine(folder: Path, agent: Recorder, options: str) -> None:
    async def ask() -> None:
        spoe, backends = spoe_file(folder, options), {"agents": agent.address}
        async with AsyncEngine.from_file(spoe, backends=backends, haproxy_version="3.4") as engine:
            found = await asyncio.gather(
                *(
                    engine.stream(request=Request()).event("on-frontend-http-request")
                    for _ in range(COUNT)
                )
            )
            assert all(processing is not None and not processing.status for processing in found)

    asyncio.run(ask())


def through_client(folder: Path, agent: Recorder, options: str) -> None:
    with (
        Client(agent.address, **PATIENT) as client,
        ThreadPoolExecutor(COUNT) as pool,
    ):
        list(pool.map(lambda _: client.notify("check"), range(COUNT)))


def through_async_client(folder: Path, agent: Recorder, options: str) -> None:
    async def ask() -> None:
        async with AsyncClient(agent.address, **PATIENT) as client:
            await asyncio.gather(*(client.notify("check") for _ in range(COUNT)))

    asyncio.run(ask())


OURS = {
    "engine": through_engine,
    "async-engine": through_async_engine,
    "client": through_client,
    "async-client": through_async_client,
}


def assert_shape(agent: Recorder, most: int) -> None:
    assert sum(map(len, agent.notifies)) == COUNT
    for frames in agent.notifies:
        # Those on one connection that came while none was answered.
        assert len(frames) <= most
        assert [(one.stream_id, one.frame_id) for one in frames] == [
            (1 + 2 * number, 1) for number in range(len(frames))
        ]
    for first, *_ in agent.frames.values():
        greeting = frame(first)
        assert isinstance(greeting, Control)
        assert greeting.items["capabilities"] == "pipelining"


@pytest.mark.parametrize(("capabilities", "most"), [("pipelining", 20), ("", 1)])
@pytest.mark.parametrize("way", OURS)
def test_a_connection_has_20_exchanges_at_most(
    way: str, capabilities: str, most: int, tmp_path: Path
) -> None:
    with Recorder(COUNT, capabilities) as agent:
        OURS[way](tmp_path, agent, "max-waiting-frames 45\n    option async")
        assert_shape(agent, most)


@those((3, 1))
@pytest.mark.parametrize(("capabilities", "most"), [("pipelining", 20), ("", 1)])
def test_haproxy_does_the_same(
    haproxy_binary: str, capabilities: str, most: int, tmp_path: Path
) -> None:
    with Recorder(COUNT, capabilities) as agent:
        through_haproxy(haproxy_binary, tmp_path, agent, "")
        assert_shape(agent, most)


def test_numbers_go_on_behind_what_could_not_be_sent_and_what_was_given_up() -> None:
    with Recorder() as agent, Client(agent.address, haproxy_version="3.4") as client:
        client.notify("check")
        with pytest.raises(TypeError):
            client.notify("check", x=object())  # type: ignore[arg-type]
        number = client.send([])
        client.wait(number)
        client.notify("check")
        ((*frames,),) = agent.notifies
    assert [one.stream_id for one in frames] == [1, 3, 5]


@pytest.mark.parametrize(("haproxy_version", "ids"), [("3.0", [2, 3, 4]), ("3.1", [1, 3, 5])])
def test_the_shape_is_that_of_3_1_and_later(haproxy_version: str, ids: list[int]) -> None:
    with Recorder() as agent, Client(agent.address, haproxy_version=haproxy_version) as client:
        for _ in ids:
            client.notify("check")
        ((*frames,),) = agent.notifies
    assert [one.stream_id for one in frames] == ids


# --- spop bench ---


def bench(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spop", "bench", address, "check", "--warm-up", "0", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("pure", ["", "1"])
@pytest.mark.parametrize(("mode", "most"), [("pipelined", 20), ("ping-pong", 1)])
def test_the_load_generator_has_the_shape(
    mode: str, most: int, pure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOP_PURE", pure)
    words = ["--haproxy-version", "3.4", "--count", "2000", "--connections", "2", "--mode", mode]
    with Recorder() as agent:
        done = bench(agent.address, *words, "--depth", "30", "--expect", "txn.x=1")
        assert done.returncode == 1, done.stderr  # The ACKs set nothing, which it must notice.
        assert "not as expected" in done.stdout
    with Recorder() as agent:
        done = bench(agent.address, *words, "--depth", "30")
        assert done.returncode == 0, done.stdout + done.stderr
        for frames in agent.notifies:
            ids = [one.stream_id for one in frames]
            assert ids == list(range(1, 2 * len(ids), 2))
        # One has more than its places. The other may have had few, as threads answer.
        assert max(map(len, agent.notifies)) > 300
    assert Plan(address=None, mode=mode, depth=30, haproxy_version="3.4").in_flight == most  # type: ignore[arg-type]


def test_the_load_generator_knows_no_async_there() -> None:
    done = bench("127.0.0.1:1", "--haproxy-version", "3.4", "--mode", "async")
    assert done.returncode == 2
    assert "HAProxy 3.4 has no async" in done.stderr
