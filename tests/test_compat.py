"""Agents of other packages: the same bytes to the original and to the drop-in give the same bytes.

The originals are installed for these tests. spoe-forge is for Python 3.12 and later by its own
word; it runs on 3.11 as well.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
import trustme
from haproxy import HAProxy
from serving import free_port

from spop import UNSET, Message, codec, compat
from spop.compat import samples
from spop.compat.codecs import accelerate
from spop.constants import FrameType
from spop.values import String, UInt32

pytest.importorskip("haproxyspoa")
pytest.importorskip("spoe_forge")

import spoe_forge.spoe_forge as forge
from haproxyspoa.payloads import ack, notify
from haproxyspoa.payloads.ack import AckPayload, ActionVarScope
from haproxyspoa.spoa_server import SpoaConnection, SpoaServer
from spoe_forge import ActionScope, SetVarAction, SpoeForge, UnsetVarAction

SOURCE = str(Path(compat.__file__).parents[2])

# The original leaves sockets open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

AGENTS = Path(__file__).parent / "compat_agents"
Frames = list[bytes]
Serve = Callable[[str, int], Awaitable[None]]


@pytest.fixture(autouse=True)
def originals() -> Iterator[None]:
    logging.getLogger("haproxyspoa").setLevel(logging.CRITICAL)
    logging.getLogger("spoe_forge").setLevel(logging.CRITICAL)
    yield
    compat.restore()


def hello(capabilities: str = "", size: int = 16380, version: str = "2.0", **items: Any) -> bytes:
    offered = {
        "supported-versions": version,
        "max-frame-size": UInt32(size),
        "capabilities": capabilities,
        **items,
    }
    return bytes(codec.encode_control(FrameType.HAPROXY_HELLO, offered))


def goodbye(code: int = 0, message: str = "normal") -> bytes:
    items = {"status-code": UInt32(code), "message": message}
    return bytes(codec.encode_control(FrameType.HAPROXY_DISCONNECT, items))


def notified(*messages: Message, stream_id: int = 3, frame_id: int = 1) -> bytes:
    return bytes(codec.encode_notify(stream_id, frame_id, messages))


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(20):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)


async def read_frames(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    """Frames, `count` of them or as many as there are; the last is empty if the agent closes."""
    frames = []
    async with asyncio.timeout(20):
        while len(frames) < count:
            try:
                length = await reader.readexactly(4)
                frames.append(await reader.readexactly(int.from_bytes(length, "big")))
            except (asyncio.IncompleteReadError, ConnectionError):
                return [*frames, b""]
    return frames


async def talk(serve: Serve, frames: Frames, count: int) -> list[bytes]:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # A failing handler's.
    port = free_port()
    task = asyncio.ensure_future(serve("127.0.0.1", port))
    reader, writer = await connect(port)
    writer.write(b"".join(frames))
    try:
        return await read_frames(reader, count)
    finally:
        writer.close()
        await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])
        task.cancel()
        await asyncio.wait([task], timeout=5)


def both(new: Callable[[], Serve], frames: Frames, count: int) -> tuple[list[bytes], list[bytes]]:
    """What the original and the drop-in answer to the same bytes."""
    original = asyncio.run(talk(new(), frames, count))
    compat.install()
    return original, asyncio.run(talk(new(), frames, count))


EVERY_TYPE = Message(
    "every",
    [
        ("null", None), ("yes", True), ("no", False), ("small", -5), ("large", 2**64 - 1),
        ("v4", IPv4Address("192.0.2.1")), ("v6", IPv6Address("2001:db8::1")), ("text", "/a?b=c"),
        ("bytes", b"\x00\xff" * 300), ("src-ip", 1), ("", 1), ("yes", 7), ("empty", ""),
    ],
)  # fmt: skip
ONE_NAME_EACH = Message(
    "every", dict(zip(EVERY_TYPE.names[:10], EVERY_TYPE.values[:10], strict=True))
)


# --- haproxyspoa ---


def spoa() -> Serve:
    agent = SpoaServer()

    @agent.handler("every")
    async def every(**arguments: Any) -> AckPayload:
        return AckPayload().set_txn_var("seen", repr(sorted(arguments.items())))

    @agent.handler("two")
    async def first(value: Any = None) -> AckPayload:
        await asyncio.sleep(0.01)
        return AckPayload().set_var(ActionVarScope.PROCESS, "first", 1)

    @agent.handler("two")
    async def second(value: Any = None) -> AckPayload:
        return AckPayload().set_var(ActionVarScope.RESPONSE, "second", value)

    @agent.handler("values")
    async def values() -> AckPayload:
        reply = AckPayload()
        for value in samples.VALUES:
            if is_taken_by_spoa(value):
                reply.set_txn_var("value", value)
        return reply

    @agent.handler("fails")
    async def fails() -> AckPayload:
        raise ValueError("it fails")

    @agent.handler("none")
    async def none() -> None: ...

    @agent.handler("plain")
    def plain() -> AckPayload:
        return AckPayload()

    @agent.handler("list")
    async def lists() -> list[Any]:
        return [AckPayload()]

    @agent.handler("odd")
    async def odd() -> AckPayload:
        return AckPayload([Foreign()])

    return agent._run


class Foreign:
    """An action that knows its own bytes."""

    def to_bytes(self) -> bytes:
        return b"\x09\x00"


def is_taken_by_spoa(value: Any) -> bool:
    """The original can encode it."""
    text = value.isascii() if isinstance(value, str) else True
    number = 0 <= value < 2**64 if isinstance(value, int) else True
    return text and number and not isinstance(value, (type(None), float, bytearray))


@pytest.mark.parametrize(
    "frames, count",
    [
        ([hello()], 1),
        ([hello("pipelining,async", **{"engine-id": "an id"})], 1),
        ([hello(healthcheck=True)], 1),
        ([hello(), goodbye()], 2),
        ([hello(), goodbye(4, "invalid")], 2),
        ([hello(), notified(EVERY_TYPE)], 2),
        ([hello(), notified(Message("nobody", a=1))], 2),
        ([hello(), notified()], 2),
        ([hello(), notified(Message("two", value=5), Message("every"), stream_id=300)], 2),
        ([hello(), notified(Message("two", value=5), Message("two", value="last"))], 2),
        ([hello(), notified(Message("values"))], 2),
        ([hello(), notified(Message("odd"))], 2),
        ([hello(), *(notified(Message("two", value=i), frame_id=i) for i in range(30))], 31),
        ([hello(), bytes(codec.encode_raw_frame(0, 1, 1, 1, b"")), notified(EVERY_TYPE)], 2),
        ([hello(), notified(Message("every", a=1), Message("fails"))], 2),
        ([hello(), notified(Message("two")), notified(Message("fails")), goodbye()], 4),
        ([hello(), notified(Message("none"))], 2),
        ([hello(), notified(Message("plain"))], 2),
        ([hello(), notified(Message("list"))], 2),
        ([hello(), notified(Message("fails", unexpected=1))], 2),
    ],
)
def test_haproxyspoa_gives_the_same_bytes(frames: Frames, count: int) -> None:
    original, ours = both(spoa, frames, count)
    assert ours == original
    assert ours


@pytest.mark.parametrize("value", [-1, -(2**63), "gr\u00fc\u00df"])
def test_a_value_that_haproxyspoa_lost_its_connection_on_is_answered(value: object) -> None:
    agent = SpoaServer()

    @agent.handler("value")
    async def handler(**_: Any) -> AckPayload:
        return AckPayload().unset_var(ActionVarScope.SESSION, "old").set_txn_var("new", value)

    compat.install()
    asked = notified(Message("value", text=String(b"gr\xfc\xdf")))
    frame = asyncio.run(talk(agent._run, [hello(), asked], 2))[1]
    actions = codec.decode_actions(frame[7:])
    assert [(each.variable, each.value) for each in actions] == [
        ("sess.old", UNSET),
        ("txn.new", value),
    ]


def test_handlers_of_haproxyspoa_outlive_their_connection() -> None:
    """Requests may share a future, which the first one's handler sets."""
    agent = SpoaServer()
    ended: list[str] = []

    async def run() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        @agent.handler("long")
        async def long() -> AckPayload:
            begun.set()
            await go_on.wait()
            ended.append("long")
            return AckPayload()

        port = free_port()
        task = asyncio.ensure_future(agent._run("127.0.0.1", port))
        _, writer = await connect(port)
        writer.write(hello() + notified(Message("long")))
        await begun.wait()
        writer.transport.abort()
        reader, other = await connect(port)  # Once it is served, the first one's end is known.
        other.write(hello())
        await read_frames(reader, 1)
        go_on.set()
        while not ended:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        other.close()

    compat.install()
    asyncio.run(asyncio.wait_for(run(), 30))
    assert ended == ["long"]


