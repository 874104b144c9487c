"""Versions of HAProxy, and the keywords of an SPOE configuration that each supports.

The reader takes what HAProxy 2.6 takes. For another version, it warns of what that version lacks or
ignores.
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
