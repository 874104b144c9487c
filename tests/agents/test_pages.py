"""The files of each ready agent's page, as ``spop validate`` sees them beside the agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import Page

from spop.cli import main

FAILS_CLOSED = {"forward_auth"}


@pytest.mark.parametrize("version", ["2.6", "3.4"])
@pytest.mark.parametrize("name", ["forward_auth", "mirror", "ratelimit", "reputation", "score"])
def test_a_pages_files_have_no_warning(name: str, version: str, tmp_path: Path) -> None:
    page = Page(f"agents/{name}.md")
    for example in page.examples:
        texts = page.texts(example, tuple(map(int, version.split("."))))
        for file, text in texts.items():
            (tmp_path / file).write_text(text.replace("/etc/haproxy", str(tmp_path)))
        if "haproxy.cfg" in texts:
            command = ["validate", "spoe.cfg", "--haproxy-cfg", "haproxy.cfg", "--json"]
            expected = [] if name in FAILS_CLOSED else ["fail-open"]
            assert findings(tmp_path, name, [*command, "--haproxy-version", version]) == expected


def findings(folder: Path, name: str, command: list[str]) -> list[str]:
    words = [str(folder / word) if word.endswith(".cfg") else word for word in command]
    done = CliRunner().invoke(main, [*words, "--agent", f"spop.agents.{name}:agent"])
    assert done.exit_code == 0, done.output
    return [found["rule"] for found in json.loads(done.stdout)["diagnostics"]]
