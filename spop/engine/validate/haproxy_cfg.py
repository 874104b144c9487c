"""A ``haproxy.cfg`` as lines by section: what the rules look up in it.

It knows nothing of what HAProxy makes of most lines. `HAProxyConfig` finds filters, rules that send
groups, and the variables that lines read and set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from typing import NamedTuple

from spop.engine.config.backends import SECTIONS
from spop.engine.config.diagnostics import Collector
from spop.engine.config.lines import Line, Reader
from spop.engine.config.model import Location
from spop.engine.config.spoe import read_file
from spop.engine.config.values import seconds
from spop.engine.config.versions import Version
from spop.values import VARIABLE

_READ = re.compile(rf"\bvar\(\s*({VARIABLE.pattern})", re.ASCII)
_SET = re.compile(rf"\b(?:un)?set-var(?:-fmt)?\(\s*({VARIABLE.pattern})", re.ASCII)
_MENTIONED = re.compile(rf"(?<![\w.])({VARIABLE.pattern})(?!\()", re.ASCII)
_PROXIES = ("frontend", "listen", "backend")


class Use(NamedTuple):
    """A line that names something, and where."""

    name: str
    proxy: ProxySection
    line: Line
    location: Location


class Filter(NamedTuple):
    """A ``filter spoe`` line."""

    engine: str | None
    config: str
    proxy: ProxySection
    line: Line

    @property
    def location(self) -> Location:
        return self.line.at(0)


class GroupRule(NamedTuple):
    """A rule ``send-spoe-group``."""

    engine: str
    group: str
    proxy: ProxySection
    line: Line
    location: Location


@dataclass(eq=False)
class ProxySection:
    """A frontend, listen, backend or defaults section, with the lines it inherits."""

    kind: str
    name: str
    location: Location
    inherited: list[Line] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def last(self, *words: str) -> Line | None:
        """The last line that begins with these words."""
        found = None
        for line in (*self.inherited, *self.lines):
            if [word.text for word in line.words[: len(words)]] == list(words):
                found = line
        return None if found is None or found.modifier == "no" else found

    def time(self, which: str) -> float | None:
        """A ``timeout``, in seconds; None if there is none that is valid."""
        line = self.last("timeout", which)
        try:
            return seconds(line.arguments[1]) if line else None
        except (IndexError, ValueError):
            return None

    @property
    def servers(self) -> set[str]:
        """The names of its servers."""
        return {line.arguments[0] for line in self.lines if line.keyword == "server"
                and line.arguments}  # fmt: skip

    @property
    def mode(self) -> str:
        line = self.last("mode")
        return line.arguments[0] if line and line.arguments else "tcp"


@dataclass(eq=False)
class HAProxyConfig:
    """The sections of a ``haproxy.cfg``."""

    file: str
    global_lines: list[Line] = field(default_factory=list)
    proxies: list[ProxySection] = field(default_factory=list)
    userlists: set[str] = field(default_factory=set)
    rings: set[str] = field(default_factory=lambda: {"buf0"})
    peers_tables: set[str] = field(default_factory=set)
    """The tables of ``peers`` sections, as ``PEERS/TABLE``."""
    environment: dict[str, str] = field(default_factory=dict)
    """As the file leaves it."""

    def has(self, kind: str, name: str) -> bool:
        """Whether it has what an argument of a fetch or converter names."""
        if kind == "user list":
            return name in self.userlists
        if kind == "ring":
            return name in self.rings
        if kind == "server":
            backend, _, server = name.rpartition("/")
            found = self.find(backend)
            return not backend or (found is not None and server in found.servers)
        if kind == "table":
            return name in self.peers_tables or any(
                p.name == name and p.last("stick-table") for p in self.proxies
            )
        return any(p.name == name and p.kind in (kind, "listen") for p in self.proxies)

    def setting(self, keyword: str) -> str:
        """The value of a line of ``global``; empty if there is none."""
        values = [line.arguments[0] for line in self.global_lines if line.keyword == keyword
                  and line.arguments]  # fmt: skip
        return values[-1] if values else ""

    def find(self, name: str) -> ProxySection | None:
        """The backend or listen section of a name."""
        return next(
            (p for p in self.proxies if p.name == name and p.kind in ("backend", "listen")), None
        )

    def lines(self) -> Iterator[tuple[ProxySection, Line]]:
        for proxy in self.proxies:
            yield from ((proxy, line) for line in proxy.lines)

    def filters(self) -> Iterator[Filter]:
        for proxy, line in self.lines():
            words = line.arguments
            if line.keyword == "filter" and words[:1] == ["spoe"]:
                options = dict(zip(words[1::2], words[2::2], strict=False))
                engine, config = options.get("engine"), options.get("config", "")
                yield Filter(engine, config, proxy, line)

    def group_rules(self) -> Iterator[GroupRule]:
        for proxy, line in self.lines():
            words = line.arguments
            if "send-spoe-group" in words:
                index = words.index("send-spoe-group")
                engine, group = [*words[index + 1 : index + 3], "", ""][:2]
                yield GroupRule(engine, group, proxy, line, line.at(index + 2))

    def variables_read(self) -> Iterator[Use]:
        return self._uses(_READ)

    def variables_set(self) -> set[str]:
        return {use.name for use in self._uses(_SET)}

    def mentioned(self) -> set[str]:
        """All that looks like the name of a variable."""
        return {use.name for use in self._uses(_MENTIONED)}

    def _uses(self, pattern: re.Pattern[str]) -> Iterator[Use]:
        for proxy, line in self.lines():
            for index, word in enumerate(line.words):
                for found in pattern.finditer(word.text):
                    yield Use(found[1], proxy, line, line.at(index, found.start(1)))


def read_haproxy_cfg(path: str | PathLike[str], version: Version | None = None) -> HAProxyConfig:
    """Read a ``haproxy.cfg``, with the conditional blocks that a version reads.

    Raises:
        ConfigError: the file can't be read.
    """
    config = HAProxyConfig(str(path))
    named: dict[str, ProxySection] = {}
    defaults: list[Line] = []
    open_section: ProxySection | None = None
    peers = ""
    data = read_file(path)
    reader = Reader(data, str(path), Collector(), SECTIONS, version=version, strict=False)
    config.environment = reader.environment
    for line in reader:
        if not line.opens:
            if line.section == "global":
                config.global_lines.append(line)
            elif line.section == "peers" and line.keyword == "table" and line.arguments:
                config.peers_tables.add(f"{peers}/{line.arguments[0]}")
            elif open_section:
                open_section.lines.append(line)
            continue
        open_section = None
        peers = "".join(line.arguments[:1])
        if line.section == "userlist":
            config.userlists.update(line.arguments[:1])
        if line.section == "ring":
            config.rings.update(line.arguments[:1])
        if line.section in (*_PROXIES, "defaults"):
            open_section = _section(line, defaults, named)
            if line.section == "defaults":
                named[open_section.name] = open_section
                defaults = open_section.lines
                defaults[:0] = open_section.inherited
            else:
                config.proxies.append(open_section)
    return config


def _section(line: Line, defaults: list[Line], named: dict[str, ProxySection]) -> ProxySection:
    words = line.arguments
    origin = named.get(words[words.index("from") + 1]) if "from" in words[:-1] else None
    inherited = [] if line.section == "defaults" else defaults
    name = words[0] if words and words[0] != "from" else ""
    return ProxySection(
        line.keyword, name, line.at(1 if name else 0), origin.lines if origin else inherited
    )
