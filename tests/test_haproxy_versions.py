"""The tool that gets HAProxys for these tests; what it gets them from is not asked here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "ci" / "haproxy_versions.py"


def get(folder: Path, *versions: str) -> tuple[str, list[str]]:
    """What the tool prints, and its lines on standard error."""
    done = subprocess.run(
        [sys.executable, str(TOOL), str(folder), *versions],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"},
    )
    assert done.returncode == 0
    return done.stdout, done.stderr.splitlines()


def write_program(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def test_a_program_that_is_there_is_kept(tmp_path: Path) -> None:
    for version in ("9.8", "9.9"):
        write_program(tmp_path / f"haproxy-{version}", f"echo HAProxy version {version}.1")
    printed, errors = get(tmp_path, "9.8", "9.9")
    assert printed == f"{tmp_path}/haproxy-9.8:{tmp_path}/haproxy-9.9\n"
    assert errors == []


@pytest.mark.parametrize(
    "apt, reason",
    [
        (["echo E: one >&2", "echo E: two >&2", "exit 100"], "apt-get: E: two"),
        (["echo no mirror at all"], "this machine's apt knows no mirror of Debian"),
    ],
)
def test_a_version_that_can_not_be_had_is_named_in_one_line_and_left_out(
    tmp_path: Path, apt: list[str], reason: str
) -> None:
    write_program(tmp_path / "bin" / "apt-get", *apt)
    write_program(tmp_path / "haproxy-9.9", "echo HAProxy version 9.9.1")
    printed, errors = get(tmp_path, "2.6", "9.9")
    assert printed == f"{tmp_path}/haproxy-9.9\n"
    assert errors == [f"HAProxy 2.6 can't be had: {reason}"]


def test_a_program_of_another_version_is_not_taken(tmp_path: Path) -> None:
    write_program(tmp_path / "haproxy-9.9", "echo HAProxy version 10.0.1")
    assert get(tmp_path, "9.9") == ("\n", ["HAProxy 9.9 can't be had: no source of it is known"])
