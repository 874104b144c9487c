"""``spop serve``'s options from flags, environment and file, and who it runs as."""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import EXAMPLE, served, wait_until_serving

from spop import Client
from spop.server import Options

TARGET = f"{EXAMPLE}:agent"


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spop", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "spop.toml"
    path.write_text(
        f'# A service.\nagent = "{TARGET}"\nbind = ["127.0.0.1:9111", "unix:/tmp/x.sock"]\n'
        "threads = 3\nidle-timeout = 2.5\nmax_messages = 7\nlog-frames = true\n"
    )
    return path


def test_flags_count_before_environment_before_file_before_defaults(file: Path) -> None:
    shown = serve(
        "--config", str(file), "--check-config", "--threads", "5",
        SPOP_THREADS="4", SPOP_MAX_MESSAGES="8",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert "threads = 5  (flag)" in lines
    assert "max-messages = 8  (environment)" in lines
    assert "idle-timeout = 2.5  (file)" in lines
    assert 'bind = ["127.0.0.1:9111", "unix:/tmp/x.sock"]  (file)' in lines
    assert "log-frames = true  (file)" in lines
    assert "processes = 1  (default)" in lines
    assert 'log-level = "info"  (default)' in lines
    assert 'log-format = "text"  (default)' in lines
    assert "reload = false  (default)" in lines
    assert f'agent = "{TARGET}"  (file)' in lines
    assert "max-frame-size = 1048576  (agent)" in lines
    assert "agent 'ip-reputation' is fine" in lines


def test_unknown_variables_are_warned_of_with_a_hint() -> None:
    shown = serve(TARGET, "--check-config", SPOP_THREAD="2", SPOP_SETTINGS__X="1", SPOP_PURE="")
    assert "there is no option for the variable SPOP_THREAD; is it SPOP_THREADS?" in shown.stderr
    assert "SPOP_PURE" not in shown.stderr


def test_several_values_in_a_variable_are_separated_by_spaces() -> None:
    shown = serve(TARGET, "--check-config", SPOP_BIND="127.0.0.1:9111 unix@/tmp/a,b")
    assert 'bind = ["127.0.0.1:9111", "unix@/tmp/a,b"]  (environment)' in shown.stdout
    for name, value in (("SPOP_BIND", "a:1,b:2"), ("SPOP_ALLOW", "10.0.0.0/8,::1")):
        refused = serve(TARGET, "--check-config", **{name: value})
        assert refused.returncode == 2
        assert f"{value!r} is more than one value" in refused.stderr
        assert name in refused.stderr


def test_sizes_are_bytes_or_have_k_m_or_g_behind_them(tmp_path: Path) -> None:
    file = tmp_path / "spop.toml"
    file.write_text('max-payload-size = "2g"\nmax-unsent = 2048\n')
    shown = serve(
        TARGET, "--config", str(file), "--check-config", "--max-frame-size", "64K",
        SPOP_MAX_UNSENT="1M",
    )  # fmt: skip
    assert "max-frame-size = 65536  (flag)" in shown.stdout
    assert "max-unsent = 1048576  (environment)" in shown.stdout
    assert "max-payload-size = 2147483648  (file)" in shown.stdout


def test_a_range_of_ports_is_checked_wherever_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "spop.toml"
    file.write_text('bind = "127.0.0.1:9000-9001"\n')
    for arguments, environment in (
        (["--bind", "127.0.0.1:9000-9001"], {}),
        ([], {"SPOP_BIND": "127.0.0.1:9000-9001"}),
        (["--config", str(file)], {}),
    ):
        shown = serve(TARGET, *arguments, "--processes", "2", "--check-config", **environment)
        assert 'bind = ["127.0.0.1:9000-9001"]' in shown.stdout, shown.stderr
        refused = serve(TARGET, *arguments, **environment)
        assert refused.returncode == 2
        assert "bind 127.0.0.1:9000-9001 has 2 ports, but processes is 1" in refused.stderr


def test_every_option_has_a_flag_with_its_default() -> None:
    shown = serve("--help").stdout
    for option in dataclasses.fields(Options):
        assert f"--{option.name.replace('_', '-')} " in shown


@pytest.mark.parametrize(
    "name", [each.name for each in dataclasses.fields(Options) if each.type == "float"]
)
@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e10])
def test_a_time_is_a_number_with_an_end(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {re.escape(format(seconds, 'g'))}, not in "):
        Options(**{name: seconds})


def test_limits_of_the_manual_are_options() -> None:
    """The manual makes its table of all others from the options themselves."""
    manual = (EXAMPLE.parent.parent / "docs" / "options.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \|", manual, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert named <= {option.name.replace("_", "-") for option in dataclasses.fields(Options)}
    assert "max-connections" in named


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("\n\nthreads = 0\n", ":3: threads: 0 is not in the range 1<=x<=256"),
        ("threads = 'many'\n", ":1: threads: 'many' is not a valid integer"),
        ("max-unsent = '1 KB'\n", ":1: max-unsent: '1 KB' is no size: bytes, or with K, M or G"),
        ("max-unsent = '1'\n", ":1: max-unsent: 1 is not in the range x>=1024"),
        ("threads = [1, 2]\n", ":1: threads: one value is wanted"),
        ("log_frames = 1\n", ":1: log_frames: 1 is not true or false"),
        ("threads = true\n", ":1: threads: True is no value for it"),
        ("log-level = 'loud'\n", ":1: log-level: 'loud' is not one of"),
        ("idle-timeout = nan\n", ":1: idle-timeout: nan is not a number up to 1e+09"),
        ("idle-timeout = inf\n", ":1: idle-timeout: inf is not a number up to 1e+09"),
        ("bind = [9000]\n", ":1: bind: 9000 is no text"),
        ("allow = [{}]\n", ":1: allow: {} is no text"),
        ("threads = \n", "line 1, column"),
    ],
)
def test_mistakes_in_the_file_are_told_with_their_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "spop.toml"
    path.write_text(text)
    result = serve(TARGET, "--config", str(path))
    assert result.returncode == 2
    assert complaint in result.stderr
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("threads = 2\nthread = 3\n", ":2: there is no key 'thread'; is it 'threads'?"),
        ("[server]\nthreads = 1\n", ":1: there is no key 'server'"),
        ("[setings]\na = 1\n", ":1: there is no key 'setings'; is it 'settings'?"),
    ],
)
def test_unknown_keys_of_the_file_are_warned_of(tmp_path: Path, text: str, warning: str) -> None:
    path = tmp_path / "spop.toml"
    path.write_text(text)
    result = serve(TARGET, "--config", str(path), "--check-config")
    assert result.returncode == 0
    assert f"{path}{warning}" in result.stderr
    assert "WARNING" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        ([TARGET, "--config", "/nowhere/x.toml"], {}, "cannot read /nowhere/x.toml"),
        ([TARGET], {"SPOP_THREADS": "0"}, "'--threads' (env var: 'SPOP_THREADS')"),
        ([TARGET, "--tls-cert", "/nowhere.pem"], {}, "cannot use /nowhere.pem"),
        ([TARGET, "--allow", "nowhere"], {}, "'nowhere' is no network"),
        ([TARGET, "--user", "nobody-of-that-name"], {}, "there is no user 'nobody-of-that-name'"),
        ([TARGET, "--unix-mode", "rw"], {}, "unix_mode is 'rw'"),
        ([TARGET, "--event-loop", "trio"], {}, "'trio' is not one of 'asyncio', 'uvloop'"),
        (["--check-config", "no_such_module:agent"], {}, "No module named 'no_such_module'"),
        ([], {}, "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_exit_status_2(
    arguments: list[str], environment: dict[str, str], complaint: str
) -> None:
    result = serve(*arguments, **environment)
    assert result.returncode == 2
    assert complaint in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_uvloop_is_asked_for_where_it_is_not_installed() -> None:
    code = "import sys; sys.modules['uvloop'] = None; from spop.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "serve", TARGET, "--event-loop", "uvloop"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.endswith("event_loop uvloop needs an extra: pip install 'haproxy-spop[uvloop]'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can become another user")
