"""`spop bench` says what happened: answers, modes, limits, an early end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from odd_agents import Odd, OddAgent, ack, hello_with, odd_agent, replies
from serving import children

from spop import Int64, codec
from spop.address import Address
from spop.load.generator import Plan, Result
from spop.load.report import Limit, as_object

SHORT = ("--count", "50", "--connections", "2", "--warm-up", "0", "--timeout", "2")
TEN = bytes(codec.encode_actions({"sess.score": Int64(10), "sess.sure": True}))


def bench(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "spop", "bench", address, *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def ten() -> Iterator[str]:
    """The address of an agent that answers with 10 as an INT64, and true."""
    with OddAgent(Odd(answer=replies(lambda ids: ack(ids, TEN)))) as agent:
        yield agent.address


def test_an_agent_that_never_answers_is_an_error_however_long() -> None:
    with odd_agent("silent") as agent:
        result = bench(agent.address, "--duration", "0.5", "--warm-up", "0", "--timeout", "5")
    assert result.returncode == 1
    assert "none" not in result.stdout


def test_answers_that_are_all_empty_are_said(ten: str) -> None:
    with OddAgent(Odd(answer=replies(lambda ids: ack(ids, b"")))) as agent:
        result = bench(agent.address, *SHORT)
        assert result.returncode == 0
        assert "answers                all are empty: no variable was set\n" in result.stdout
        assert json.loads(bench(agent.address, *SHORT, "--json").stdout)["all_empty"] is True
    assert "empty" not in bench(ten, *SHORT).stdout


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["sess.score=10", "sess.sure=true"], True),
        (["sess.sure=true", "sess.score=10"], True),
        (["sess.score:int64=10", "sess.sure=true"], True),
        (["sess.score:int32=10", "sess.sure=true"], False),
        (["sess.score=11", "sess.sure=true"], False),
        (["sess.score=10", "sess.sure=1"], False),
        (["sess.score=10"], False),
        (["sess.score=10", "sess.sure=true", "sess.more=1"], False),
    ],
)
def test_values_are_compared_and_a_type_where_one_is_given(
    ten: str, words: list[str], right: bool
) -> None:
    options = [option for word in words for option in ("--expect", word)]
    result = bench(ten, *SHORT, *options, "--json")
    assert result.returncode == (0 if right else 1)
    shown = json.loads(result.stdout)
    assert shown["errors"] == ({} if right else {"not as expected": shown["frames"]})


@pytest.mark.parametrize(
    ("mode", "capabilities", "error"),
    [
        ("pipelined", "", "the agent does not pipeline: use --mode ping-pong"),
        ("async", "pipelining", "the agent has no async: use another --mode"),
        ("ping-pong", "", None),
        ("ping-pong", "pipelining", None),
    ],
)
def test_a_mode_that_the_agent_does_not_allow_is_refused(
    mode: str, capabilities: str, error: str | None
) -> None:
    with OddAgent(Odd(greet=hello_with(capabilities=capabilities))) as agent:
        result = bench(agent.address, *SHORT, "--mode", mode)
        expected = "" if error is None else f"Error: {agent.address}: {error}\n"
    assert result.stderr == expected
    assert result.returncode == (0 if error is None else 1)


@contextlib.contextmanager
def benching(address: str, processes: str) -> Iterator[subprocess.Popen[str]]:
    """A run for minutes, in a process group of its own as a terminal's is."""
    words = ["--duration", "100", "--warm-up", "0", "--json", "--processes", processes]
    with subprocess.Popen(
        [sys.executable, "-m", "spop", "bench", address, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        yield process
        process.kill()


def interrupted(process: subprocess.Popen[str]) -> Any:
    """What it shows after a Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    shown = json.loads(output)
    assert shown["interrupted"] is True
    return shown


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_prints_the_result_so_far(processes: str) -> None:
    asked: list[object] = []

    def answer(ids: tuple[int, int]) -> bytes:
        asked.append(ids)
        return ack(ids, TEN)

    with (
        OddAgent(Odd(answer=replies(answer))) as agent,
        benching(agent.address, processes) as process,
    ):
        wait_until(lambda: len(asked) > 1000, "answers")
        assert interrupted(process)["frames"] > 0


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_a_run_that_begins(ten: str, processes: int) -> None:
    with benching(ten, str(processes)) as process:
        wait_until(lambda: len(children(process.pid)) > processes, "generators and their tracker")
        assert interrupted(process)["errors"] == {}


def test_results_are_written_by_the_end_of_the_name(ten: str, tmp_path: Path) -> None:
    names = ("a.json", "a.csv", "a.svg")
    options = [option for name in names for option in ("--output", f"{tmp_path}/{name}")]
    assert bench(ten, *SHORT, *options).returncode == 0
    assert json.loads((tmp_path / "a.json").read_text())["errors"] == {}
    assert (tmp_path / "a.csv").read_text().startswith("latency_seconds,share\n")
    assert "<svg" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["now.json"], "'now.json' is no message: to write it, say --output now.json"),
        (["--json", "now.svg"], "'now.svg' is no message: to write it, say --output now.svg"),
        (["--output", "now.txt"], "--output now.txt: the name must end in .json, .csv, .svg, .png"),
        (["--fail-if", "p98>5ms"], "'p98>5ms' is no limit: FIGURE>LIMIT or FIGURE<LIMIT, with"),
        (["--fail-if", "rate>5ms"], "'rate>5ms' is no limit"),
        (["--output", "/dev/full/x.json", *SHORT], "cannot write /dev/full/x.json"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(ten: str, words: list[str], error: str) -> None:
    result = bench(ten, *words)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert error in result.stderr


@pytest.mark.parametrize("path", ["/nowhere/x.json", "/dev/full/x.json"])
def test_whether_an_output_can_be_written_is_known_before_the_run(path: str) -> None:
    result = bench("127.0.0.1:1", "--output", path, *SHORT)  # Nobody listens there.
    assert result.returncode == 2
    assert f"cannot write {path}" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_limit_that_is_reached_is_the_exit_status(ten: str) -> None:
    result = bench(ten, *SHORT, "--fail-if", "p99>1us", "--fail-if", "rate<1")
    assert result.returncode == 1
    assert result.stderr == "Error: p99 > 1 µs\n"
    assert bench(ten, *SHORT, "--fail-if", "p99>50s", "--fail-if", "errors>0").returncode == 0


@pytest.mark.parametrize(("seconds", "told"), [(0.001, False), (0.099, False), (0.1, True)])
def test_a_run_that_is_too_short_to_tell_names_no_bottleneck(seconds: float, told: bool) -> None:
    """A process that is not interrupted in a millisecond is busy for all of it."""
    plan = Plan(address=Address.parse("127.0.0.1:1"))
    busy = Result(frames=50, seconds=seconds, cpu_seconds=seconds, busy=1.0)
    assert as_object(plan, 1, busy)["generator"]["is_the_bottleneck"] is told


@pytest.mark.parametrize(
    ("text", "value"),
    [("p99>5ms", 0.005), ("mean<2s", 2.0), ("p99.9>7us", 7e-6), ("rate<1e", None)],
)
def test_limits_have_units(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(ValueError, match="no limit"):
            Limit.parse(text)
    else:
        assert Limit.parse(text).value == pytest.approx(value)


def test_a_watch_of_health_ends_with_a_summary() -> None:
    """After its count, and by Ctrl-C."""
    line = [sys.executable, "-m", "spop", "check"]
    with odd_agent("good") as agent:
        watch = [*line, agent.address, "--watch", "0.05"]
        done = subprocess.run([*watch, "--count", "3"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert done.stderr == f"{agent.address}: 3 checks, 3 healthy, 0 unhealthy\n"
        process = subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert errors.startswith(f"\n{agent.address}: ")
        assert "Traceback" not in errors


def test_each_rate_is_a_stage(ten: str, tmp_path: Path) -> None:
    names = [tmp_path / "r.json", tmp_path / "r.csv"]
    outputs = [word for name in names for word in ("--output", str(name))]
    words = ("--rate", "100,400", "--duration", "0.5", "--warm-up", "0", "--connections", "2")

    def have_their_rates() -> bool:
        result = bench(ten, *words, *outputs)
        assert result.returncode == 0, result.stderr
        assert [line.split()[0] for line in result.stdout.splitlines()] == ["rate", "100", "400"]
        first, second = json.loads(names[0].read_text())["stages"]
        assert [stage["plan"]["rate"] for stage in (first, second)] == [100, 400]
        return first["frames"] < second["frames"]

    wait_until(have_their_rates, "two rates, where the machine does not stand still", timeout=15)
    lines = names[1].read_text().splitlines()
    assert lines[0] == "address,rate,latency_seconds,share"
    assert {line.split(",")[1] for line in lines[1:]} == {"100.0", "400.0"}
    fails = partial(bench, ten, *words, "--fail-if", "rate>200")
    wait_until(lambda: fails().returncode == 1, "the limit that one stage reaches", timeout=15)


def test_two_agents_are_measured_in_turn(ten: str) -> None:
    turns: list[str] = []

    def answering(name: str) -> OddAgent:
        def answer(ids: bytes) -> bytes:
            turns.append(name)
            return ack(ids, TEN)

        return OddAgent(Odd(answer=replies(answer)))

    words = ("--rounds", "3", "--count", "60", "--warm-up", "0", "--connections", "1")
    with answering("a") as a, answering("b") as b:
        result = bench(a.address, "--against", b.address, *words, "--json")
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    assert (shown["first"]["plan"]["address"], shown["second"]["plan"]["address"]) == (
        a.address,
        b.address,
    )
    assert shown["rounds"] == 3
    assert min(shown["first"]["frames"], shown["second"]["frames"]) >= 60
    ratio = shown["ratios"]["throughput, frames/s"]
    assert 0 < ratio["lowest"] <= ratio["median"] <= ratio["highest"]
    order = [name for name, before in zip(turns, ["", *turns], strict=False) if name != before]
    assert order == ["a", "b", "a", "b"]  # a b, b a, a b.


def test_the_ratio_of_two_agents_has_its_spread(ten: str) -> None:
    result = bench(ten, "--against", ten, *SHORT, "--rounds", "2")
    assert result.returncode == 0, result.stderr
    head, throughput = result.stdout.splitlines()[:2]
    assert head.endswith("ratio  of 2 rounds")
    assert re.search(r"[0-9.]+ ×  [0-9.]+ to [0-9.]+$", throughput)
    for words in (["--pid", "1"], ["--rate", "1,2"]):
        result = bench(ten, "--against", ten, *words)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
