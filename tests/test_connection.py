"""The state machines, driven by bytes: handshake, exchanges, fragmentation, endings."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from typing import Any

import haproxy_1_7
import pytest

from spop import Action, LocalProtocolError, Message, codec
from spop.connection import (
    AgentConnection,
    Disconnect,
    EngineConnection,
    Hello,
    State,
)
from spop.constants import MAX_ANSWER_SIZE, FrameFlag, FrameType, Status
from spop.dispatch import Dispatcher, Route
from spop.errors import FrameTooBigError
from spop.frames import Ack, Control, Notify, RawFrame
from spop.values import UInt32

HELLO: dict[str, Any] = {
    "supported-versions": "2.0",
    "max-frame-size": UInt32(16380),
    "capabilities": "pipelining,async",
    "engine-id": "engine",
}


def hello(**changes: Any) -> bytes:
    items = {**HELLO, **{key.replace("_", "-"): value for key, value in changes.items()}}
    present = {key: value for key, value in items.items() if value is not None}
    return bytes(codec.encode_control(FrameType.HAPROXY_HELLO, present))


def notify(stream_id: int, name: str = "m", **kwargs: Any) -> bytes:
    return bytes(codec.encode_notify(stream_id, 1, [Message(name)], **kwargs))


def fragment(type_: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return bytes(codec.encode_raw_frame(type_, flags, stream_id, 1, payload))


def sent(connection: AgentConnection | EngineConnection, **kwargs: Any) -> list[Any]:
    data = connection.data_to_send()
    frames, consumed = codec.decode_frames(data, **kwargs)
    assert consumed == len(data)
    return frames


def opened(**options: Any) -> AgentConnection:
    connection = AgentConnection(**options)
    connection.receive_data(hello())
    connection.data_to_send()
    assert connection.state is State.OPEN
    return connection


def lock_step(**options: Any) -> AgentConnection:
    connection = AgentConnection(**options)
    connection.receive_data(hello(capabilities=""))
    connection.data_to_send()
    return connection


# --- the agent's handshake ---


def test_hello_is_answered_with_version_size_and_capabilities() -> None:
    connection = AgentConnection(address="peer:1")
    (event,) = connection.receive_data(hello())
    assert isinstance(event, Hello)
    peer = event.peer
    assert (peer.version, peer.max_frame_size, peer.engine_id) == ("2.0", 16380, "engine")
    assert peer.capabilities == {"pipelining", "async", "fragmentation"}
    assert sent(connection) == [
        Control(
            FrameType.AGENT_HELLO,
            {
                "version": "2.0",
                "max-frame-size": 16380,
                "capabilities": "async,fragmentation,pipelining",
            },
        )
    ]
    assert not connection.should_close


def test_hello_may_come_byte_by_byte() -> None:
    connection = AgentConnection()
    data = hello()
    for number in range(len(data) - 1):
        assert connection.receive_data(data[number : number + 1]) == []
    assert len(connection.receive_data(data[-1:])) == 1


@pytest.mark.parametrize(
    ("announced", "version"),
    [("1.0", "1.0"), ("2.0", "2.0"), ("2.0, 1.5", "2.0"), (" 1.5 ,3.0", "1.0"), ("2.7", "2.0")],
)
def test_the_highest_common_version_is_chosen(announced: str, version: str) -> None:
    connection = AgentConnection()
    connection.receive_data(hello(supported_versions=announced))
    assert connection.peer is not None
    assert connection.peer.version == version


def test_the_lower_frame_size_counts_from_then_on() -> None:
    connection = AgentConnection(max_frame_size=1000)
    connection.receive_data(hello(max_frame_size=UInt32(500)))
    assert connection.max_frame_size == 500
    events = connection.receive_data(fragment(FrameType.NOTIFY, 1, 1, bytes(500)))
    assert events == [Disconnect(Status.TOO_BIG, "frame of 507 bytes, 500 at most", False)]
    assert AgentConnection(max_frame_size=256).receive_data(hello()) != []


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"supported_versions": None}, Status.NO_VERSION),
        ({"max_frame_size": None}, Status.NO_FRAME_SIZE),
        ({"capabilities": None}, Status.NO_CAPABILITIES),
        ({"supported_versions": "3.0"}, Status.BAD_VERSION),
        ({"supported_versions": "two"}, Status.BAD_VERSION),
        ({"supported_versions": ""}, Status.BAD_VERSION),
        ({"max_frame_size": UInt32(255)}, Status.BAD_FRAME_SIZE),
        ({"supported_versions": 2}, Status.INVALID),
        ({"max_frame_size": "16380"}, Status.INVALID),
        ({"max_frame_size": True}, Status.INVALID),
        ({"capabilities": b""}, Status.INVALID),
        ({"healthcheck": 1}, Status.INVALID),
        ({"engine_id": 1}, Status.INVALID),
    ],
    ids=str,
)
def test_a_bad_hello_ends_with_the_status_of_the_specification(
    changes: dict[str, Any], status: Status
) -> None:
    connection = AgentConnection()
    (event,) = connection.receive_data(hello(**changes))
    assert isinstance(event, Disconnect)
    assert (event.code, event.remote) == (status, False)
    (frame,) = sent(connection)
    assert frame.type is FrameType.AGENT_DISCONNECT
    assert frame.items["status-code"] == status
    assert connection.should_close


def test_capabilities_are_in_force_if_both_announce_them() -> None:
    connection = AgentConnection(capabilities=frozenset({"async", "fragmentation"}))
    connection.receive_data(hello(capabilities=" pipelining , unknown"))
    assert connection.peer is not None
    assert connection.peer.capabilities == {"fragmentation"}


def test_async_needs_an_engine_id() -> None:
    connection = AgentConnection()
    connection.receive_data(hello(engine_id=None))
    assert connection.peer is not None
    assert "async" not in connection.peer.capabilities


def test_a_health_check_is_answered_without_capabilities_and_closed() -> None:
    connection = AgentConnection()
    (event,) = connection.receive_data(hello(healthcheck=True))
    assert isinstance(event, Hello)
    assert event.peer.healthcheck
    (frame,) = sent(connection)
    assert (frame.type, frame.items["capabilities"]) == (FrameType.AGENT_HELLO, "")
    assert connection.should_close


def test_spop_1_0_in_host_order_is_answered_in_host_order() -> None:
    connection = AgentConnection()
    items = {**HELLO, "supported-versions": "1.0"}
    data = codec.encode_control(FrameType.HAPROXY_HELLO, items, little_endian=True)
    connection.receive_data(data + notify(1, little_endian=True))
    connection.acknowledge(1, 1)
    answer, ack = sent(connection, little_endian=True)
    assert answer.items["version"] == "1.0"
    assert ack == Ack(1, 1)


# --- HAProxy 1.7, which sets no flags ---


def test_a_health_check_without_flags_is_answered_and_closed() -> None:
    connection = AgentConnection()
    (event,) = connection.receive_data(haproxy_1_7.HEALTH_CHECK)
    assert isinstance(event, Hello)
    assert event.peer.healthcheck
    items = {"version": "1.0", "max-frame-size": 16384, "capabilities": ""}
    assert sent(connection) == [Control(FrameType.AGENT_HELLO, items)]
    assert connection.should_close


@pytest.mark.parametrize("size", [1, 9, 1000], ids=["bytes", "headers", "at once"])
def test_every_frame_is_whole_where_hello_had_no_flags(size: int) -> None:
    connection = AgentConnection()
    message = Message("m", ip=IPv4Address(1))
    data = haproxy_1_7.hello() + haproxy_1_7.notify(1, message) + haproxy_1_7.DISCONNECT
    events: list[Any] = []
    for start in range(0, len(data), size):
        events += connection.receive_data(data[start : start + size])
        events += connection.resume()
        if connection.in_flight:
            connection.acknowledge(1, 1, {"txn.x": 1})
            events += connection.resume()
    assert [type(event) for event in events] == [Hello, Notify, Disconnect]
    assert events[1:] == [Notify(1, 1, [message]), Disconnect(Status.NORMAL, "normal", True)]
    _, ack, goodbye = sent(connection)
    assert ack == Ack(1, 1, [Action("txn", "x", 1)])
    assert goodbye.type == FrameType.AGENT_DISCONNECT


def test_frames_stay_whole_in_another_process() -> None:
    first, second = AgentConnection(), AgentConnection()
    first.receive_data(haproxy_1_7.hello())
    first.data_to_send()
    second.resume_from(json.loads(json.dumps(first.negotiated())))
    message = Message("m")
    assert second.receive_data(haproxy_1_7.notify(1, message)) == [Notify(1, 1, [message])]


def test_no_fragments_come_where_hello_had_no_flags() -> None:
    connection = AgentConnection()
    connection.receive_data(haproxy_1_7.hello(capabilities="fragmentation,pipelining"))
    assert connection.peer is not None
    assert connection.peer.capabilities == frozenset()
    (event,) = connection.receive_data(fragment(FrameType.UNSET, 0, 1))
    assert isinstance(event, Disconnect)
    assert event.code == Status.FRAGMENTATION_NOT_SUPPORTED


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (haproxy_1_7.hello(supported_versions="3.0"), Status.BAD_VERSION),
        (haproxy_1_7.hello(supported_versions="2.0"), Status.BAD_VERSION),
        (haproxy_1_7.hello(supported_versions=None), Status.NO_VERSION),
        (haproxy_1_7.hello(max_frame_size=UInt32(100)), Status.BAD_FRAME_SIZE),
        (haproxy_1_7.hello(capabilities=None, healthcheck=True), Status.NO_CAPABILITIES),
        (haproxy_1_7.hello()[:-1] + b"\x05", Status.INVALID),
        (haproxy_1_7.hello(more=bytes(2**20)), Status.TOO_BIG),
    ],
    ids=["version", "2.0", "no version", "size", "no capabilities", "damage", "length"],
)
def test_a_hello_without_flags_that_fails_is_not_answered(data: bytes, code: Status) -> None:
    """HAProxy 1.7.0 crashes on a DISCONNECT whose status it does not know."""
    connection = AgentConnection()
    (event,) = connection.receive_data(data)
    assert isinstance(event, Disconnect)
    assert (event.code, event.remote) == (code, False)
    assert connection.should_close
    assert not connection.data_to_send()


def test_failures_behind_a_hello_without_flags_are_answered() -> None:
    connection = AgentConnection()
    connection.receive_data(haproxy_1_7.hello() + fragment(FrameType.NOTIFY, 0, 1, b"\x05m"))
    connection.resume()
    _, goodbye = sent(connection)
    assert goodbye.items["status-code"] == Status.INVALID


def test_nothing_but_hello_may_come_first() -> None:
    connection = AgentConnection()
    assert connection.receive_data(notify(1)) == [
        Disconnect(Status.INVALID, "NOTIFY frame in state HELLO", False)
    ]


def test_what_comes_before_our_hello_waits_until_that_is_sent() -> None:
    connection = AgentConnection()
    (event,) = connection.receive_data(hello() + notify(1))
    assert isinstance(event, Hello)
    assert connection.stalled
    assert connection.data_to_send()
    (event,) = connection.resume()
    assert isinstance(event, Notify)
    assert not connection.stalled


def test_hello_comes_once() -> None:
    (event,) = opened().receive_data(hello())
    assert isinstance(event, Disconnect)
    assert event.code == Status.INVALID


# --- the agent's exchanges ---


def test_notifies_are_events_and_acknowledged_in_any_order_when_pipelined() -> None:
    connection = opened()
    events = connection.receive_data(notify(1) + notify(2) + notify(3)[:9])
    assert events == [Notify(1, 1, [Message("m")]), Notify(2, 1, [Message("m")])]
    connection.acknowledge(2, 1, {"sess.x": 5})
    connection.acknowledge(1, 1)
    assert sent(connection) == [Ack(2, 1, [Action("sess", "x", 5)]), Ack(1, 1)]
    assert connection.receive_data(notify(3)[9:]) == [Notify(3, 1, [Message("m")])]


def test_messages_know_their_connection() -> None:
    connection = opened()
    (event,) = connection.receive_data(notify(1))
    assert isinstance(event, Notify)
    assert event.messages[0].connection is connection.peer
    assert event.messages[0].engine_id == "engine"


def test_without_pipelining_the_next_notify_waits_for_the_ack() -> None:
    connection = lock_step()
    assert len(connection.receive_data(notify(1) + notify(2))) == 1
    assert connection.paused
    assert connection.resume() == []
    connection.acknowledge(1, 1)
    assert connection.resume() == [Notify(2, 1, [Message("m")])]


def test_frames_in_flight_are_limited() -> None:
    connection = opened(max_in_flight=2)
    assert len(connection.receive_data(notify(1) + notify(2) + notify(3))) == 2
    assert connection.paused
    connection.acknowledge(2, 1)
    assert not connection.paused
    assert connection.resume() == [Notify(3, 1, [Message("m")])]


def test_an_ack_must_fit_a_frame() -> None:
    connection = opened()
    connection.receive_data(notify(1))
    with pytest.raises(FrameTooBigError):
        connection.acknowledge(1, 1, {"sess.x": bytes(16380)})
    connection.acknowledge(1, 1)
    assert sent(connection) == [Ack(1, 1)]


def test_frames_of_unknown_types_are_skipped() -> None:
    connection = opened()
    data = fragment(77, FrameFlag.FIN, 1) + notify(2)
    assert connection.receive_data(data) == [Notify(2, 1, [Message("m")])]


@pytest.mark.parametrize(
    "data",
    [
        codec.encode_ack(1, 1),
        codec.encode_control(FrameType.AGENT_HELLO, {}),
        codec.encode_control(FrameType.AGENT_DISCONNECT, {}),
    ],
    ids=["ACK", "AGENT-HELLO", "AGENT-DISCONNECT"],
)
def test_an_agents_frames_are_not_for_the_agent(data: bytes) -> None:
    (event,) = opened().receive_data(data)
    assert isinstance(event, Disconnect)
    assert event.code == Status.INVALID


def test_good_frames_before_a_bad_one_are_given_out() -> None:
    connection = opened()
    events = connection.receive_data(notify(1) + bytes.fromhex("00000001") + b"x")
    assert events == [
        Notify(1, 1, [Message("m")]),
        Disconnect(Status.INVALID, "frame of 1 bytes, 7 at least", False),
    ]
    assert connection.receive_data(notify(2)) == []


def test_large_answers_to_small_frames_are_sent_before_more_are_made() -> None:
    route = Route("m", lambda: {"sess.x": bytes(16_000)})
    connection = opened(dispatcher=Dispatcher([route]))
    connection.receive_data(notify(1) * 100)
    answered = 0
    while connection.stalled:
        data = connection.data_to_send()
        assert len(data) < MAX_ANSWER_SIZE + 16_380
        answered += len(codec.decode_frames(data)[0])
        assert connection.paused
        connection.resume()
    assert answered + len(sent(connection)) == 100
    assert not connection.paused


# --- fragmentation ---


def payload(size: int) -> bytes:
    return bytes(codec.encode_messages([Message("m", body=bytes(size))]))


def test_fragments_become_one_notify() -> None:
    connection = opened()
    data = payload(5000)
    assert connection.receive_data(fragment(FrameType.NOTIFY, 0, 1, data[:2000])) == []
    assert connection.receive_data(fragment(FrameType.UNSET, 0, 1, data[2000:4000])) == []
    (event,) = connection.receive_data(
        fragment(FrameType.UNSET, FrameFlag.FIN, 1, data[4000:]) + notify(2)
    )[:1]
    assert event == Notify(1, 1, [Message("m", body=bytes(5000))])


def test_what_follows_the_last_fragment_is_not_lost() -> None:
    connection = opened()
    data = payload(50)
    events = connection.receive_data(
        notify(5)
        + fragment(FrameType.NOTIFY, 0, 1, data[:10])
        + fragment(FrameType.UNSET, FrameFlag.FIN, 1, data[10:])
        + notify(6)
    )
    assert [event.stream_id for event in events if isinstance(event, Notify)] == [5, 1, 6]


@pytest.mark.parametrize(
    "second",
    [
        notify(2),
        fragment(FrameType.NOTIFY, 0, 2),
        fragment(FrameType.UNSET, FrameFlag.FIN, 2),
    ],
    ids=["another NOTIFY", "another first fragment", "a fragment of another"],
)
def test_interlaced_fragments_are_an_error(second: bytes) -> None:
    connection = opened()
    (event,) = connection.receive_data(fragment(FrameType.NOTIFY, 0, 1, b"x") + second)
    assert isinstance(event, Disconnect)
    assert event.code == Status.INTERLACED_FRAMES


def test_a_fragment_of_nothing_is_an_error() -> None:
    (event,) = opened().receive_data(fragment(FrameType.UNSET, FrameFlag.FIN, 1))
    assert isinstance(event, Disconnect)
    assert event.code == Status.INTERLACED_FRAMES


def test_an_aborted_payload_is_forgotten() -> None:
    connection = opened()
    events = connection.receive_data(
        fragment(FrameType.NOTIFY, 0, 1, b"garbage")
        + fragment(FrameType.UNSET, FrameFlag.FIN | FrameFlag.ABORT, 1)
        + notify(2)
    )
    assert events == [Notify(2, 1, [Message("m")])]


def test_a_payload_over_the_limit_is_aborted_and_its_rest_ignored() -> None:
    connection = opened(max_payload_size=1000)
    connection.receive_data(fragment(FrameType.NOTIFY, 0, 1, bytes(600)))
    connection.receive_data(fragment(FrameType.UNSET, 0, 1, bytes(600)))
    assert sent(connection) == [Ack(1, 1, aborted=True)]
    events = connection.receive_data(
        fragment(FrameType.UNSET, 0, 1, bytes(600))
        + fragment(FrameType.UNSET, FrameFlag.FIN, 1, bytes(600))
        + notify(2)
    )
    assert events == [Notify(2, 1, [Message("m")])]


def test_fragments_need_the_capability() -> None:
    connection = opened(capabilities=frozenset({"pipelining"}))
    (event,) = connection.receive_data(fragment(FrameType.NOTIFY, 0, 1))
    assert isinstance(event, Disconnect)
    assert event.code == Status.FRAGMENTATION_NOT_SUPPORTED


def test_a_malformed_payload_in_fragments_is_invalid() -> None:
    connection = opened()
    (event,) = connection.receive_data(
        fragment(FrameType.NOTIFY, 0, 1, b"\x05m") + fragment(FrameType.UNSET, FrameFlag.FIN, 1)
    )
    assert isinstance(event, Disconnect)
    assert event.code == Status.INVALID


# --- endings ---


@pytest.mark.parametrize("code", [*range(14), 99, 1234])
def test_haproxys_disconnect_is_answered(code: int) -> None:
    connection = opened()
    items = {"status-code": UInt32(code), "message": "because"}
    data = codec.encode_control(FrameType.HAPROXY_DISCONNECT, items)
    assert connection.receive_data(data + notify(1)) == [Disconnect(code, "because", True)]
    (frame,) = sent(connection)
    assert frame.type is FrameType.AGENT_DISCONNECT
    assert frame.items["status-code"] == 0
    assert connection.should_close


@pytest.mark.parametrize("items", [{}, {"status-code": 0}, {"status-code": "0", "message": "x"}])
def test_a_disconnect_without_its_items_is_invalid(items: dict[str, Any]) -> None:
    connection = opened()
    (event,) = connection.receive_data(codec.encode_control(FrameType.HAPROXY_DISCONNECT, items))
    assert isinstance(event, Disconnect)
    assert event.code == Status.INVALID


def test_the_agent_may_disconnect_with_a_status_of_its_own() -> None:
    connection = opened()
    connection.disconnect(200, "maintenance")
    connection.disconnect()
    (frame,) = sent(connection)
    assert frame.items == {"status-code": 200, "message": "maintenance"}
    with pytest.raises(LocalProtocolError):
        connection.acknowledge(1, 1)


def test_the_end_of_the_stream_is_told_once() -> None:
    connection = opened()
    connection.receive_data(notify(1)[:5])
    assert connection.receive_eof() == [Disconnect(Status.IO, "connection closed by peer", True)]
    assert connection.receive_eof() == []


@pytest.mark.parametrize("size", [0, 255])
def test_frame_sizes_below_256_are_refused(size: int) -> None:
    for end in (AgentConnection, EngineConnection):
        with pytest.raises(ValueError, match="256 at least"):
            end(max_frame_size=size)


# --- the engine's end ---


def agent_hello(**changes: Any) -> bytes:
    items = {
        "version": "2.0",
        "max-frame-size": UInt32(1000),
        "capabilities": "fragmentation,pipelining",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    present = {key: value for key, value in items.items() if value is not None}
    return bytes(codec.encode_control(FrameType.AGENT_HELLO, present))


def engine(**changes: Any) -> EngineConnection:
    connection = EngineConnection(engine_id="engine")
    connection.data_to_send()
    connection.receive_data(agent_hello(**changes))
    return connection


def test_the_engine_begins_with_hello() -> None:
    connection = EngineConnection(engine_id="engine", max_frame_size=1000)
    assert sent(connection) == [
        Control(
            FrameType.HAPROXY_HELLO,
            {
                "supported-versions": "2.0",
                "max-frame-size": 1000,
                "capabilities": "async,fragmentation,pipelining",
                "engine-id": "engine",
            },
        )
    ]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"version": None}, Status.NO_VERSION),
        ({"max_frame_size": None}, Status.NO_FRAME_SIZE),
        ({"version": "3.0"}, Status.BAD_VERSION),
        ({"max_frame_size": UInt32(255)}, Status.BAD_FRAME_SIZE),
        ({"max_frame_size": UInt32(16381)}, Status.BAD_FRAME_SIZE),
        ({"version": 2}, Status.INVALID),
    ],
    ids=str,
)
def test_the_engine_refuses_a_bad_answer(changes: dict[str, Any], status: Status) -> None:
    connection = EngineConnection()
    connection.data_to_send()
    (event,) = connection.receive_data(agent_hello(**changes))
    assert isinstance(event, Disconnect)
    assert event.code == status
    (frame,) = sent(connection)
    assert frame.items["status-code"] == status


def test_acks_in_any_order_when_pipelined() -> None:
    connection = engine()
    connection.notify(1, 1, [Message("m")])
    connection.notify(2, 1, [Message("m")])
    acks = codec.encode_ack(1, 1, (), codec.encode_ack(2, 1))
    assert connection.receive_data(acks) == [Ack(2, 1), Ack(1, 1)]
    assert not connection.waiting


def test_one_at_a_time_without_pipelining() -> None:
    connection = engine(capabilities="")
    connection.notify(1, 1, [Message("m")])
    with pytest.raises(LocalProtocolError):
        connection.notify(2, 1, [Message("m")])
    (event,) = connection.receive_data(codec.encode_ack(2, 1))
    assert isinstance(event, Disconnect)
    assert event.code == Status.FRAME_ID_NOT_FOUND


def test_a_late_ack_is_ignored_when_pipelined_and_told_when_async() -> None:
    late = codec.encode_ack(9, 1)
    assert engine().receive_data(late) == []
    assert engine(capabilities="async").receive_data(late) == [Ack(9, 1)]


def test_a_large_payload_leaves_in_fragments_that_fit() -> None:
    connection = engine()
    message = Message("m", body=bytes(range(256)) * 20)
    connection.notify(1, 1, [message])
    data = connection.data_to_send()
    frames, _ = codec.decode_frames(data, max_frame_size=1000)
    assert [frame.type for frame in frames if isinstance(frame, RawFrame)] == [3, 0, 0, 0, 0, 0]
    agent = opened()
    assert agent.receive_data(data) == [Notify(1, 1, [message])]


def test_a_large_payload_needs_an_agent_that_takes_fragments() -> None:
    connection = engine(capabilities="pipelining")
    with pytest.raises(FrameTooBigError):
        connection.notify(1, 1, [Message("m", body=bytes(2000))])
    connection.notify(1, 1, [Message("m")])


def test_fragments_by_hand_and_abort() -> None:
    connection, agent = engine(), opened()
    connection.begin_fragments(1, 1, b"\x01m")
    connection.continue_fragments(1, 1, b"\x00", final=True)
    assert agent.receive_data(connection.data_to_send()) == [Notify(1, 1, [Message("m")])]
    connection.begin_fragments(2, 1, b"\x01m")
    connection.abort(2, 1)
    assert agent.receive_data(connection.data_to_send()) == []
    assert connection.waiting == {(1, 1)}


def test_disconnect_in_both_directions() -> None:
    connection, agent = engine(), opened()
    connection.disconnect()
    assert agent.receive_data(connection.data_to_send()) == [Disconnect(0, "normal", True)]
    assert not connection.should_close
    assert connection.receive_data(agent.data_to_send()) == [Disconnect(0, "normal", True)]
    assert connection.should_close


def test_the_agents_disconnect_ends_the_engines_connection() -> None:
    connection, agent = engine(), opened()
    agent.disconnect(Status.RESOURCE, "full")
    (event,) = connection.receive_data(agent.data_to_send())
    assert event == Disconnect(Status.RESOURCE, "full", True)
    with pytest.raises(LocalProtocolError):
        connection.notify(1, 1, [])


@pytest.mark.parametrize(("versions", "answered"), [("2.0", True), ("1.0", False)])
def test_a_health_check_of_an_agent_that_is_not_ready_is_refused(
    versions: str, answered: bool
) -> None:
    """HAProxy 1.7 crashes on a DISCONNECT there, so SPOP 1.0 gets none."""
    connection = AgentConnection(is_ready=lambda: False)
    items = {
        "supported-versions": versions,
        "max-frame-size": UInt32(16380),
        "capabilities": "",
        "healthcheck": True,
    }
    hello = codec.encode_control(FrameType.HAPROXY_HELLO, items)
    (event,) = connection.receive_data(hello)
    assert isinstance(event, Disconnect)
    assert event.code == Status.RESOURCE
    assert bool(connection.data_to_send()) == answered
    assert connection.should_close


def test_a_connection_is_served_by_an_agent_that_is_not_ready() -> None:
    connection = AgentConnection(is_ready=lambda: False)
    items = {"supported-versions": "2.0", "max-frame-size": UInt32(16380), "capabilities": ""}
    (event,) = connection.receive_data(codec.encode_control(FrameType.HAPROXY_HELLO, items))
    assert isinstance(event, Hello)


def test_agreements_that_are_kept_tell_apart_what_is_equal_but_of_another_type() -> None:
    for healthcheck in (True, 1, True):
        connection = AgentConnection()
        (event,) = connection.receive_data(hello(healthcheck=healthcheck))
        assert type(event) is (Hello if healthcheck is True else Disconnect)


def test_agreements_that_are_kept_have_the_size_and_address_of_their_connection() -> None:
    for size in (16380, 4096, 16380):
        for address in ("a:1", "b:2"):
            connection = AgentConnection(max_frame_size=size, address=address)
            (event,) = connection.receive_data(hello())
            assert isinstance(event, Hello)
            assert (event.peer.max_frame_size, event.peer.address) == (size, address)
            (answer,) = sent(connection)
            assert answer.items["max-frame-size"] == size
