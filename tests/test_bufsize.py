"""``max-frame-size`` goes up to ``tune.bufsize`` - 4, of the haproxy.cfg or as the caller says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import haproxy
import pytest

from spop.cli.verdict import Verdict
from spop.engine import ConfigError, Engine
from spop.engine.config import load_bufsize, load_spoe

SPOE = """
[test]
spoe-agent agent
    messages check
    option var-prefix agent
    {line}
    timeout hello 5s
    timeout idle 1m
    timeout processing 5s
    use-backend agents
spoe-message check
    event on-client-session
"""

HAPROXY = """
global
    {bufsize}
defaults
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend www
    mode tcp
    bind 127.0.0.1:1
    filter spoe engine test config {spoe}
backend agents
    mode tcp
    server agent 127.0.0.1:9
"""


def files(folder: Path, line: str, bufsize: int | str | None) -> tuple[Path, Path]:
    spoe, cfg = folder / "spoe.cfg", folder / "haproxy.cfg"
    spoe.write_text(SPOE.format(line=line))
    tune = f"tune.bufsize {bufsize}" if bufsize else ""
    cfg.write_text(HAPROXY.format(bufsize=tune, spoe=spoe))
    return spoe, cfg


CASES = [
    (16380, None, True), (16381, None, False), (65532, 65536, True), (65533, 65536, False),
    (65532, None, False), (20012, 20001, True), (20013, 20001, False), (8188, 8192, True),
    (8189, 8192, False),
]  # fmt: skip

UNITS = [(65532, "64k", True), (65533, "64K", False), (1048572, "1m", True)]
"""HAProxy 3.1 and later take units."""


@pytest.mark.parametrize(("size", "bufsize", "valid"), [*CASES, *UNITS])
def test_haproxy_and_the_engine_agree(
    haproxy_binary: str, size: int, bufsize: int | str | None, valid: bool, tmp_path: Path
) -> None:
    version = haproxy.version(haproxy_binary)
    if isinstance(bufsize, str) and version < (3, 1):
        return
    spoe, cfg = files(tmp_path, f"max-frame-size {size}", bufsize)
    command = [haproxy_binary, "-c", "-f", str(cfg)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is valid, done.stderr
    if valid:
        engine = Engine.from_file(spoe, backends=cfg)
        assert engine.config.max_frame_size == size
    else:
        with pytest.raises(ConfigError, match=r"which is tune\.bufsize - 4"):
            Engine.from_file(spoe, backends=cfg)
    verdict = Verdict.of(spoe, None, "frontend", ".".join(map(str, version[:2])), cfg)
    assert verdict.valid is valid, verdict.as_text()


@pytest.mark.parametrize(("bufsize", "size"), [(None, 16380), (65536, 65532), (20001, 20012)])
def test_without_the_line_it_is_all_of_the_buffer(
    bufsize: int | None, size: int, tmp_path: Path
) -> None:
    spoe, cfg = files(tmp_path, "", bufsize)
    assert load_bufsize(cfg) == bufsize
    assert Engine.from_file(spoe, backends=cfg).config.max_frame_size == size


def test_the_callers_bufsize_counts(tmp_path: Path) -> None:
    spoe, cfg = files(tmp_path, "max-frame-size 65532", None)
    backends = {"agents": "127.0.0.1:9"}
    for given in (backends, cfg):
        engine = Engine.from_file(spoe, backends=given, bufsize=65536)
        assert engine.config.max_frame_size == 65532
        with pytest.raises(ConfigError):
            Engine.from_file(spoe, backends=given)
    assert load_spoe(spoe, "test", bufsize=65536).max_frame_size == 65532


@pytest.mark.parametrize(
    ("words", "bufsize", "status"),
    [
        ([], 65536, 0),
        ([], None, 1),
        (["--bufsize", "64K"], None, 0),
        (["--bufsize", "32K"], None, 1),
    ],
)
def test_the_commands_take_it_from_a_flag_or_the_haproxy_cfg(
    words: list[str], bufsize: int | None, status: int, tmp_path: Path
) -> None:
    spoe, cfg = files(tmp_path, "max-frame-size 65532", bufsize)
    spop = [sys.executable, "-m", "spop"]
    validate = [*spop, "validate", str(spoe), *(words or ["--haproxy-cfg", str(cfg)])]
    done = subprocess.run(validate, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    run = [*spop, "engine", str(spoe), "--haproxy-cfg", str(cfg), "--event", "on-client-session"]
    done = subprocess.run([*run, *words], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if status == 0 else 2)  # Nobody listens, or a mistake.
