"""Every tool, client and engine against every odd agent: each ends in time, with the right
status and one line that says what happened."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from odd_agents import (
    AGENTS,
    VARIABLE,
    Odd,
    OddAgent,
    Wire,
    closes,
    greets,
    is_silent,
    odd_agent,
)

from spop import Ack, AsyncClient, Client, SpopError
from spop.engine import AsyncEngine, Engine

TIMEOUT = 2.0
"""Seconds that each may wait for a connection, a HELLO or an ACK."""
SLACK = 10.0
"""Seconds more that it may take to end."""
AGAIN = 3
"""How often more an outcome must be wrong. On a machine that stands still for the timeout, a good
agent is late, and a late one later."""


class Expected(NamedTuple):
    """What becomes of an agent's answers.

    Attributes:
        line: of what every tool and client says where there is no ACK.
        hello, ack: whether it has given one.
        bench: whether every ACK was right, and no connection lost.
        pipelines: whether `bench` may have several frames in flight, as it does by default.
        after: what `notify` says behind the actions.
        actions: whether the ACK sets the variable.
    """

    line: str = ""
    hello: bool = True
    ack: bool = True
    bench: bool = True
    pipelines: bool = True
    after: str = ""
    actions: bool = True


def no_hello(line: str) -> Expected:
    return Expected(line, hello=False, ack=False, bench=False)


def no_ack(line: str) -> Expected:
    return Expected(line, ack=False, bench=False)


FINE = Expected()
IN_LOCK_STEP = Expected("does not pipeline", pipelines=False)
LOST = Expected(bench=False)
"""The ACK came; then the connection was lost, or there was one ACK too many."""
SPOILT = Expected(bench=False)
"""The ACK came, and a frame that may not come then, which `bench` takes for damage."""
IGNORED = Expected(after=r"malformed, passed over as HAProxy does: 1")
"""The ACK came with an action that can't be read."""
EMPTY = IGNORED._replace(actions=False)
"""The ACK came, and none of its actions can be read."""
CLOSED = "connection closed by the agent"
CLOSED_OR_RESET = f"{CLOSED}|Connection reset by peer|Broken pipe"
NO_MEMORY = "no memory"
NO_ACK = f"no ACK in {TIMEOUT:g} s"
NO_HELLO = f"no AGENT-HELLO in {TIMEOUT:g} s"

EXPECTED = {
    "good": FINE,
    "no-goodbye": FINE,
    "closes-as-goodbye": FINE,
    "goodbye-with-error": Expected(after=NO_MEMORY),
    "silent": no_ack(NO_ACK),
    "stops": LOST,
    "closes": no_ack(CLOSED),
    "resets": no_ack("Connection reset by peer"),
    "dies": no_ack(CLOSED_OR_RESET),
    "disconnect": no_ack(NO_MEMORY),
    "disconnect-unprintable": no_ack(r"no(?:\\udcff\\x1b|\udcff\x1b)\[31m"),
    "disconnect-open": no_ack(NO_MEMORY),
    "empty-frame": no_ack("frame of 0 bytes, 7 at least"),
    "unknown-frame": no_ack(NO_ACK),
    "garbage": no_ack("frame of 2779096485 bytes, 16380 at most"),
    "garbage-closed": no_ack("frame of 2779096485 bytes, 16380 at most"),
    "ack-without-fin": no_ack("an ACK may not be fragmented"),
    "ack-cut": no_ack(NO_ACK),
    "ack-cut-closed": no_ack(CLOSED),
    "ack-short": EMPTY,
    "ack-too-long": no_ack("frame of 26007 bytes, 16380 at most"),
    "ack-for-others": no_ack(NO_ACK),
    "no-actions": FINE._replace(actions=False),
    "abort": FINE,
    "reserved-flags": FINE,
    "hello-again": SPOILT,
    "notify-before": SPOILT,
    "unknown-frame-before": SPOILT,
    "unknown-action": IGNORED,
    "unknown-action-between": IGNORED,
    "unknown-scope": IGNORED,
    "wrong-count": IGNORED,
    "wrong-count-of-unset": IGNORED,
    "reserved-type": IGNORED,
    "action-cut": IGNORED,
    "name-cut": IGNORED,
    "head-cut": IGNORED,
    "int32-unsigned": FINE,
    "uint32-negative": FINE,
    "ack-twice": LOST,
    "ack-for-others-before": LOST,
    "empty-frame-before": no_ack("frame of 0 bytes, 7 at least"),
    "empty-frame-behind": LOST._replace(after="frame of 0 bytes, 7 at least"),
    "garbage-behind": LOST._replace(after="frame of 2779096485 bytes, 16380 at most"),
    "disconnect-behind": LOST,
    "error-behind": LOST._replace(after=NO_MEMORY),
    "closes-behind": LOST,
    "silent-hello": no_hello(NO_HELLO),
    "closes-hello": no_hello(CLOSED),
    "refuses": no_hello(NO_MEMORY),
    "refuses-open": no_hello(NO_MEMORY),
    "http": no_hello(r"looks like HTTP, not like SPOP; it begins with b'HTTP/1\.1 400 Bad'"),
    "tls": no_hello(r"looks like TLS, not like SPOP; it begins with b'\\x15\\x03"),
    "half-a-hello": no_hello(NO_HELLO),
    "half-a-hello-closed": no_hello(CLOSED),
    "hello-and-closes": no_ack(CLOSED_OR_RESET),
    "version-1.0": no_hello("version '1.0' is not supported"),
    "version-2": no_hello("version '2' is not supported"),
    "version-2.00": FINE,
    "version-2.1": no_hello("version '2.1' is not supported"),
    "version-3.0": no_hello("version '3.0' is not supported"),
    "size-100": no_hello("max-frame-size is 100, not in 256 to 16380"),
    "size-99999": no_hello("max-frame-size is 99999, not in 256 to 16380"),
    "size-int32": FINE,
    "version-and-size": no_hello("version '3.0' is not supported"),
    "version-and-no-size": no_hello("version '3.0' is not supported"),
    "odd-items": FINE,
    "no-capabilities": IN_LOCK_STEP,
    "in-lock-step": IN_LOCK_STEP,
    "unknown-items": FINE,
    "unknown-capabilities": FINE,
    "hello-in-pieces": FINE,
    "single-bytes": FINE,
}


