"""Versions of HAProxy, and the keywords of an SPOE configuration that each supports.

The reader takes what HAProxy 2.6 takes. For another version, it warns of what that version lacks or
ignores.
"""

from __future__ import annotations

from collections.abc import Mapping

from spop.haproxy_version import Version as Version

_LATEST = 10**6


DEFAULT = Version.of_haproxy("2.6")
"""The version that decides what is an error, unless the user names one."""

FINAL_NEWLINE = (2, 3)
"""The first branch that refuses a file whose last line does not end with a newline."""

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

IGNORED_SINCE: Mapping[str, tuple[int, int]] = dict.fromkeys(
    (
        "maxconnrate",
        "maxerrrate",
        "max-waiting-frames",
        "option async",
        "option send-frag-payload",
        "timeout hello",
        "timeout idle",
    ),
    (3, 1),
)
"""The first branch that reads each keyword and ignores it."""


def unsupported(keyword: str, version: Version) -> str | None:
    """Why a version of HAProxy does not support a keyword; None if it does."""
    if version.branch < SINCE.get(keyword, (1, 7)):
        major, minor = SINCE[keyword]
        return f"HAProxy {version.major}.{version.minor} has no '{keyword}': new in {major}.{minor}"
    if version.branch >= IGNORED_SINCE.get(keyword, (_LATEST, 0)):
        major, minor = IGNORED_SINCE[keyword]
        return f"HAProxy ignores '{keyword}' since {major}.{minor}"
    return None
