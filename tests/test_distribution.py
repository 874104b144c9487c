"""The distribution: what it is called, and what it consists of."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import spop

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TEXTS = {".cfg", ".html", ".md", ".py", ".pyx", ".sh", ".toml", ".yml"}
FOLDERS = ("benchmarks", "ci", "docs", "examples", "spop", "tests")
WRONG_NAME = re.compile(
    r"""(?<![\w/-])spop\[                                 # the extras of another project
    |\b(?:install|add)(?:[ ]+-\S+)*[ ]+['"]?spop(?![\w./-])  # and itself""",
    re.VERBOSE,
)


def texts() -> Iterator[Path]:
    """Pages, sources and scripts of the project."""
    yield from (ROOT / "Makefile", ROOT / ".ci" / "run")
    for place in (ROOT.glob("*"), *((ROOT / folder).rglob("*") for folder in FOLDERS)):
        yield from (path for path in place if path.suffix in TEXTS)


def test_no_page_or_message_names_the_distribution_of_another_project() -> None:
    wrong_name = "sp" + "op"
    for words in ("pip install {}", "pip install -U '{}'", "uv add {}", "needs {}[cli]"):
        assert WRONG_NAME.search(words.format(wrong_name))
        assert not WRONG_NAME.search(words.format("haproxy-spop"))
    assert [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if WRONG_NAME.search(line)
    ] == []


def test_the_distribution_is_haproxy_spop() -> None:
    assert PROJECT["name"] == "haproxy-spop"
    assert importlib.metadata.version("haproxy-spop") == spop.__version__
    commands = importlib.metadata.distribution("haproxy-spop").entry_points
    assert {entry.name for entry in commands} == {"spop"}


def test_all_has_every_extra_but_haproxy_and_score() -> None:
    extras = PROJECT["optional-dependencies"]
    (included,) = re.findall(r"haproxy-spop\[(.*)]", *extras["all"])
    for_users = {name for name in extras if not name.startswith("test")} - {"all", "docs", "dev"}
    assert for_users - set(included.split(",")) == {"haproxy", "score"}
    assert for_users >= {"cli", "metrics", "otel", "uvloop", "bench", "agents"}


def test_every_package_folder_is_in_the_distribution() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    found = (path.parent.relative_to(ROOT) for path in (ROOT / "spop").rglob("__init__.py"))
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in found)


def test_every_data_file_is_in_the_distribution() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["package-data"]
    data = [path for path in (ROOT / "spop").rglob("*") if path.suffix in (".tsv", ".html")]
    assert len(data) >= 3
    for path in data:
        package = ".".join(path.parent.relative_to(ROOT).parts)
        assert any(path.match(pattern) for pattern in listed[package]), path


def test_a_release_runs_what_is_pinned() -> None:
    """Actions by their commits, as a tag may be moved; tools by their versions."""
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    actions = re.findall(r"uses: (.*)", workflow)
    assert actions
    assert [each for each in actions if not re.search(r"@[0-9a-f]{40} # v[\d.]+$", each)] == []
    tools = (ROOT / "ci" / "release_requirements.txt").read_text().splitlines()[1:]
    assert [each for each in tools if not re.fullmatch(r"[\w-]+==[\d.]+", each)] == []
    assert set(re.findall(r"pip install (\S+ \S+)", workflow)) == {
        "-r ci/release_requirements.txt",
        "-e '.[dev]'",
    }