class Outcome(NamedTuple):
    """What a tool or client did.

    Attributes:
        good: there was an answer; for a command, its status is 0.
        seconds: since it reached the agent.
        said: its error's text, or what it printed.
        errors: what it printed to standard error.
    """

    good: bool
    seconds: float
    said: str
    errors: str = ""


# --- commands ---

SPOE = f"""
[check]
spoe-agent check
    messages check
    option var-prefix odd
    option pipelining
    option set-on-error error
    register-var-names {VARIABLE.partition(".")[2]}
    timeout processing {TIMEOUT:g}s
    use-backend agents
spoe-message check
    event on-client-session
"""


def command(*words: str) -> Callable[[str, Path], subprocess.CompletedProcess[str]]:
    def run(address: str, folder: Path) -> subprocess.CompletedProcess[str]:
        filled = [word.format(address=address, folder=folder) for word in words]
        return subprocess.run(
            [sys.executable, "-m", "spop", *filled], capture_output=True, text=True, timeout=60
        )

    return run


COMMANDS = {
    "check": command("check", "{address}", "--timeout", f"{TIMEOUT}"),
    "notify": command("notify", "{address}", "check", "--timeout", f"{TIMEOUT}"),
    "bench": command(
        "bench", "{address}", "check", "--count", "20", "--connections", "2", "--warm-up", "0",
        "--timeout", f"{TIMEOUT}",
    ),
    "bench-time": command(
        "bench", "{address}", "check", "--duration", f"{TIMEOUT}", "--connections", "2",
        "--warm-up", "0", "--timeout", f"{TIMEOUT}",
    ),
    "engine": command(
        "engine", "{folder}/spoe.cfg", "--agent", "{address}", "--event", "on-client-session"
    ),
}  # fmt: skip

# --- clients ---


def ask_blocking(address: str) -> Ack:
    with Client(address, timeout=TIMEOUT, hello_timeout=TIMEOUT) as client:
        return client.notify("check")


def ask_many(address: str) -> Ack:
    """More calls than connections, so that they share the pool's."""
    settings = {"timeout": TIMEOUT, "hello_timeout": TIMEOUT, "maximum": 2, "max_waiting_frames": 2}
    with Client(address, **settings) as client, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.notify, "check") for _ in range(4)]
        answers = [call.result(60) for call in calls]
    return answers[0]


def ask_asyncio(address: str) -> Ack:
    async def ask() -> Ack:
        async with AsyncClient(address, timeout=TIMEOUT, hello_timeout=TIMEOUT) as client:
            return await client.notify("check")

    return asyncio.run(ask())


CLIENTS = {"client": ask_blocking, "pool": ask_many, "asyncio": ask_asyncio}

# --- engines ---


