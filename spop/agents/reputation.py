"""The reputation of an address: lists of networks, its country, its autonomous system.

spop serve spop.agents.reputation:agent --config spop.toml

The message ``reputation`` has the argument ``ip``. It sets ``score``, from 0 (bad) to 100 (good),
and, where they are known, ``list``, ``country``, ``asn`` and ``as_name``, all of scope ``txn``. Files and
feeds are read again while requests are answered. What was read last is kept where that fails.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal

import maxminddb

from spop import Agent, Cache
from spop.agents import networks
from spop.agents.networks import NONE, Index, is_feed, stamp
from spop.agents.state_dir import use_state_dir

logger: logging.Logger = logging.getLogger("spop.agents.reputation")

BEST = 100
"""The score of what nothing bad is known about."""
MOST_DATABASES = 8
"""An agent has 256 metrics at most: 3 for each list, 2 for each database."""
START = 10.0
"""Seconds for which the start waits for lists that were never built."""
RETRY = 60.0
"""Seconds after which a list that failed is tried again, if `refresh` is longer."""


@dataclass
class NetworkList:
    """A table ``[settings.lists.NAME]``.

    Attributes:
        source: a file, or the http(s) URL of a feed.
        kind: the addresses of an allowlist have the score 100, whatever else is known about them.
        score: that of the addresses of a blocklist.
    """

    source: str
    kind: Literal["allow", "block"] = "block"
    score: int = 0

    def __post_init__(self) -> None:
        _check_score("score", self.score)
        if not is_feed(self.source) and not Path(self.source).is_file():
            raise ValueError(f"source: {self.source!r} is no file, and no http:// or https:// URL")
        if self.kind == "allow":
            self.score = BEST


@dataclass
class Settings:
    """The table ``[settings]``.

    Attributes:
        lists: an address in several has the score of an allowlist, or else the lowest.
        databases: files in MaxMind's format, of countries, cities or autonomous systems.
        country_scores, asn_scores: of addresses in no list. The lower one counts.
        refresh: seconds until a feed is fetched again. Files are read when they change.
        timeout: seconds for which a feed may send nothing.
        state_dir: where lists and databases are kept. All processes of the agent share them there.
    """

    lists: dict[str, NetworkList] = field(default_factory=dict)
    databases: list[Path] = field(default_factory=list)
    country_scores: dict[str, int] = field(default_factory=dict)
    asn_scores: dict[str, int] = field(default_factory=dict)
    refresh: float = 3600.0
    timeout: float = 10.0
    state_dir: Path = Path(tempfile.gettempdir()) / f"spop-reputation-{os.getuid()}"

    def __post_init__(self) -> None:
        if len(self.lists) > networks.MOST_LISTS:
            raise ValueError(f"lists: there are {len(self.lists)}, {networks.MOST_LISTS} at most")
        if len(self.databases) > MOST_DATABASES:
            raise ValueError(
                f"databases: there are {len(self.databases)}, {MOST_DATABASES} at most"
            )
        for name in self.lists:
            if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
                raise ValueError(f"lists: {name!r} is no name: letters, digits, '_', '-' and '.'")
        for name in ("refresh", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: it is {getattr(self, name)} s, and must be more than 0")
        for path in self.databases:
            try:
                maxminddb.open_database(path).close()
            except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
                raise ValueError(f"databases: {error}") from None
        for scores in ("country_scores", "asn_scores"):
            for score in getattr(self, scores).values():
                _check_score(scores, score)
        if any(not asn.isdecimal() for asn in self.asn_scores):
            raise ValueError('asn_scores: the keys are numbers, such as "64496"')


def _check_score(key: str, score: int) -> None:
    if not 0 <= score <= BEST:
        raise ValueError(f"{key}: {score} is not from 0 to {BEST}")


agent: Agent = Agent(name="reputation", config=Settings)


class Lists:
    """The lists of this process, in an index that all processes with these lists share.

    One of them starts a process that builds the next index. That process has a lock until it ends.
    All see that the file was replaced.

    Attributes:
        outcomes: name and score of each list, by its number; the last is that of no list.
        index: the present one.
    """

    def __init__(self, settings: Settings) -> None:
        ordered = sorted(settings.lists.items(), key=lambda each: _rank(each[1]))
        self._sources = {name: each.source for name, each in ordered}
        self._settings = settings
        known = [(name, each.score) for name, each in ordered]
        nothing = [(None, BEST)] * (NONE + 1 - len(ordered))
        self.outcomes: list[tuple[str | None, int]] = [*known, *nothing]
        self._path = settings.state_dir / f"{networks.digest(json.dumps(self._sources))}.index"
        self._retry = 0.0
        self._process: subprocess.Popen[str] | None = None
        self.index: Index = Index(memoryview(networks.encoded({}, [], [])))
        self._gauges = {
            name: (
                agent.gauge("reputation_networks", "Networks of a list.", list=name),
                agent.gauge("reputation_updated_seconds", "When a list was last read.", list=name),
            )
            for name in self._sources
        }
        self._failures = {
            name: agent.counter("reputation_failures", "Failures to read a list.", list=name)
            for name in self._sources
        }

    def start(self) -> None:
        """Map the index. Have it built first if there is none, and wait a while for that.

        Raises:
            ValueError: the folder can't be used.
            OSError: its files can't be used.
            RuntimeError: it can't be built.
        """
        end = time.monotonic() + START
        while not self.refresh():
            if time.monotonic() > end:
                logger.warning("the lists are not built yet: no address is in a list till then")
                return
            time.sleep(0.05)

    def refresh(self) -> bool:
        """Have a new index built if it is time. Returns whether there is one, from any process."""
        if self._process is not None:
            if self._process.poll() is None:
                return False
            self._tell_end(self._process)
        elif time.monotonic() >= self._retry and self._is_due():
            self._build()
        if self._stamp() in (self.index.stamp, None):
            return False
        try:
            self._open()
        except (OSError, ValueError, LookupError) as error:  # Another version may have written it.
            logger.error("index %s: %s; it is built again", self._path, error)
            self._path.unlink(missing_ok=True)
            return False
        return True

    def _stamp(self) -> Any:
        return _stamp_or(str(self._path), None)

    def _build(self) -> None:
        """Start to build an index, unless somebody does. This takes no time from the requests."""
        use_state_dir(self._settings.state_dir)
        told = {
            "path": str(self._path),
            "sources": self._sources,
            "timeout": self._settings.timeout,
        }
        with (
            self._path.with_suffix(".lock").open("w") as lock,
            suppress(BlockingIOError, BrokenPipeError),
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._stamp() not in (self.index.stamp, None):
                return
            self._process = subprocess.Popen(
                [sys.executable, "-P", networks.__file__],
                text=True, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=[lock.fileno()],  # So that the lock ends with this process.
            )  # fmt: skip
            assert self._process.stdin is not None
            with self._process.stdin as stdin:
                json.dump(told, stdin)

    def _tell_end(self, process: subprocess.Popen[str]) -> None:
        self._process = None
        assert process.stderr is not None
        with process.stderr as stderr:
            errors = stderr.read()
        if process.returncode:
            self._retry = time.monotonic() + RETRY
            raise RuntimeError(f"the lists can't be built: {errors.strip() or 'it was killed'}")
        for name, about in Index.open(self._path).about.items():
            if about["error"]:
                self._failures[name].add()
                logger.error("list %r: %s; %s", name, about["error"], _kept(about))
            else:
                logger.info("list %r has %d networks", name, about["networks"])

    def _open(self) -> None:
        self.index = Index.open(self._path)
        for name, about in self.index.about.items():
            count, updated = self._gauges[name]
            count.set(about["networks"])
            updated.set(about["updated"])

    def _is_due(self) -> bool:
        about = self.index.about
        failed = any(each["error"] for each in about.values())
        age = time.time() - self.index.stamp[0] / 1e9
        refresh = self._settings.refresh
        if self._stamp() is None or age >= (min(RETRY, refresh) if failed else refresh):
            return True
        return any(
            list(_stamp_or(source, about[name]["stamp"])) != about[name]["stamp"]
            for name, source in self._sources.items()
            if not is_feed(source)
        )


def _rank(each: NetworkList) -> tuple[bool, int]:
    """Allowlists count before others, and then the lowest score."""
    return each.kind != "allow", each.score


def _stamp_or(source: str, default: Any) -> Any:
    try:
        return stamp(Path(source))
    except OSError:  # It is gone; its networks are kept.
        return default


def _kept(about: dict[str, Any]) -> str:
    if not about["networks"]:
        return "it has no networks yet"
    return f"its {about['networks']} networks of {time.ctime(about['updated'])} are kept"


class Database:
    """A file in MaxMind's format, opened again when it changes.

    All processes map one copy of it, as a file that is written in place would change under them.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._folder = folder
        self._failures = agent.counter(
            "reputation_database_failures", "Failures to open a database.", database=path.name
        )
        self._built = agent.gauge(
            "reputation_database_built_seconds", "When a database was built.", database=path.name
        )
        self._open()

    def _open(self) -> None:
        self._stamp = stamp(self._path)
        copy = self._folder / f"{networks.digest(f'{self._path} {self._stamp}')}.mmdb"
        if not copy.exists():
            networks.replace(copy, self._path.read_bytes())
        try:
            reader = maxminddb.open_database(copy)
        except maxminddb.InvalidDatabaseError:
            copy.unlink(missing_ok=True)
            raise
        self._reader, self._copy = reader, copy
        about = self._reader.metadata()
        self._has_6 = about.ip_version == 6
        self._built.set(about.build_epoch)

    def refresh(self) -> bool:
        """Open a file that has changed. The former one is kept where that fails."""
        if _stamp_or(str(self._path), self._stamp) == self._stamp:
            return False
        former = self._copy
        try:
            self._open()
        except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
            self._failures.add()
            logger.error("database %s: %s; the former one is kept", self._path, error)
            return False
        former.unlink(missing_ok=True)  # Who has mapped it keeps it.
        logger.info("database %s was replaced", self._path)
        return True

    def get(self, ip: IPv4Address | IPv6Address) -> dict[str, Any]:
        """What is known about an address."""
        if ip.version == 6 and not self._has_6:
            return {}
        found = self._reader.get(ip)
        return found if isinstance(found, dict) else {}


