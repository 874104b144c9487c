"""Versions of HAProxy, and what its connections to agents look like since 3.1."""

from __future__ import annotations

import re
from typing import NamedTuple

_VERSION = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-(?:dev|rc|pre)(\d+)?)?", re.ASCII)
_LATEST = 10**6

REWRITTEN_SINCE = (3, 1)
"""The first branch whose engine has no fragments, no async exchanges and no rates, and counts
stream-ids for each connection."""

MAX_STREAMS = 20
"""Exchanges at a time on a connection since 3.1, if the agent pipelines. It is no setting there."""


class Version(NamedTuple):
    """A version. The last number orders pre-releases; that of a release is higher than all."""

    major: int
    minor: int
    patch: int
    pre_release: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

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

    @property
    def rewritten(self) -> bool:
        """Whether its engine is that of 3.1 and later."""
        return self.branch >= REWRITTEN_SINCE
