"""``spop new``: a project with an agent, and all that surrounds it. Its templates are in project/."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import keyword
import shutil
import sys
import urllib.parse
import urllib.request
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

import click

from spop.cli.config import drafted
from spop.cli.loading import load_for_command
from spop.cli.parameters import HAPROXY_VERSION, ParamType
from spop.errors import reason

DISTRIBUTION = "haproxy-spop"

_FILES = {
    "agent.py": "{module}.py",
    "test_agent.py": "tests/test_{module}.py",
    "Makefile": "Makefile",
    "pyproject.toml": "pyproject.toml",
    "spop.toml": "spop.toml",
    "unit.service": "deploy/{name}.service",
    "unit.socket": "deploy/{name}.socket",
    "Containerfile": "Containerfile",
    "compose.yaml": "compose.yaml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
}
"""The file that each template makes."""

_TAKEN = {"spop", "tests", "haproxy", "deploy", *sys.stdlib_module_names}
"""Modules that the agent's may not hide, and folders of the project."""


class Name(NamedTuple):
    """A project's name, and that of its module."""

    name: str
    module: str


class _NameType(ParamType):
    name = "name"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Name:
        text = str(value)
        module = text.replace("-", "_")
        if not (
            text.isascii() and text[:1].isalpha() and text[-1].isalnum() and module.isidentifier()
        ):
            self.fail(f"{text!r} is no name: letters, digits, - and _, first a letter", param, ctx)
        if keyword.iskeyword(module) or module in _TAKEN or _is_installed(module):
            self.fail(f"{text!r} is taken: Python or the project has a module {module}", param, ctx)
        return Name(text, module)


def _is_installed(module: str) -> bool:
    """Whether there is a module of this name, which the project's would hide: click, for example."""
    found = importlib.util.find_spec(module)
    return found is not None and "-packages" in (found.origin or "")


@click.command(short_help="Start a project: an agent, its tests and its files.")
@click.argument("name", type=_NameType())
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR",
    help="The folder to make.  [default: NAME]",
)  # fmt: skip
@click.option(
    "--haproxy-version", type=HAPROXY_VERSION, metavar="X.Y", default="3.4", show_default=True,
    help="The HAProxy that reads the project's files.",
)  # fmt: skip
def new(name: Name, output: Path | None, haproxy_version: str) -> None:
    """Make a folder with an agent, its tests, HAProxy's files, a unit and a container file.

    \b
    Example:
      spop new my-agent --haproxy-version 2.6
      cd my-agent
      make install test run
    """
    folder = output or Path(name.name)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise click.UsageError(f"there is {folder} already") from None
    except OSError as error:
        raise click.UsageError(f"cannot make {folder}: {reason(error)}") from None
    try:
        _fill(folder, name, haproxy_version)
    except OSError as error:
        shutil.rmtree(folder)
        raise click.UsageError(f"cannot write to {folder}: {reason(error)}") from None
    click.echo(
        f"{folder}/ has the agent {name.module}:agent. Next: cd {folder}; make install test run"
    )


def _fill(folder: Path, name: Name, haproxy_version: str) -> None:
    templates = files("spop.cli") / "project"
    words = {
        **name._asdict(),
        "prefix": name.module,
        "haproxy_version": haproxy_version,
        "source": _source(),
    }
    for template, path in _FILES.items():
        text = Template((templates / f"{template}.in").read_text("utf-8")).substitute(words)
        _write(folder / path.format_map(words), text)
    agent = load_for_command(f"{folder / name.module}.py:agent")
    # In a container, HAProxy listens for other machines.
    haproxy = folder / "haproxy"
    made = drafted(agent, f"{name.module}:agent", haproxy, haproxy_version, listen=":8080")
    _write(haproxy / "spoe.cfg", made.spoe)
    _write(haproxy / "haproxy.cfg", made.haproxy)


def _source() -> str:
    """The checkout or wheel that this package was installed from; empty: an index (PEP 610)."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    url = urllib.parse.urlsplit(json.loads(text)["url"] if text else "")
    return urllib.request.url2pathname(url.path) if url.scheme == "file" else ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
