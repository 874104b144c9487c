"""What the distribution's files consist of. ``make wheel`` also builds and tries compiled ones."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta as b; import sys; b.{}(sys.argv[1])"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def build(what: str, source: Path, folder: Path) -> Path:
    command = [sys.executable, "-W", "ignore", "-c", BUILD.format(what), str(folder)]
    environment = {**os.environ, "SPOP_PURE": "1"}
    subprocess.run(command, check=True, cwd=source, env=environment, capture_output=True)
    (built,) = folder.iterdir()
    return built


def has_compiler() -> bool:
    """There is one, and ``CC=false`` does not say otherwise."""
    command = [*os.environ.get("CC", "cc").split(), "--version"]
    return (
        shutil.which(command[0]) is not None
        and subprocess.call(command, stdout=subprocess.DEVNULL) == 0
    )


def check(*paths: Path) -> None:
    command = [sys.executable, str(ROOT / "ci" / "wheel_contents.py"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_sdist_is_whole_and_its_pure_wheel_small(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    (tmp_path / "wheel").mkdir()
    wheel = build("build_wheel", source, tmp_path / "wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    check(sdist, wheel)


@pytest.mark.skipif(not has_compiler(), reason="there is no C compiler")
@pytest.mark.parametrize("inplace", [True, False])
def test_modules_that_are_built_in_place_keep_their_symbols(
    inplace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """perf and gdb need them. Those of wheels are stripped."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("SPOP_PURE", "1")
    build_ext = runpy.run_path(str(ROOT / "setup.py"))["OptionalBuild"]
    monkeypatch.chdir(tmp_path)
    Path("tiny.c").write_text("static int add(int n) { return n + 1; } int (*pointer)(int) = add;")
    extension = setuptools.Extension("tiny", ["tiny.c"])
    build = build_ext(setuptools.Distribution({"name": "tiny", "ext_modules": [extension]}))
    build.inplace, build.build_lib, build.build_temp = inplace, "lib", "temp"
    build.ensure_finalized()
    build.run()
    (built,) = Path().glob("tiny.*.so") if inplace else Path("lib").glob("tiny.*.so")
    has_symbols = runpy.run_path(str(ROOT / "ci" / "wheel_contents.py"))["has_symbols"]
    assert has_symbols(built.read_bytes()) is (b"\0add\0" in built.read_bytes()) is inplace


def test_an_sdist_has_the_files_of_the_repository_and_no_others(sdist: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no repository")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    with tarfile.open(sdist) as archive:
        names = {file.name.partition("/")[2] for file in archive if file.isfile()}
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    made = {name for name in names if name.startswith("haproxy_spop.egg-info/")}
    assert names - made - {"PKG-INFO", "setup.cfg"} == files


@pytest.mark.parametrize("size, found", [(1_000_000, False), (1_000_001, True)])
def test_a_wheel_has_a_million_bytes_at_most(size: int, found: bool, tmp_path: Path) -> None:
    wheel = tmp_path / "haproxy_spop-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("spop/py.typed", "")
    wheel.write_bytes(wheel.read_bytes().rjust(size, b"x"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "ci" / "wheel_contents.py"), str(wheel)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (f"it has {size} bytes" in done.stdout) == found


def test_a_wheel_with_what_does_not_belong_there_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "haproxy_spop-1-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wrong, "w") as wheel:
        wheel.writestr("spop/_codec.c", "/* generated */")
        wheel.writestr("tests/test_codec.py", "")
    command = [sys.executable, str(ROOT / "ci" / "wheel_contents.py"), str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    for problem in ("_codec.c does not belong", "tests/test_codec.py does not belong", "py.typed"):
        assert problem in done.stdout
