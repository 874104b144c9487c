"""Every block of every page runs as its reader would run it, and every link leads somewhere."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import setuptools
from blocks import PAGES, ROOT, RUN, blocks
from haproxy import version

MAX_DRAWING = 79
"""Characters of a line that a window of 1400 px shows without a scroll bar."""
NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc"]
WARNINGS = ["-W", "error", "-W", "ignore::ResourceWarning"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def runs(page: Path) -> bool:
    return any(not b.example and b.language in RUN for b in blocks(page))


@pytest.fixture(scope="module")
def isolated() -> list[str]:
    """The command that runs another one in a network and among processes of its own."""
    if (
        shutil.which("unshare") is None
        or shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None
    ):
        pytest.skip("needs unshare and HAProxy")
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no namespaces")
    return NAMESPACES


def run_text(isolated: list[str], folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    page = folder / "page.md"
    page.write_text(text)
    command = [*isolated, sys.executable, str(ROOT / "tests" / "page_run.py"), str(page)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


Runs = dict[Path, Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def begun(isolated: list[str], request: pytest.FixtureRequest) -> Iterator[Runs]:
    """All pages that are to be run, two at a time."""
    pages = [
        item.callspec.params["page"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "begun" in item.fixturenames
    ]
    script = str(ROOT / "tests" / "page_run.py")
    with ThreadPoolExecutor(2) as pool:
        yield {
            page: pool.submit(
                subprocess.run,
                [*isolated, sys.executable, *WARNINGS, script, str(page)],
                capture_output=True,
                text=True,
                timeout=600,
            )
            for page in pages
        }


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=name)
def test_each_block_of_a_page_runs_in_order(begun: Runs, page: Path) -> None:
    done = begun[page].result()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_program_that_a_block_needs_is_installed_where_ci_runs() -> None:
    needed = {b.program for page in PAGES for b in blocks(page) if b.program}
    assert needed
    script = (ROOT / ".ci" / "run").read_text()
    assert [program for program in needed if f"needs {program}" not in script] == []


def test_every_block_of_code_has_a_language() -> None:
    """But those of the ready agents' pages, which have tests of their own."""
    unknown = [
        (name(page), block.line, block.language)
        for page in PAGES
        for block in blocks(page)
        if block.language not in (*RUN, "text") and not block.example and "agents" not in page.parts
    ]
    assert unknown == []


def test_a_drawing_is_no_wider_than_its_column() -> None:
    wide = [
        (name(page), block.line, line)
        for page in PAGES
        for block in blocks(page)
        if block.language == "text" and "──" in block.text
        for line in block.text.splitlines()
        if len(line) > MAX_DRAWING
    ]
    assert wide == []


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles
    }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        if re.match(r"\w+:", path):
            continue
        linked = (page.parent / path) if path else page
        if not linked.exists() or (heading and heading not in anchors(linked)):
            broken.append(target)
    assert broken == []


def test_the_readme_shows_the_files_of_the_examples() -> None:
    for block in blocks(ROOT / "README.md"):
        if block.title:
            assert block.text.strip() in (ROOT / "examples" / block.title).read_text()


def test_haproxy_starts_with_the_files_of_the_readme(haproxy_binary: str) -> None:
    if version(haproxy_binary) < (2, 4):
        return  # The file says so.
    command = [haproxy_binary, "-c", "-f", str(ROOT / "examples" / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


@pytest.mark.parametrize("home", ["", "https://example.org/spop"])
def test_the_readme_of_an_index_page_has_no_relative_link(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.setenv("SPOP_REPOSITORY", home)
    monkeypatch.setenv("SPOP_PURE", "1")
    runpy.run_path(str(ROOT / "setup.py"))
    links = re.findall(r"]\(([^)]*)\)", given["long_description"])
    assert all(link.startswith("https://") for link in links)
    assert bool(links) == bool(home)
    assert all(link.startswith(home) for link in given["project_urls"].values())
    assert bool(given["project_urls"]) == bool(home)


def test_a_command_finds_the_folder_and_the_environment_of_the_one_before(
    isolated: list[str], tmp_path: Path
) -> None:
    block = "```console\n$ mkdir a && cd a && export B=b\n$ echo $(basename $PWD) $B\na b\n```\n"
    done = run_text(isolated, tmp_path, block)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```console\n$ echo 1\n2\n```\n", "shows no '2'"),
        ("```console\n$ false\n```\n", "has status 1"),
        ("```python\nprint(1)  # 2\n```\n", "prints no '2'"),
        ("```python\nunknown\n```\n", "NameError"),
        ("```haproxy\nhttp-request x\n```\n", "haproxy -c -f refuses"),
    ],
)
def test_a_block_that_does_not_do_what_it_says_fails(
    isolated: list[str], tmp_path: Path, block: str, complaint: str
) -> None:
    done = run_text(isolated, tmp_path, block)
    assert done.returncode == 1
    assert complaint in done.stdout