def test_only_root_can_run_workers_as_another_user(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    result = serve(TARGET, "--bind", address, "--user", pwd.getpwuid(os.getuid()).pw_name)
    assert result.returncode == 2
    assert "can be changed by root only" in result.stderr


def test_json_logs_have_one_object_a_line_and_nothing_forged(tmp_path: Path) -> None:
    import json

    module = tmp_path / "failing.py"
    module.write_text(
        "import spop\nagent = spop.Agent()\n"
        "@agent.message('m')\ndef m(text: str): raise ValueError(text)\n"
    )
    address = f"unix:{tmp_path}/agent.sock"
    forged = 'x\n{"level": "info", "message": "forged"}'
    with served("--bind", address, "--log-format", "json", target=f"{module}:agent") as process:
        process.wait_for_log('"serves"')
        with Client(address) as client:
            client.notify("m", text=forged)
        process.wait_for_log("failed")
        records = [json.loads(line) for line in process.lines]
    assert not [r for r in records if r["event"] == "forged"]
    (failure,) = [r for r in records if r["level"] == "error"]
    assert failure["message"] == "m"
    assert failure["handler"] == "m"
    assert failure["event"] == "handler failed"
    assert "ValueError" in failure["exception"]


def test_text_logs_have_nothing_forged(tmp_path: Path) -> None:
    module = tmp_path / "failing.py"
    module.write_text(
        "import spop\nagent = spop.Agent()\n"
        "@agent.message('m')\ndef m(text: str): raise ValueError(text)\n"
    )
    address = f"unix:{tmp_path}/agent.sock"
    with served("--bind", address, target=f"{module}:agent") as process:
        wait_until_serving(process)
        with Client(address, engine_id="e\nforged 1") as client:
            client.notify("m", text="x\nforged 2\x1b[31m")
        process.wait_for_log("ValueError")
        process.wait_for_log("disconnected by")
        assert not [line for line in process.lines if line.startswith("forged")]
        assert "\x1b" not in process.log