@agent.lifespan
def resources() -> Iterator[dict[str, Any]]:
    lists = Lists(agent.config)
    lists.start()
    yield {
        "lists": lists,
        "databases": [Database(path, agent.config.state_dir) for path in agent.config.databases],
    }


@agent.every(1.0, jitter=0.1, once=True)
def refresh() -> None:
    """In a thread, so that no request waits for it."""
    changed = [each.refresh() for each in (agent.state["lists"], *agent.state["databases"])]
    cache = agent.handlers["reputation"].cache
    if any(changed) and cache is not None:
        cache.clear()


@agent.message(
    "reputation",
    cache=Cache(ttl=60.0, size=100_000),
    sets=["txn.score", "txn.list", "txn.country", "txn.asn", "txn.as_name"],
)
def reputation(ip: IPv4Address | IPv6Address) -> dict[str, Any]:
    state, config = agent.state, agent.config
    lists = state["lists"]
    name, score = lists.outcomes[lists.index.find(ip.packed)]
    known = _known(state["databases"], ip) if state["databases"] else {}
    country = (known.get("country") or known.get("registered_country") or {}).get("iso_code")
    asn = known.get("autonomous_system_number")
    if name is None:
        scores = config.country_scores.get(country, BEST), config.asn_scores.get(str(asn), BEST)
        score = min(scores)
    return {
        "txn.score": score,
        "txn.list": name,
        "txn.country": country,
        "txn.asn": asn,
        "txn.as_name": known.get("autonomous_system_organization"),
    }


def _known(databases: list[Database], ip: IPv4Address | IPv6Address) -> dict[str, Any]:
    """What all databases know about an address."""
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    known: dict[str, Any] = {}
    for database in databases:
        known |= database.get(ip)
    return known
