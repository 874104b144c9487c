"""The command line: a user's mistake is one line and exit status 2."""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from serving import served

from spop import Client

ROOT = Path(__file__).parent.parent


def spop(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command. It binds no port that tests beside this one have, too."""
    return subprocess.run(
        [sys.executable, "-m", "spop", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        env={**os.environ, "SPOP_BIND": "127.0.0.1:0", **environment},
    )


def test_help_and_version() -> None:
    assert "spop serve app:agent" in spop("serve", "--help").stdout
    assert spop("--version").stdout.startswith("spop, version ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve"], "Missing argument 'MODULE:AGENT', or --config FILE that names it"),
        (["serve", "nothing"], "is not MODULE:AGENT"),
        (["serve", "nowhere.py:agent"], "no file nowhere.py"),
        (["serve", "no_such_module:agent"], "No module named 'no_such_module'"),
        (["serve", "examples/ip_reputation.py:nothing"], "has no such name; its agents are: agent"),
        (["serve", "examples/ip_reputation.py:Agent"], "has a type there"),
        (["serve", "examples/ip_reputation.py:agent", "--bind", "x"], "neither HOST:PORT nor"),
        (["serve", "examples/ip_reputation.py:agent", "--threads", "0"], "--threads"),
        (
            ["serve", "examples/ip_reputation.py:agent", "--bind", "unix:/nowhere/x"],
            "cannot listen",
        ),
        (["nonsense"], "No such command"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_mistakes(arguments: list[str], complaint: str) -> None:
    result = spop(*arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("more", [[], ["--check-config"]])
@pytest.mark.parametrize("option", ["on_error", "on_timeout"])
def test_an_answer_that_cannot_be_encoded_is_a_line_that_names_the_handler(
    tmp_path: Path, option: str, more: list[str]
) -> None:
    module = tmp_path / "app.py"
    module.write_text(
        "import spop\n\nagent = spop.Agent()\n\n"
        f"@agent.message('m', blocking=True, timeout=1, {option}={{'score': 3}})\n"
        "def check(): ...\n"
    )
    result = spop("serve", f"{module}:agent", *more)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: cannot import '{module}': ValueError: message 'm': {option}")
    assert line.count(f"{module}:5") == 1


def test_an_error_of_a_signature_names_the_agents_line(tmp_path: Path) -> None:
    module = tmp_path / "app.py"
    module.write_text(
        "import spop\n\nagent = spop.Agent()\n\n@agent.message('m')\ndef check(a: float): ...\n"
    )
    result = spop("serve", f"{module}:agent")
    assert f"handler check ({module}:5) has parameter a annotated" in result.stderr


USERS_ERRORS = {
    "raises": ("import json\nx = 1\njson.loads('{')\n", "line 3, in <module>", "JSONDecodeError: "),
    "syntax": ("x = 1\ndef f(:\n", "line 2", "SyntaxError: invalid syntax"),
    "import": ("import nosuchmodule\n", "line 1, in <module>", "No module named 'nosuchmodule'"),
    "exits": ("raise SystemExit(5)\n", "line 1, in <module>", "SystemExit: 5"),
}


@pytest.mark.parametrize("more", [[], ["--check-config"]], ids=["served", "checked"])
@pytest.mark.parametrize("kind", USERS_ERRORS)
def test_an_error_of_the_users_code_has_its_traceback(
    tmp_path: Path, kind: str, more: list[str]
) -> None:
    module = tmp_path / "app.py"
    code, place, error = USERS_ERRORS[kind]
    module.write_text(code)
    result = spop("serve", f"{module}:agent", *more)
    assert result.returncode == 1, result.stderr
    first, *_, last = result.stderr.splitlines()
    assert first in ("Traceback (most recent call last):", f'  File "{module}", line 2')
    assert f'File "{module}", {place}' in result.stderr
    assert last.startswith(f"Error: cannot import '{module}': ")
    assert error in last
    assert "/spop/" not in result.stderr.replace(str(module), "")


@pytest.mark.parametrize("kind", USERS_ERRORS)
def test_an_agent_that_cannot_be_imported_ends_config_and_validate_as_serve(
    tmp_path: Path, kind: str
) -> None:
    module = tmp_path / "app.py"
    module.write_text(USERS_ERRORS[kind][0])
    served, configured, validated = (
        spop(*command)
        for command in (
            ("serve", f"{module}:agent"),
            ("config", f"{module}:agent"),
            ("validate", str(module), "--agent", f"{module}:agent"),
        )
    )
    assert configured.returncode == validated.returncode == served.returncode
    assert configured.stderr == validated.stderr == served.stderr


def test_config_says_in_one_line_that_there_is_no_such_module() -> None:
    result = spop("config", "nosuchmodule:agent")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line == (
        "Error: cannot import 'nosuchmodule': "
        "No module named 'nosuchmodule' in this folder or installed"
    )


def test_a_mistyped_ready_agent_names_those_that_exist() -> None:
    result = spop("serve", "spop.agents.reputatio:agent")
    pages = sorted(path.stem for path in (ROOT / "docs" / "agents").glob("*.md"))
    ready = ", ".join(name for name in pages if name != "index")
    wanted = f"Error: there is no spop.agents.reputatio: the ready agents are {ready}\n"
    assert (result.returncode, result.stderr) == (2, wanted)


LIFESPANS = {
    "async": "async def resources():\n    raise OSError('no database')\n    yield\n",
    "plain": "def resources():\n    raise OSError('no database')\n    yield\n",
}


@pytest.mark.parametrize("kind", LIFESPANS)
def test_an_error_of_a_lifespan_has_its_traceback(tmp_path: Path, kind: str) -> None:
    module = tmp_path / "app.py"
    module.write_text(f"import spop\nagent = spop.Agent()\n@agent.lifespan\n{LIFESPANS[kind]}")
    result = spop("serve", f"{module}:agent", "--bind", f"unix:{tmp_path}/agent.sock")
    assert result.returncode == 1, result.stderr
    assert f'File "{module}", line 5, in resources' in result.stderr
    assert "no database" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "end, why",
    [("os._exit(0)", "exit status 0"), ("os.kill(os.getpid(), 9)", "killed by SIGKILL")],
)
def test_a_worker_that_ends_at_the_start_is_a_line_that_says_so(
    tmp_path: Path, end: str, why: str
) -> None:
    module = tmp_path / "app.py"
    lifespan = f"def resources():\n    {end}\n    yield\n"
    module.write_text(f"import os, spop\nagent = spop.Agent()\n@agent.lifespan\n{lifespan}")
    result = spop("serve", f"{module}:agent", "--bind", f"unix:{tmp_path}/agent.sock")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"Error: cannot start: a worker ended: {why}"


BROKEN = "import json\njson.loads('{')\n"


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_reload_that_fails_logs_the_traceback_and_keeps_the_workers(
    tmp_path: Path, style: str
) -> None:
    module = tmp_path / "app.py"
    module.write_text(
        "import spop\nagent = spop.Agent()\n@agent.message('m')\ndef m():\n    return {'txn.a': 1}\n"
    )
    address = f"unix:{tmp_path}/agent.sock"
    options = "--bind", address, "--log-format", style
    serves, failed, died = {
        "text": ("serves on", "the workers are not replaced", "worker [0-9]+ died: (.*)"),
        "json": ('"serves"', '"reload failed"', '"worker died", .*"reason": "(.*)'),
    }[style]
    with served(*options, target=f"{module}:agent") as service:
        service.wait_for_log(serves)
        module.write_text(BROKEN)
        service.send_signal(signal.SIGHUP)
        service.wait_for_log(failed)
        with Client(address) as client:
            assert client.notify("m").variables == {"txn.a": 1}
    logged = re.search(died, service.log)
    assert logged is not None
    assert f"cannot import '{module}': JSONDecodeError: " in logged[1]
    log = service.log.replace('\\"', '"')
    assert f'File "{module}", line 2, in <module>' in log
    assert "/spop/" not in log


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = spop("serve", "examples/ip_reputation.py:agent", "--bind", address)
    assert result.returncode == 2
    assert f"cannot listen on {address}: " in result.stderr


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(ROOT)
    return importlib.import_module("demo")


@pytest.mark.usefixtures("haproxy_in_path")
def test_the_demo_shows_the_variable_in_haproxys_answer(
    demo: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    demo.main()
    shown = capfd.readouterr().out
    assert "$ spop serve examples/ip_reputation.py:agent --bind" in shown
    assert "$ haproxy -f haproxy.cfg" in shown
    assert "client 127.0.0.42   200 OK    x-ip-score: 58" in shown
    assert "client 127.0.0.66   403 Forbidden" in shown


def test_the_demo_runs_haproxys_files_itself_where_there_is_no_haproxy(
    demo: ModuleType, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "find_haproxy", lambda: None)
    demo.main()
    shown = capfd.readouterr().out
    assert "HAProxy 2.2 or later is not installed" in shown
    assert "client 127.0.0.42   x-ip-score: 58" in shown


@pytest.mark.parametrize(("value", "implementation"), [("1", "python"), ("0", None), ("", None)])
def test_spop_pure_forces_the_codec_in_python(value: str, implementation: str | None) -> None:
    code = "import spop.codec, spop.dispatch as d; print(spop.codec.IMPLEMENTATION, d.Route.__module__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "SPOP_PURE": value},
    )
    found, module = result.stdout.split()
    assert (found == "python") == module.endswith("_py")
    if implementation is not None:
        assert found == implementation


def test_the_core_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; import spop, spop.server; "
        "assert 'click' not in sys.modules and 'Cython' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