def process_blocking(address: str, folder: Path) -> int:
    with Engine.from_file(folder / "spoe.cfg", backends={"agents": address}) as engine:
        processing = engine.stream().event("on-client-session")
        assert processing is not None
        return processing.status


def process_asyncio(address: str, folder: Path) -> int:
    async def process() -> int:
        spoe = folder / "spoe.cfg"
        async with AsyncEngine.from_file(spoe, backends={"agents": address}) as engine:
            processing = await engine.stream().event("on-client-session")
            assert processing is not None
            return processing.status

    return asyncio.run(process())


ENGINES = {"engine-blocking": process_blocking, "engine-asyncio": process_asyncio}


def tools_for(name: str) -> list[str]:
    """All; `bench --duration`, which always takes its time, only where that could be longer."""
    tools = [*COMMANDS, *CLIENTS, *ENGINES]
    if name not in ("good", "silent", "stops", "closes", "dies", "empty-frame-behind"):
        tools.remove("bench-time")
    return tools


# --- each against each ---


def outcome_of(tool: str, name: str, folder: Path) -> Outcome:
    with odd_agent(name) as agent:
        started = time.monotonic()
        good, said, errors = False, "", ""
        if tool in COMMANDS:
            done = COMMANDS[tool](agent.address, folder)
            good, said, errors = done.returncode == 0, done.stdout, done.stderr
            assert done.returncode in (0, 1), done.stderr
        elif tool in CLIENTS:
            try:
                found = CLIENTS[tool](agent.address).variables
                found = {name: found[name] for name in found.keys() - {"sess.x", "sess.more"}}
                good = found == {VARIABLE: True}
            except SpopError as error:
                said = str(error)
        else:
            status = ENGINES[tool](agent.address, folder)
            good, said = status == 0, f"st={status}"
        return Outcome(good, time.monotonic() - (agent.reached_at or started), said, errors)


def written(folder: Path) -> Path:
    """The folder, with the configuration in it."""
    (folder / "spoe.cfg").write_text(SPOE)
    return folder


