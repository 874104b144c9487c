"""Versions of HAProxy, and the keywords of an SPOE configuration that each supports.

The reader takes what HAProxy 2.6 takes. For another version, what that version lacks is an error,
and what it ignores a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_VERSION = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-(?:dev|rc|pre)(\d+)?)?", re.ASCII)
_LATEST = 10**6


class Version(NamedTuple):
    """A version. The last number orders pre-releases; that of a release is higher than all."""

    major: int
    minor: int
    patch: int
    pre_release: int

    @classmethod
    def read(cls, text: str) -> Version:
        """A version as ``version_atleast()`` takes it. A missing number is 0, as is other text."""
        match = _VERSION.match(text)
        if match is None:
            return cls(0, 0, 0, _LATEST)
        major, minor, patch, pre = (int(number or 0) for number in match.groups())
        return cls(major, minor, patch, pre if "-" in match[0] else _LATEST)

    @classmethod
    def of_haproxy(cls, text: str) -> Version:
        """The version that a user names. ``2.6`` is the newest version of that branch.

        Raises:
            ValueError: the text is no version of HAProxy.
        """
        if not _VERSION.fullmatch(text) or "." not in text:
            raise ValueError(f"{text!r} is no version of HAProxy, as '2.6' or '3.0.11'")
        version = cls.read(text)
        return version if text.count(".") > 1 else version._replace(patch=_LATEST)

    @property
    def branch(self) -> tuple[int, int]:
        return self.major, self.minor


DEFAULT_VERSION = "2.6"
DEFAULT = Version.of_haproxy(DEFAULT_VERSION)
"""The version that decides what is an error, unless the user names one."""

FINAL_NEWLINE = (2, 3)
"""The first branch that refuses a file whose last line does not end with a newline."""

EMPTY_WORDS = (3, 3)
"""The first branch that refuses an empty word."""

TCP_LOGS = (3, 0)
"""The first branch whose agents can log over TCP."""

SINCE: Mapping[str, tuple[int, int]] = {
    "acl": (1, 8),
    "conditions": (1, 8),
    "groups": (1, 8),
    "spoe-group": (1, 8),
    "max-frame-size": (1, 8),
    "option async": (1, 8),
    "option pipelining": (1, 8),
    "option send-frag-payload": (1, 8),
    "log": (1, 9),
    "max-waiting-frames": (1, 9),
    "register-var-names": (1, 9),
    "option dontlog-normal": (1, 9),
    "option force-set-var": (1, 9),
    "option set-process-time": (1, 9),
    "option set-total-time": (1, 9),
    "directives": (2, 4),
}
"""The first branch with each keyword. Other keywords are as old as SPOE: 1.7."""

REWRITTEN = (3, 1)
"""The branch with the rewritten filter."""

REPLACED_BY: Mapping[str, str] = {
    "maxconnrate": "'rate-limit' of a frontend, or 'maxconn' of the agent's servers",
    "maxerrrate": "health checks and 'observe' of the agent's servers",
    "max-waiting-frames": "'maxconn' of the agent's servers: 20 frames are in flight on each",
    "option async": "nothing: an ACK comes on the connection of its NOTIFY",
    "option send-frag-payload": "a larger 'tune.bufsize', up to which a payload fits one frame",
    "timeout hello": "'timeout check' and 'timeout server' of the agent's backend",
    "timeout idle": "'timeout server' and 'pool-purge-delay' of the agent's backend",
}
"""What replaces each of the keywords that HAProxy reads and ignores since 3.1."""


def lacks(keyword: str, version: Version) -> str | None:
    """Why a version of HAProxy refuses a keyword; None if it has it."""
    if version.branch >= SINCE.get(keyword, (1, 7)):
        return None
    major, minor = SINCE[keyword]
    return f"HAProxy {version.major}.{version.minor} has no '{keyword}': new in {major}.{minor}"


def ignores(keyword: str, version: Version) -> bool:
    """Whether a version of HAProxy reads a keyword and ignores it."""
    return keyword in REPLACED_BY and version.branch >= REWRITTEN
