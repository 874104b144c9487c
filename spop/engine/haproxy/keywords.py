"""The fetches, converters and ACLs of each HAProxy: `keywords_of` gives those of a branch.

The rows of ``keywords.tsv`` are as in ``haproxy -dKsmp,cnv,acl``; ``ci/haproxy_keywords.py``
describes them. Some branches have no table: a keyword of one between two tables is certain where
both have it, and doubtful where one has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import NamedTuple

Branch = tuple[int, int]
"""A branch of HAProxy: ``(3, 4)``."""


class Keyword(NamedTuple):
    """A fetch, a converter or an ACL.

    Attributes:
        kind: ``f``, ``c`` or ``a``.
        arguments: the types of its arguments.
        required: how many of them must be there.
        type: what a fetch or converter gives; the fetch of an ACL.
        other: the places of a fetch, what a converter takes, the match method of an ACL.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    required: int
    type: str
    other: str
    first: Branch
    last: Branch


class Keywords:
    """The keywords of one branch.

    Attributes:
        branch: the branch that they are asked for.
        remark: says that another branch's table is used; None if the branch, or both of its
            neighbours, have one.
    """

    def __init__(self, branch: Branch) -> None:
        tables, rows = _file()
        below = max((table for table in tables if table <= branch), default=tables[0])
        above = min((table for table in tables if table >= branch), default=tables[-1])
        self.branch = branch
        self.remark: str | None = None
        if not below <= branch <= above:
            self.remark = (
                f"there is no table of HAProxy {_text(branch)}: that of {_text(below)} is used"
            )
        self._below = {row[:2]: row for row in rows if row.first <= below <= row.last}
        self._above = {row[:2]: row for row in rows if row.first <= above <= row.last}
        self._neighbours = below, above

    def find(self, kind: str, name: str) -> Keyword | None:
        """The keyword of this name; None if this HAProxy has none."""
        if name.startswith("lua.") and kind != "a":
            return _of_lua(kind, name)
        return self._above.get((kind, name)) or self._below.get((kind, name))

    def doubt(self, kind: str, name: str) -> str | None:
        """Why it is uncertain that this HAProxy has a keyword; None if it is certain."""
        key = kind, name
        if name.startswith("lua."):
            return f"HAProxy has '{name}' if a Lua script registers it"
        if (key in self._above) is (key in self._below):
            return None
        have = self._neighbours[key in self._above]
        lack = self._neighbours[key in self._below]
        return (
            f"HAProxy {_text(have)} has '{name}' and {_text(lack)} does not: "
            f"{_text(self.branch)} may refuse it"
        )

    def names(self, kind: str) -> Iterator[str]:
        """The names of all keywords of a kind."""
        return (name for its_kind, name in {**self._below, **self._above} if its_kind == kind)


@cache
def keywords_of(branch: Branch) -> Keywords:
    """The keywords of a branch."""
    return Keywords(branch)


def elsewhere(kind: str, name: str) -> str | None:
    """Which versions have a keyword, as a sentence; None if no version has it."""
    rows = [row for row in _file()[1] if row[:2] == (kind, name)]
    if not rows:
        return None
    first, last = min(row.first for row in rows), max(row.last for row in rows)
    versions = f"HAProxy {_text(first)}"
    return f"{versions} has it" if first == last else f"{versions} to {_text(last)} have it"


def _of_lua(kind: str, name: str) -> Keyword:
    """A fetch or converter that a Lua script registers. HAProxy gives all of them these types."""
    other = "..YYYYYYYYYYYYYYYY...." if kind == "f" else "str"
    return Keyword(kind, name, ("string",) * 12, 0, "str", other, (1, 7), (9, 9))


@cache
def _file() -> tuple[list[Branch], list[Keyword]]:
    """The branches that have a table, and the rows of all."""
    text = (files("spop.engine.haproxy") / "keywords.tsv").read_text()
    head, *lines = text.splitlines()
    return [_branch(word) for word in head.split()[1:]], [_row(line) for line in lines]


def _row(line: str) -> Keyword:
    kind, name, arguments, type_, other, first, last = line.split("\t")
    required, _, optional = arguments.partition("[")
    needed = _list(required)
    all_arguments = (*needed, *_list(optional.rstrip("]")))
    return Keyword(
        kind, name, all_arguments, len(needed), type_, other, _branch(first), _branch(last)
    )


def _list(arguments: str) -> tuple[str, ...]:
    return tuple(filter(None, re.split("[][,]", arguments)))


def _branch(text: str) -> Branch:
    major, minor = text.split(".")
    return int(major), int(minor)


def _text(branch: Branch) -> str:
    return f"{branch[0]}.{branch[1]}"
