"""`spop new`: a project whose own commands work."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import Mock

import haproxy
import pytest
from click.testing import CliRunner
from serving import free_port

from spop import Client
from spop.cli import main

ROOT = Path(__file__).parents[1]


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(word) for word in words])
    return done.exit_code, done.output


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "my-agent"
    assert run("new", "my-agent", "--output", folder)[0] == 0
    return folder


def make(project: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Run `make` as if the package were installed, with its plugin of pytest."""
    return subprocess.Popen(
        ["make", *words],
        cwd=project,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.usefixtures("haproxy_in_path")
def test_make_test_tests_the_agent_behind_haproxy(project: Path) -> None:
    process = make(project, "test")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "4 passed" in output


def test_make_run_serves_the_agent(project: Path) -> None:
    socket = f"unix:{project / 'agent.sock'}"
    settings = project / "spop.toml"
    text = settings.read_text().replace("127.0.0.1:9000", socket)
    settings.write_text(text.replace('admin = "127.0.0.1:9001"\n', ""))
    process = make(project, "run")
    try:
        haproxy.wait_until((project / "agent.sock").exists, "the agent's start", 30)
        with Client(socket) as client:
            ack = client.notify("look-up", x_user="ann")
            assert ack.variables == {"txn.role": "admin"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)


def test_its_files_fit_together(project: Path) -> None:
    spoe, config = project / "haproxy" / "spoe.cfg", project / "haproxy" / "haproxy.cfg"
    status, output = run(
        "validate", spoe, "--haproxy-cfg", config, "--agent", f"{project}/my_agent.py:agent"
    )
    assert status == 0, output
    assert "warning" not in output
    options = tomllib.loads((project / "spop.toml").read_text())
    assert options["bind"] == ["127.0.0.1:9000"]
    assert "server agent 127.0.0.1:9000 check" in config.read_text()
    assert "ListenStream=127.0.0.1:9000" in (project / "deploy" / "my-agent.socket").read_text()
    wanted = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    assert wanted == ["haproxy-spop[cli]"]


def test_its_files_are_for_the_version_of_haproxy_that_is_named(tmp_path: Path) -> None:
    assert run("new", "my-agent", "--output", tmp_path / "p", "--haproxy-version", "2.6")[0] == 0
    spoe, config = (tmp_path / "p" / "haproxy" / f"{name}.cfg" for name in ("spoe", "haproxy"))
    told = run("validate", spoe, "--haproxy-cfg", config, "--haproxy-version", "2.6")
    assert told[0] == 0, told[1]
    assert "mode tcp" in config.read_text()
    assert "image: docker.io/library/haproxy:2.6\n" in (tmp_path / "p/compose.yaml").read_text()


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"url": "file:///home/ann/spop", "dir_info": {}}, "'/home/ann/spop[cli]' -e '.[test]'"),
        (None, "pip install  -e '.[test]'"),
        ({"url": "https://example/spop.whl", "archive_info": {}}, "pip install  -e '.[test]'"),
    ],
    ids=["a checkout", "an index", "a URL"],
)
def test_make_install_installs_this_package_from_where_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: object, wanted: str
) -> None:
    text = record and json.dumps(record)
    monkeypatch.setattr(
        importlib.metadata, "distribution", lambda _: Mock(read_text=lambda _: text)
    )
    assert run("new", "my-agent", "--output", tmp_path / "p")[0] == 0
    process = make(tmp_path / "p", "-n", "install")
    assert wanted in process.communicate(timeout=30)[0]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_takes_the_units_and_finds_little_exposed(project: Path) -> None:
    service = project / "deploy" / "my-agent.service"
    text = service.read_text()
    assert "ExecStart=/opt/my-agent/.venv/bin/spop serve --config spop.toml\n" in text
    here = text.replace("/opt/my-agent/.venv/bin/spop", sys.executable)
    service.write_text(here.replace("/opt/my-agent", str(project)))
    units = [str(service), str(service.with_suffix(".socket"))]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "my-agent" in line]
    # systemd has notify-reload since version 253.
    assert [line for line in said if "notify-reload" not in line] == []
    assert done.returncode == 0
    exposure = ["security", "--offline=true", "--no-pager", "--threshold=25", str(service)]
    done = subprocess.run(["systemd-analyze", *exposure], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="needs systemd")
def test_what_the_unit_starts_serves_on_systemds_socket(project: Path) -> None:
    settings = project / "spop.toml"
    settings.write_text(settings.read_text().replace('admin = "127.0.0.1:9001"\n', ""))
    address = f"127.0.0.1:{free_port()}"
    service = (project / "deploy" / "my-agent.service").read_text()
    arguments = service.partition("/bin/spop ")[2].partition("\n")[0].split()
    activate = ["systemd-socket-activate", f"--listen={address}", f"--setenv=PYTHONPATH={ROOT}"]
    command = [*activate, sys.executable, "-m", "spop", *arguments]
    with subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "Listening on" in process.stderr.readline()
            with Client(address, timeout=30, connect_timeout=30) as client:  # The first starts it.
                assert client.notify("look-up", x_user="ann").variables == {"txn.role": "admin"}
        finally:
            process.terminate()
        assert f"serves on {address}" in process.communicate(timeout=30)[1]
    assert process.returncode == 0


def test_the_container_is_not_root_and_checks_its_health(project: Path) -> None:
    lines = (project / "Containerfile").read_text().splitlines()
    final = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    steps = dict(line.split(" ", 1) for line in final if line[:1].isupper())
    assert int(steps["USER"].partition(":")[0]) > 0
    assert steps["ENV"].startswith("PATH=/venv/bin:$PATH ")
    options = tomllib.loads((project / "spop.toml").read_text())
    check = json.loads(steps["HEALTHCHECK"].partition(" CMD ")[2])
    assert check == ["spop", "check", *options["bind"]]
    assert json.loads(steps["CMD"]) == ["spop", "serve", "--config", "spop.toml"]
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    named = {word for word in copied if not word.startswith(("--", "/"))}
    assert {name for name in named if not (project / name).is_file()} == set()


@pytest.mark.parametrize(
    "name", ["", "a b", "../x", "1st", "-a", "a-", "class", "json", "spop", "click"]
)
def test_a_name_that_is_no_module_is_refused(name: str, tmp_path: Path) -> None:
    assert run("new", "--output", tmp_path / "p", "--", name)[0] == 2
    assert not (tmp_path / "p").exists()


def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    status, output = run("new", "my-agent", "--output", tmp_path / "p")
    assert (status, list((tmp_path / "p").iterdir())) == (2, [])
    assert "already" in output
