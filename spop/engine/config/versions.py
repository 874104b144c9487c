"""Versions of HAProxy, and the keywords of an SPOE configuration that each supports.

The reader takes what HAProxy 2.6 takes. For another version, what that version lacks is an error,
and what it ignores a note.
"""

from __future__ import annotations

from collections.abc import Mapping

from spop.haproxy_version import Version as Version

DEFAULT_VERSION = "2.6"
DEFAULT = Version.of_haproxy(DEFAULT_VERSION)
"""The version that decides what is an error, unless the user names one."""

FINAL_NEWLINE = (2, 3)
"""The first branch that refuses a file whose last line does not end with a newline."""

EMPTY_WORDS = (3, 3)
"""The first branch that refuses an empty word."""

JOINS_UNSET = ((2, 8), (2, 9), (3, 0), (3, 1), (3, 2))
"""The branches to which ``"$NAME"`` is no word, not even an empty one, if the variable is unset."""

TCP_LOGS = (3, 0)
"""The first branch whose agents can log over TCP."""

HEADER_LISTS = (3, 4)
"""The first branch with ``add-headers-bin`` and its like."""

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
    return keyword in REPLACED_BY and version.rewritten