Outcomes = dict[tuple[str, str], Future[Outcome]]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """What becomes of each agent and tool of the tests that run, several at a time, as most wait."""
    wanted = [
        (item.callspec.params["name"], item.callspec.params["tool"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.path == request.path
        and "outcomes" in item.fixturenames
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8) as pool:
        files = written(Path(folder))
        yield {(name, tool): pool.submit(outcome_of, tool, name, files) for name, tool in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    ("name", "tool"), [(name, tool) for name in AGENTS for tool in tools_for(name)]
)
def test_each_ends_in_time_and_says_what_happened(outcomes: Outcomes, name: str, tool: str) -> None:
    outcome = outcomes[name, tool].result()
    for _ in range(AGAIN):
        try:
            says_what_happened(name, tool, outcome)
            return
        except AssertionError:
            with tempfile.TemporaryDirectory() as folder:
                outcome = outcome_of(tool, name, written(Path(folder)))
    says_what_happened(name, tool, outcome)


def says_what_happened(name: str, tool: str, outcome: Outcome) -> None:
    expected = EXPECTED[name]
    assert outcome.seconds < TIMEOUT + SLACK
    assert "Traceback" not in outcome.errors
    assert outcome.errors.count("\n") <= 1, outcome
    if tool == "pool" and expected.ack and not expected.bench:
        return  # Of calls that share a connection the first may be answered, and the others lost.
    good = expected.hello if tool == "check" else expected.ack
    if tool in CLIENTS:
        good = good and expected.actions
    if "bench" in tool:
        good = expected.bench and expected.pipelines
    assert outcome.good is good, outcome
    CHECKS[tool](expected, outcome)


def says_so(expected: Expected, outcome: Outcome) -> None:
    assert outcome.good or re.search(expected.line, outcome.said), outcome


def pool_says_so(expected: Expected, outcome: Outcome) -> None:
    """Where frames of other calls are unread when the agent closes, its end is a reset."""
    says_so(expected._replace(line=expected.line.replace(CLOSED, CLOSED_OR_RESET)), outcome)


def check_says_so(expected: Expected, outcome: Outcome) -> None:
    assert outcome.said.count("\n") == 1
    says_so(expected, outcome)


def notify_says_so(expected: Expected, outcome: Outcome) -> None:
    printed = f"set {VARIABLE} = true (bool)\n" if expected.actions else "no actions\n"
    said = re.sub(r"(?m)^(set sess\.(x|more) = |aborted: ).*\n", "", outcome.said)
    assert said == (printed if expected.ack else "")
    wanted = rf"127\.0\.0\.1:\d+: (after the ACK: )?{expected.after}( \(status \d+\))?\n"
    assert outcome.errors.removesuffix("\n").isprintable()
    if not expected.ack:
        wanted = rf"Error: 127\.0\.0\.1:\d+: .*(?:{expected.line}).*\n"
    assert re.fullmatch(wanted if expected.after or not expected.ack else "", outcome.errors), (
        outcome
    )


def bench_says_so(expected: Expected, outcome: Outcome) -> None:
    if not (expected.hello and expected.pipelines):
        assert outcome.said == ""
        assert re.fullmatch(rf"Error: 127\.0\.0\.1:\d+: .*(?:{expected.line}).*\n", outcome.errors)
    else:
        errors = re.search(r"^errors +(.*)$", outcome.said, re.MULTILINE)
        assert errors, outcome
        assert (errors[1] == "none") is expected.bench


def status_says_so(expected: Expected, outcome: Outcome) -> None:
    assert re.search(r"\bst=0\b" if expected.ack else r"\bst=[1-9]", outcome.said), outcome


CHECKS = {
    "check": check_says_so,
    "notify": notify_says_so,
    "bench": bench_says_so,
    "bench-time": bench_says_so,
    "engine": status_says_so,
    **dict.fromkeys(CLIENTS, says_so),
    "pool": pool_says_so,
    **dict.fromkeys(ENGINES, status_says_so),
}


@pytest.mark.parametrize("name", ["no-goodbye", "good", "single-bytes"])
def test_the_actions_are_printed_at_once_and_a_goodbye_gets_a_tenth_of_a_second(name: str) -> None:
    with odd_agent(name) as agent:
        words = ["notify", agent.address, "check", "--timeout", "30"]
        process = subprocess.Popen(
            [sys.executable, "-m", "spop", *words], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"set {VARIABLE} = true (bool)\n"
        printed = time.monotonic()
        assert process.wait(60) == 0
        process.stdout.close()
        assert time.monotonic() - printed < 10


def test_bytes_that_are_no_frame_are_shown_with_the_frames() -> None:
    with odd_agent("ack-cut-closed") as agent:
        done = command("notify", "{address}", "check", "-v", "--hex")(agent.address, Path())
    assert "← the bytes end inside of a frame\n" in done.stderr
    assert done.returncode == 1


def test_connections_that_cannot_be_opened_again_do_not_hold_the_load_generator_up() -> None:
    """The agent greets one connection, closes it, and is silent from then on."""
    greeted: list[Wire] = []

    def greet(wire: Wire, request: bytes) -> None:
        greeted.append(wire)
        (greets if len(greeted) == 1 else is_silent)(wire, request)

    with OddAgent(Odd(greet=greet, answer=closes)) as agent:
        words = ["--connections", "1", "--duration", "1", "--warm-up", "0", "--timeout", "60"]
        done = command("bench", "{address}", *words)(agent.address, Path())
        assert agent.reached_at is not None
        assert time.monotonic() - agent.reached_at < 1 + SLACK
    assert len(greeted) == 2
    assert done.returncode == 1
    assert "1 not connected" in done.stdout


@pytest.mark.parametrize("words", ["--rate 500", "--mode ping-pong"])
@pytest.mark.parametrize("name", ["silent", "closes", "resets", "hello-and-closes"])
def test_the_load_generator_ends_without_acks_however_it_sends(name: str, words: str) -> None:
    options = ["check", "--count", "20", "--connections", "3", "--warm-up", "0", "--timeout", "1"]
    for _ in range(AGAIN):
        with odd_agent(name) as agent:
            done = command("bench", "{address}", *options, *words.split())(agent.address, Path())
            assert agent.reached_at is not None
            assert time.monotonic() - agent.reached_at < 1 + SLACK
        if "no AGENT-HELLO in 1 s" not in done.stderr:
            break
    assert done.returncode == 1
    assert re.fullmatch(
        r"Error: \S+: no ACK in 1 s, 0 of 20 frames were answered\n", done.stderr
    ), done.stderr


def test_the_load_generator_counts_what_was_answered_before_it_gave_up() -> None:
    with odd_agent("stops") as agent:
        words = [
            "check",
            "--count",
            "100",
            "--connections",
            "3",
            "--warm-up",
            "0",
            "--timeout",
            "1",
        ]
        done = command("bench", "{address}", *words, "--mode", "ping-pong")(agent.address, Path())
    assert done.returncode == 1
    assert re.fullmatch(
        r"Error: \S+: no ACK in 1 s, 3 of 100 frames were answered\n", done.stderr
    ), done.stderr
    assert re.search(r"^errors +3 timeout$", done.stdout, re.MULTILINE)
