"""What the site makes from the sources: tables of options and numbers, help texts, a new project.

A comment ``<!-- made: NAME ARGUMENT -->`` in a page is replaced. mkdocs.yml names this hook.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from spop import constants
from spop.cli import main
from spop.options import Options

PAGES = Path(__file__).parent.parent / "docs"
MADE = re.compile(r"^<!-- made: (\w+)(?: (\S+))? -->$", re.MULTILINE)

ROW = re.compile(r"^\|.*", re.MULTILINE)
UNIT = re.compile(r"(?<=\d) (?=µs|×|%|MiB|MB)")
"""What stands between a figure of a table and its unit."""

CODE = re.compile(r"`[^`]+`")

EXAMPLE = re.compile(r"^<!-- \w+: (/etc/\S+)(?: (\w+) ([\d.]+))? -->\n```(\w*)$", re.MULTILINE)
"""The head of a whole file of an example. Its reader sees its path, and the versions that it is for."""


def on_config(config: Any) -> Any:
    """Called by mkdocs first: names with ``*`` in the navigation become pages."""
    listed = set(_leaves(config["nav"]))
    config["nav"] = list(_with_pages(config["nav"], listed))
    return config


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(each)


def _with_pages(nav: list[Any], listed: set[str]) -> Iterator[Any]:
    for each in nav:
        if isinstance(each, str) and "*" in each:
            found = (str(path.relative_to(PAGES)) for path in PAGES.glob(each))
            yield from sorted(set(found) - listed)
        elif isinstance(each, dict):
            yield {
                name: list(_with_pages(value, listed)) if isinstance(value, list) else value
                for name, value in each.items()
            }
        else:
            yield each


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    text = MADE.sub(lambda found: MAKERS[found[1]](found[2] or ""), markdown)
    text = ROW.sub(lambda found: UNIT.sub("\N{NO-BREAK SPACE}", _pipes(found[0])), text)
    return EXAMPLE.sub(_titled, text)


def _pipes(row: str) -> str:
    r"""A row of a table with ``|`` in its code, where GitHub needs ``\|`` and this Markdown shows that."""
    return CODE.sub(lambda found: found[0].replace(r"\|", "|"), row)


def _titled(found: re.Match[str]) -> str:
    path, bound, version, language = found.groups()
    versions = {"since": f" – HAProxy {version} and later", "until": f" – up to HAProxy {version}"}
    return f'```{language or "haproxy"} title="{path}{versions.get(bound, "")}"'


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def options(_: str) -> str:
    """All options of a server, with what the table of options says."""
    explained = set(re.findall(r"^\| `([\w-]+)`", (PAGES / "options.md").read_text(), re.MULTILINE))
    rows = (
        (f"`{name}`", shown(each), help_of(each))
        for each in dataclasses.fields(Options)
        if (name := each.name.replace("_", "-")) not in explained
    )
    return table(("option", "default", ""), rows)


def help_of(option: dataclasses.Field[Any]) -> str:
    text = re.sub(r"  \[default: .*", "", option.metadata["help"]).replace("|", "\\|")
    choices = option.metadata.get("choices")
    return f"{text} One of {', '.join(f'`{each}`' for each in choices)}." if choices else text


def shown(option: dataclasses.Field[Any]) -> str:
    value = option.default
    if found := re.search(r"\[default: (.*)\]", option.metadata["help"]):
        return found[1]
    if value is None or value in ((), ""):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if option.metadata.get("size"):
        return size(value)
    return (
        ", ".join(value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def size(value: int) -> str:
    for unit, bytes_ in (("M", 2**20), ("K", 2**10)):
        if value and value % bytes_ == 0:
            return f"{value // bytes_}{unit}"
    return str(value)


def commands(_: str) -> str:
    """The help text of each command."""
    return "\n\n".join(
        f"## {' '.join(words)}\n\n```text\n{helped(words[1:])}```" for words in _words(main, "spop")
    )


def _words(command: click.Command, *before: str) -> Iterator[list[str]]:
    yield list(before)
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            if found is not None and not found.hidden:
                yield from _words(found, *before, name)


def helped(words: list[str]) -> str:
    return CliRunner().invoke(main, [*words, "--help"], prog_name="spop", terminal_width=80).output


def enum(name: str) -> str:
    """The members of an enumeration of `spop.constants`."""
    members: type[IntEnum] = getattr(constants, name)
    if hasattr(next(iter(members)), "message"):
        return table(
            ("code", "name", ""), ((str(int(m)), f"`{m.name}`", m.message) for m in members)
        )
    return table(("number", "name"), ((str(int(m)), f"`{m.name}`") for m in members))


def api(argument: str) -> str:
    """The public names of a module, from their docstrings: those that no package above it has.

    What stands behind a colon comes first.
    """
    name, _, first = argument.partition(":")
    parts = name.split(".")
    above = [import_module(".".join(parts[:length])) for length in range(1, len(parts))]
    known = {each for package in above for each in package.__all__}
    listed = dict.fromkeys([*filter(None, first.split(",")), *import_module(name).__all__])
    names = [each for each in listed if each not in known]
    return "\n\n".join(f"::: {name}.{each}" for each in names)


def file(path: str) -> str:
    """A file of Python, as a block. `ruff format` would take the line of a snippet for code."""
    return f'```python title="{path}"\n{(PAGES.parent / path).read_text()}```'


def new(path: str) -> str:
    """A file of what ``spop new my-agent`` makes, as a block."""
    with tempfile.TemporaryDirectory() as folder:
        done = CliRunner().invoke(main, ["new", "my-agent", "--output", f"{folder}/my-agent"])
        if done.exit_code:
            raise RuntimeError(done.output)
        text = (Path(folder) / "my-agent" / path).read_text()
    language = {".service": "ini", ".socket": "ini", ".yaml": "yaml", ".cfg": "haproxy"}
    kind = language.get(Path(path).suffix, "dockerfile")
    return f'```{kind} title="{path}"\n{text}```'


MAKERS: dict[str, Callable[[str], str]] = {
    "api": api, "options": options, "file": file, "commands": commands, "enum": enum, "new": new,
}  # fmt: skip