def test_handlers_run_on_the_callers_event_loop_and_late_ones_are_found() -> None:
    agent = SpoaServer()
    loops: list[object] = []

    async def late(**_: Any) -> AckPayload:
        loops.append(asyncio.get_running_loop())
        assert asyncio.current_task() is not None
        return AckPayload()

    async def run(host: str, port: int) -> None:
        loops.append(asyncio.get_running_loop())
        agent.handlers["late"].append(late)
        await agent._run(host, port)

    compat.install()
    assert asyncio.run(talk(run, [hello(), notified(Message("late"))], 2))[1]
    assert loops[0] is loops[1]


def test_to_install_twice_is_to_install_once() -> None:
    original = SpoaServer._run
    compat.install()
    first = SpoaServer._run
    compat.install()
    assert SpoaServer._run is first
    compat.restore()
    assert SpoaServer._run is original


def test_an_event_loop_of_uvloop_serves(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")
    compat.install()
    asked = [hello(), notified(Message("two", value=1)), notified(Message("every", a=1)), goodbye()]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert len(runner.run(talk(spoa(), asked, 5))) == 5


def test_an_agent_that_serves_connections_itself_keeps_its_server() -> None:
    class Own(SpoaServer):  # type: ignore[misc]
        async def handle_connection(self, reader: Any, writer: Any) -> None:
            writer.write(b"\x00\x00\x00\x03own")

    compat.install()
    assert asyncio.run(talk(Own()._run, [hello()], 1)) == [b"own"]


def counted(calls: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which also says that it was called."""

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        calls.append(function.__name__)
        return function(*args, **options)

    return wrapper


@pytest.mark.parametrize(
    "new, owner, name",
    [
        (spoa, SpoaServer, "handle_connection"),
        (spoa, None, "handle_connection"),
        (spoa, SpoaConnection, "handle_haproxy_notify"),
        (spoa, ack.ActionSetVar, "to_bytes"),
        (lambda: forged(), SpoeForge, "_notify_handler"),
        (lambda: forged(), None, "_notify_handler"),
        (lambda: forged(), "_registry", "handle_message"),
        (lambda: forged(), forge.AgentRegistry, "handle_message"),
        (lambda: forged(), forge.ForgeHandler, "core_handler"),
    ],
)
def test_what_an_agent_has_changed_of_the_package_is_called(
    new: Callable[[], Any], owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent may count or trace what its server does. None: on its own object."""
    compat.install()
    serve = new()
    if not isinstance(owner, type):
        owner = getattr(serve.__self__, owner) if owner else serve.__self__
    calls: list[str] = []
    monkeypatch.setattr(owner, name, counted(calls, getattr(owner, name)))
    asked = [hello(), notified(Message("values"))]
    assert len(asyncio.run(talk(serve, asked, 2))) == 2
    assert name in calls


@pytest.mark.parametrize("new", [spoa, lambda: forged()])
def test_without_a_file_descriptor_to_spare_connections_are_served(
    new: Callable[[], Serve], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dup(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    compat.install()
    monkeypatch.setattr(os, "dup", dup)
    asked = [hello(), *(notified(Message("values"), frame_id=i) for i in range(30)), goodbye()]
    assert len(asyncio.run(talk(new(), asked, 32))) == 32


def test_the_log_of_haproxyspoa_stays(caplog: pytest.LogCaptureFixture) -> None:
    logs = []
    for install in (False, True):
        if install:
            compat.install()
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "haproxyspoa.logging"):
            frames = [hello(), notified(Message("two", value=1)), goodbye(4, "why")]
            asyncio.run(talk(spoa(), frames, 3))
        lines = [(each.levelname, each.getMessage()) for each in caplog.records]
        logs.append([(level, text.partition("] ")[2]) for level, text in lines])
    assert logs[0] == logs[1]
    assert len(logs[0]) > 5


def test_answers_wait_for_a_peer_that_reads_late() -> None:
    agent = SpoaServer()

    @agent.handler("large")
    async def large() -> AckPayload:
        return AckPayload().set_txn_var("a", "x" * 16000)

    async def run() -> int:
        port = free_port()
        task = asyncio.ensure_future(agent._run("127.0.0.1", port))
        reader, writer = await connect(port)
        writer.write(hello() + notified(Message("large")) * 2000)
        await asyncio.sleep(0.1)  # So that the kernel's buffers are full.
        frames = await read_frames(reader, 2001)
        writer.close()
        task.cancel()
        await asyncio.wait([task])
        return len(frames)

    compat.install()
    assert asyncio.run(run()) == 2001


def test_an_ack_that_fits_no_frame_closes_the_connection() -> None:
    agent = SpoaServer()

    @agent.handler("large")
    async def large() -> AckPayload:
        return AckPayload().set_txn_var("a", "x" * 16380)

    compat.install()
    frames = asyncio.run(talk(agent._run, [hello(), notified(Message("large"))], 2))
    assert frames[1:] == [b""]


SPOE = """
spoe-agent test-agent
    messages response
    option var-prefix test
    option set-on-error err
    timeout hello 5s
    timeout idle 1m
    timeout processing 10s

spoe-message response
    args status=req.hdr_val(content-length),mul(500)
    event on-frontend-http-request
"""
RULES = """
    http-request redirect location /%[var(txn.test.err)] if { var(txn.test.err) -m found }
    http-request redirect location /%[var(txn.test.passed)]
"""


def test_a_failing_handler_of_haproxyspoa_fires_set_on_error(
    haproxy_binary: str, tmp_path: Path
) -> None:
    port = free_port()
    with run("-m", "spop.compat", str(AGENTS / "spoa.py"), "127.0.0.1", str(port)) as agent:
        try:
            address = f"127.0.0.1:{port}"
            with HAProxy(haproxy_binary, tmp_path, agent=address, spoe=SPOE, rules=RULES) as proxy:
                proxy.wait_until_up()
                answers = [proxy.request(body=body) for body in (b"", b"1", b"")]
        finally:
            agent.terminate()
    assert [answer.location for answer in answers] == ["/1", "/257", "/1"]
    assert max(answer.seconds for answer in answers) < 5


# --- spoe-forge ---


def forged() -> Serve:
    agent = SpoeForge("test", max_concurrent_frames=3)

    @agent.message("every")
    async def every(context: Any) -> list[Any]:
        return [SetVarAction(ActionScope.TRANSACTION, "seen", repr(context.get_args()))]

    @agent.message("plain")
    def plain(context: Any) -> list[Any]:
        value = context.get_arg("value", "none")
        return [SetVarAction(ActionScope.PROCESS, "n\u00fcme", value), UnsetVarAction(4, "gone")]

    @agent.message("values")
    async def values(context: Any) -> list[Any]:
        return [SetVarAction(ActionScope.SESSION, "a", value) for value in samples.VALUES]

    @agent.message("fails")
    async def fails(context: Any) -> list[Any]:
        raise ValueError("it fails")

    @agent.message("tuple")
    def returns_tuple(context: Any) -> Any:
        return (SetVarAction(ActionScope.SESSION, "a", 1),)

    @agent.message("large")
    def large(context: Any) -> list[Any]:
        sizes = (5, 4000, 80, 2000, 3)
        return [SetVarAction(ActionScope.REQUEST, "large", "x" * size) for size in sizes]

    @agent.message("junk")
    def junk(context: Any) -> list[Any]:
        return [SetVarAction(ActionScope.SESSION, "a", 1), "junk"]

    @agent.message("scope")
    async def scope(context: Any) -> list[Any]:
        return [SetVarAction("txn", "a", 1)]

    @agent.message("stops")
    def stops(context: Any) -> list[Any]:
        raise StopIteration

    return agent.serve


@pytest.mark.parametrize("capabilities", ["", "pipelining", "async,pipelining"])
@pytest.mark.parametrize(
    "frames, count",
    [
        ([], 1),
        ([goodbye()], 2),
        ([goodbye(3, "too big")], 2),
        ([notified(ONE_NAME_EACH)], 2),
        ([notified(Message("every", text=String(b"gr\xfc\xdf"), utf8="gr\u00fc\u00df"))], 2),
        ([notified(Message("nobody", a=1))], 2),
        ([notified(Message("plain", value=None), Message("every"), Message("plain"))], 2),
        ([notified(Message("values"))], 2),
        ([notified(Message("fails"), Message("plain"))], 2),
        ([notified(Message("tuple"), Message("plain"))], 2),
        ([notified(Message("large"), stream_id=2**40)], 2),
        ([notified(Message("junk"))], 2),
        ([notified(Message("scope"))], 2),
        ([notified(Message("every", [("a", 1), ("a", 2)]))], 3),
        ([bytes(codec.encode_raw_frame(103, 1, 1, 1, b""))], 3),
        ([bytes(codec.encode_raw_frame(77, 1, 1, 1, b""))], 3),
        ([bytes(codec.encode_raw_frame(3, 1, 1, 1, bytes(4090)))], 3),
        ([bytes(codec.encode_raw_frame(3, 0, 1, 1, b"\x05every\x00"))], 2),
    ],
)
def test_spoe_forge_gives_the_same_bytes(frames: Frames, count: int, capabilities: str) -> None:
    original, ours = both(forged, [hello(capabilities), *frames], count)
    assert ours == original
    assert ours


@pytest.mark.parametrize(
    "frames, count",
    [
        ([hello("pipelining", healthcheck=True)], 2),
        ([hello(version="1.0")], 2),
        ([hello(version="1.0, 2.4,2.0", size=300)], 1),
        ([bytes(codec.encode_control(FrameType.HAPROXY_HELLO, {"capabilities": ""}))], 2),
        ([notified(ONE_NAME_EACH)], 2),
    ],
)
def test_spoe_forge_says_the_same_hello(frames: Frames, count: int) -> None:
    original, ours = both(forged, frames, count)
    assert ours == original
    assert ours


def test_frames_of_spoe_forge_are_answered_once_each_beyond_the_limit() -> None:
    def frames(name: str) -> Frames:
        return [notified(Message(name, value=i), stream_id=i, frame_id=i) for i in range(100)]

    asked = [*frames("plain"), *frames("every")]
    original, ours = both(forged, [hello("pipelining"), *asked], 201)
    assert len(ours) == 201
    assert sorted(ours) == sorted(original)


def test_an_exception_that_no_future_takes_fails_its_message_alone() -> None:
    compat.install()
    asked = [hello(), notified(Message("stops")), notified(Message("plain"))]
    frames = asyncio.run(talk(forged(), asked, 3))
    assert [len(frame) > 7 for frame in frames] == [True, False, True]


def test_blocking_handlers_of_spoe_forge_run_at_the_same_time() -> None:
    import threading

    agent = SpoeForge("test")
    barrier = threading.Barrier(3)

    @agent.message("meet")
    def meet(context: Any) -> list[Any]:
        barrier.wait(20)
        return [SetVarAction(ActionScope.SESSION, "met", True)]

    @agent.message("short")
    def short(context: Any) -> list[Any]:
        return []

    compat.install()
    asked = [notified(Message("short"), frame_id=i) for i in range(200)]
    asked += [notified(Message("meet"), frame_id=i) for i in range(3)]
    frames = asyncio.run(talk(agent.serve, [hello("pipelining"), *asked], 204))
    assert sum(len(frame) > 12 for frame in frames[1:]) == 3


def test_handlers_of_spoe_forge_are_cancelled_with_their_connection() -> None:
    agent = SpoeForge("test")
    ended: list[str] = []

    async def run() -> None:
        begun, gone = asyncio.Event(), asyncio.Event()

        @agent.message("long")
        async def long(context: Any) -> list[Any]:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("long")
                gone.set()
            return []

        port = free_port()
        task = asyncio.ensure_future(agent.serve("127.0.0.1", port))
        _, writer = await connect(port)
        writer.write(hello("pipelining") + notified(Message("long")))
        await begun.wait()
        writer.close()
        await gone.wait()
        task.cancel()
        await asyncio.wait([task])

    compat.install()
    asyncio.run(asyncio.wait_for(run(), 30))
    assert ended == ["long"]


def test_spoe_forge_serves_tls() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    agent = forged()

    async def run() -> list[bytes]:
        port = free_port()
        task = asyncio.ensure_future(agent("127.0.0.1", port, ssl=server))  # type: ignore[call-arg]
        _, probe = await connect(port)
        probe.close()
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname="localhost"
        )
        writer.write(hello() + notified(Message("plain", value=1)) + goodbye())
        frames = await read_frames(reader, 4)
        writer.close()
        task.cancel()
        await asyncio.wait([task])
        return frames

    compat.install()
    assert len(asyncio.run(run())) == 4


def test_the_log_of_spoe_forge_stays(caplog: pytest.LogCaptureFixture) -> None:
    logs = []
    for install in (False, True):
        if install:
            compat.install()
        caplog.clear()
        with caplog.at_level(logging.INFO, "spoe_forge"):
            names = "plain", "nobody", "tuple", "fails", "large", "values"
            frames = [notified(Message(name)) for name in names]
            asyncio.run(talk(forged(), [hello(), *frames, goodbye(4, "why")], 8))
        logs.append([(each.name, each.levelname, each.getMessage()) for each in caplog.records[1:]])
    assert logs[0] == logs[1]
    assert len(logs[0]) > 8


def test_a_connection_that_ends_before_hello_is_no_error_of_spoe_forge(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def end() -> bytes:
        port = free_port()
        task = asyncio.ensure_future(SpoeForge("agent").serve("127.0.0.1", port))
        reader, writer = await connect(port)
        writer.write_eof()
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        task.cancel()
        await asyncio.wait([task])
        return answer

    compat.install()
    with caplog.at_level(logging.INFO, "spoe_forge"):
        assert asyncio.run(end()) == b""
    assert [each.levelname for each in caplog.records] == ["INFO"]


# --- codecs ---


@pytest.mark.parametrize("package, count", [("haproxyspoa", 2), ("spoe-forge", 5)])
def test_all_functions_of_a_codec_are_replaced_and_put_back(package: str, count: int) -> None:
    before = notify.parse_list_of_messages, ack.AckPayload.to_bytes, forge.SpoeForge.serve
    result = accelerate(package)
    assert result.left == {}
    assert len(result.replaced) == count
    compat.restore()
    after = notify.parse_list_of_messages, ack.AckPayload.to_bytes, forge.SpoeForge.serve
    assert after == before


@pytest.mark.parametrize("package, new", [("haproxyspoa", spoa), ("spoe-forge", forged)])
def test_a_replaced_codec_gives_the_same_bytes(package: str, new: Callable[[], Serve]) -> None:
    asked = [hello(), notified(Message("every", a=1, b="text")), notified(Message("nobody"))]
    asked += [notified(Message("values")), goodbye()]
    original = asyncio.run(talk(new(), asked, 5))
    accelerate(package)
    assert asyncio.run(talk(new(), asked, 5)) == original


def test_what_has_other_results_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notify, "parse_list_of_messages", lambda payload: {"other": {}})
    result = accelerate("haproxyspoa")
    assert result.replaced == ["haproxyspoa.payloads.ack.AckPayload.to_bytes"]
    assert list(result.left) == ["haproxyspoa.payloads.notify.parse_list_of_messages"]
    assert "is not replaced" in caplog.text


def test_a_package_without_a_drop_in_is_refused() -> None:
    with pytest.raises(ValueError, match="haproxyspoa or spoe-forge"):
        accelerate("other")


# --- the command ---


def run(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], text=True, stderr=subprocess.PIPE, **options
    )


REQUEST = notified(
    Message("request", path="/a", headers="a: b\r\n", client_ip=IPv4Address(1), pass_cookie=None)
)
COOKIE = notified(
    Message("request", path="/a", headers="", client_ip=IPv4Address(1), pass_cookie=b"c=d"),
    frame_id=2,
)


@pytest.mark.parametrize("script", ["spoa.py", "forge_async.py", "forge_threads.py"])
@pytest.mark.parametrize("options", [[], ["--codec-only"]])
def test_an_agent_runs_unchanged(script: str, options: list[str]) -> None:
    asked = [hello(), REQUEST, COOKIE, notified(Message("response", status=200, a=1))]
    asked.append(notified(Message("response", status=500)))
    found = []
    for command in ([], ["-m", "spop.compat", *options]):
        port = free_port()
        agent = run(*command, str(AGENTS / script), "127.0.0.1", str(port))
        try:
            found.append(asyncio.run(ask(port, asked)))
        finally:
            agent.terminate()
            assert agent.wait(20) == -signal.SIGTERM  # It handles no signal of its own accord.
            assert agent.stderr is not None
            agent.stderr.close()
    assert found[0] == found[1]
    assert len(found[0]) == 5


async def ask(port: int, frames: Frames) -> list[bytes]:
    """As HAProxy in lock step: each frame after the answer to the last one."""
    reader, writer = await connect(port)
    answers: list[bytes] = []
    for frame in frames:
        writer.write(frame)
        answers += await read_frames(reader, 1)
    writer.close()
    return answers


def test_nothing_is_imported_before_the_script_does_it(tmp_path: Path) -> None:
    """Importing haproxyspoa configures logging."""
    script = tmp_path / "script.py"
    script.write_text(
        "import logging, sys\n"
        "import spoe_forge\n"
        "assert not logging.getLogger().handlers\n"
        "import haproxyspoa.spoa_server as server\n"
        "assert logging.getLogger().handlers\n"
        "assert server.SpoaServer._run.__module__.startswith('spop.compat')\n"
        "assert spoe_forge.SpoeForge.serve.__module__.startswith('spop.compat')\n"
        "assert sys.argv[1:] == ['--an', 'argument'], sys.argv\n"
        "assert __name__ == '__main__'\n"
        f"assert sys.path[0] == {str(tmp_path)!r}\n"
    )
    with run("-m", "spop.compat", str(script), "--an", "argument") as process:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0


def test_the_codec_alone_is_replaced_while_the_script_imports_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import spoe_forge\nimport haproxyspoa.spoa_server\n")
    with run("-m", "spop.compat", "--codec-only", str(script)) as process:
        assert process.communicate(timeout=60)[1] == ""  # Nothing is left alone.
        assert process.returncode == 0


@pytest.mark.parametrize(
    "there, line",
    [
        ([], "neither haproxyspoa nor spoe-forge is installed"),
        (["haproxyspoa"], "No module named 'spoe_forge'"),
    ],
)
def test_a_package_that_is_missing_is_one_line(there: list[str], line: str, tmp_path: Path) -> None:
    for name in there:
        (tmp_path / f"{name}.py").touch()
    script = tmp_path / "script.py"
    script.write_text("import spoe_forge\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{SOURCE}"}
    # Without the packages that are installed.
    with run("-S", "-m", "spop.compat", str(script), env=environment) as process:
        assert process.communicate(timeout=60)[1] == f"spop.compat: {line}\n"
        assert process.returncode == 2


@pytest.mark.parametrize(
    "line", ["import nothing_of_this_name", "raise ModuleNotFoundError('nothing_of_this_name')"]
)
def test_an_error_of_the_script_is_its_own(line: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(line)
    with run("-m", "spop.compat", str(script)) as process:
        text = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert "nothing_of_this_name" in text
        assert "Traceback" in text


SAYS = """
import sys, threading
path = __file__
def end():
    threading.main_thread().join()
    print(sys.argv[1:], sys.path[0], path, __name__, file=sys.stderr)
threading.Thread(target=end).start()
"""


@pytest.mark.parametrize("options", [[], ["-P"]])
@pytest.mark.parametrize("arguments", [["-h"], ["--codec-only", "-x"], ["a", "--", "b"]])
def test_a_script_finds_what_python_alone_shows_it(
    options: list[str], arguments: list[str], tmp_path: Path
) -> None:
    """Called by a relative name, which is a link, and going on in a thread."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "agent.py").write_text(SAYS)
    (tmp_path / "link.py").symlink_to(tmp_path / "app" / "agent.py")
    environment = os.environ | {"PYTHONPATH": SOURCE}
    texts = []
    for command in ([], ["-m", "spop.compat"]):
        command = [*options, *command, "link.py", *arguments]
        with run(*command, cwd=tmp_path, env=environment) as process:
            texts.append(process.communicate(timeout=60)[1])
            assert process.returncode == 0
    assert texts[0] == texts[1]
    assert str(arguments) in texts[0]


def test_the_package_may_be_beside_the_script(tmp_path: Path) -> None:
    (tmp_path / "haproxyspoa.py").touch()
    (tmp_path / "agent.py").write_text("import haproxyspoa")
    environment = os.environ | {"PYTHONPATH": SOURCE}
    with run("-S", "-m", "spop.compat", str(tmp_path / "agent.py"), env=environment) as process:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
