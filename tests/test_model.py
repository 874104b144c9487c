"""Server and client together, in any interleaving: each NOTIFY that the agent accepts has exactly
one ACK or its connection's end, never a wrong one, never where it is not allowed; counts balance.

`make fuzz` looks for longer and for new examples.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import KINDS, Wire, World, asked, raw_hello, raw_notify

from spop import codec
from spop.client.settings import Settings
from spop.connection import ALL_CAPABILITIES
from spop.constants import FrameFlag, FrameType
from spop.values import UInt32

CAPABILITIES = st.one_of(
    st.just(ALL_CAPABILITIES), st.frozensets(st.sampled_from(sorted(ALL_CAPABILITIES)))
)
SIZES = st.sampled_from([0, 0, 0, 1000, 17_000, 40_000])
FRAME_SIZES = st.sampled_from([256, 1000, 16_380])
SHARES = st.sampled_from([0.1, 0.5, 1.0, 1.0])
NOTIFY = st.lists(st.sampled_from(KINDS), min_size=1, max_size=3)


class Model(RuleBasedStateMachine):
    """What may happen, in any order."""

    world: World

    @initialize(capabilities=CAPABILITIES, size=FRAME_SIZES, version=st.sampled_from([None, "3.4"]))
    def begin(self, capabilities: frozenset[str], size: int, version: str | None) -> None:
        self.world = World(
            Settings(
                capabilities=capabilities, max_frame_size=size, engine_id="pool", maximum=3,
                max_waiting_frames=4, haproxy_version=version,
            )
        )  # fmt: skip

    def _wire(self, data: st.DataObject, among: list[Wire]) -> Wire:
        return among[data.draw(st.integers(0, len(among) - 1))]

    # --- the client ---

    @rule(kinds=NOTIFY, size=SIZES)
    def call(self, kinds: list[str], size: int) -> None:
        n = next(self.world.numbers)
        self.world.call(asked(kinds, n, size))

    @precondition(lambda self: self.world.calls)
    @rule(data=st.data())
    def time_out(self, data: st.DataObject) -> None:
        """The caller waits no longer."""
        index = data.draw(st.integers(0, len(self.world.calls) - 1))
        self.world.pool.abandon(self.world.calls[index][0])

    @rule(seconds=st.sampled_from([0.1, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.pool.tick(self.world.now)

    # --- peers of all sorts ---

    @precondition(lambda self: len(self.world.wires) < 12)
    @rule(
        variant=st.sampled_from(["2.0", "2.0", "2.0", "1.0", "1.7"]),
        capabilities=CAPABILITIES,
        size=FRAME_SIZES,
        engine_id=st.sampled_from(["pool", "raw", None]),
        health_check=st.integers(0, 9).map(lambda n: n == 0),
    )
    def connect(
        self,
        variant: str,
        capabilities: frozenset[str],
        size: int,
        engine_id: str | None,
        health_check: bool,
    ) -> None:
        items: dict[str, Any] = {
            "supported-versions": "2.0" if variant == "2.0" else "1.0",
            "max-frame-size": UInt32(size),
            "capabilities": ",".join(sorted(capabilities)),
        }
        items |= {"engine-id": engine_id} if engine_id else {}
        items |= {"healthcheck": True} if health_check else {}
        little_endian, whole = variant != "2.0", variant == "1.7"
        wire = self.world.connect(little_endian=little_endian, whole=whole)
        wire.to_agent += raw_hello(variant, items)

    def _raw(self) -> list[Wire]:
        return [
            wire
            for wire in self.world.wires
            if wire.engine is None and wire.begun is None and not wire.spoilt
        ]

    @precondition(lambda self: self._raw())
    @rule(data=st.data(), kinds=NOTIFY)
    def notify(self, data: st.DataObject, kinds: list[str]) -> None:
        """Without a look at what is in force: a peer in lock step may send too early."""
        wire, n = self._wire(data, self._raw()), next(self.world.numbers)
        messages, ids = asked(kinds, n, 0), (1_000_000 + n, 1)
        wire.to_agent += raw_notify(wire, ids, messages)
        wire.sent[ids] = messages

    @precondition(lambda self: any(wire.hello for wire in self._raw()))
    @rule(data=st.data(), size=st.integers(0, 30_000))
    def begin_fragments(self, data: st.DataObject, size: int) -> None:
        wire = self._wire(data, [wire for wire in self._raw() if wire.hello])
        if wire.whole:
            return
        n = next(self.world.numbers)
        messages, ids = asked(["later"], n, size), (1_000_000 + n, 1)
        payload = bytes(codec.encode_messages(messages))
        self._send_fragment(wire, FrameType.NOTIFY, 0, ids, payload[:200])
        wire.sent[ids] = messages
        wire.begun = ids, payload[200:], messages

    @precondition(lambda self: any(wire.begun for wire in self.world.wires))
    @rule(data=st.data(), size=st.sampled_from([100, 240]), final=st.booleans())
    def go_on_with_fragments(self, data: st.DataObject, size: int, final: bool) -> None:
        wire = self._wire(data, [wire for wire in self.world.wires if wire.begun])
        assert wire.begun is not None
        ids, rest, messages = wire.begun
        while len(rest) > size:
            self._send_fragment(wire, FrameType.UNSET, 0, ids, rest[:size])
            rest = rest[size:]
            if not final:
                wire.begun = ids, rest, messages
                return
        self._send_fragment(wire, FrameType.UNSET, FrameFlag.FIN, ids, rest)
        wire.begun = None

    @precondition(lambda self: any(wire.begun for wire in self.world.wires))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """No ACK may come, unless the agent gave the payload up before."""
        wire = self._wire(data, [wire for wire in self.world.wires if wire.begun])
        assert wire.begun is not None
        ids = wire.begun[0]
        self._send_fragment(wire, FrameType.UNSET, FrameFlag.FIN | FrameFlag.ABORT, ids, b"")
        wire.begun = None
        wire.aborted.add(ids)

    def _send_fragment(
        self, wire: Wire, type_: int, flags: int, ids: tuple[int, int], part: bytes
    ) -> None:
        flags_in_order = {"little_endian": wire.little_endian}
        wire.to_agent += codec.encode_raw_frame(type_, flags, *ids, part, **flags_in_order)

    # --- the network ---

    @rule(data=st.data(), share=SHARES)
    def to_agent(self, data: st.DataObject, share: float) -> None:
        if among := [wire for wire in self.world.wires if wire.to_agent or wire.engine_ended]:
            wire = self._wire(data, among)
            self.world.deliver_to_agent(wire, 1 + int(share * len(wire.to_agent)))

    @rule(data=st.data(), share=SHARES)
    def to_engine(self, data: st.DataObject, share: float) -> None:
        if among := [wire for wire in self.world.wires if wire.to_engine or wire.agent_ended]:
            wire = self._wire(data, among)
            self.world.deliver_to_engine(wire, 1 + int(share * len(wire.to_engine)))

    @rule()
    def flow(self) -> None:
        """All that is on its way arrives."""
        for wire in list(self.world.wires):
            self.world.deliver_to_agent(wire, len(wire.to_agent))
            self.world.deliver_to_engine(wire, len(wire.to_engine))

    @precondition(lambda self: self.world.wires)
    @rule(data=st.data(), how=st.sampled_from(["cut", "agent", "junk"]), code=st.integers(0, 13))
    def end_a_connection(self, data: st.DataObject, how: str, code: int) -> None:
        """The network cuts it, the agent ends it, or its peer breaks the protocol."""
        wire = self._wire(data, self.world.wires)
        if how == "cut":
            self.world.cut(wire)
        elif how == "agent" and wire.open:
            self.world.disconnect(wire, code)
        elif how == "junk" and not wire.engine_ended:
            junk = data.draw(st.binary(min_size=1, max_size=40))
            wire.to_agent += b"\x00\x00\x00" + bytes([len(junk)]) + junk
            wire.spoilt = True

    # --- the server ---

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if among := [loop for loop in self.world.loops if loop.held]:
            loop = data.draw(st.sampled_from(among))
            self.world.finish(loop, data.draw(st.integers(0, len(loop.held) - 1)))

    @rule()
    def reload(self) -> None:
        """Each connection at rest goes on elsewhere."""
        for wire in self.world.wires:
            if wire.open and wire.agent.at_rest:
                self.world.move(wire)

    # --- what must hold ---

    @rule()
    def rest(self) -> None:
        self.world.rest()

    @invariant()
    def counts_balance(self) -> None:
        if hasattr(self, "world"):
            self.world.check_counts()
            self.world.check_calls()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.rest()
            self.world.pool.close()
            self.world.rest()


@pytest.mark.hypothesis
def test_no_call_has_a_wrong_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=settings.default.max_examples // 6,
            stateful_step_count=60,
            report_multiple_bugs=False,
        ),
    )
