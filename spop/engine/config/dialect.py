"""How an SPOE file is read: for which HAProxy, and with which fetches and converters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from spop.constants import LENGTH_SIZE
from spop.engine.config.model import Proxy
from spop.engine.config.versions import DEFAULT, Version
from spop.engine.samples.vocabulary import Vocabulary


class Missing(StrEnum):
    """What becomes of a sample that HAProxy has and the engine can't evaluate."""

    ERROR = "error"
    """It is an error: the engine can't run the file."""

    UNAVAILABLE = "unavailable"
    """The sample is never available."""

    NOTE = "note"
    """As UNAVAILABLE, with HAProxy's verdict: fetches of the engine's own are errors."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is read.

    Attributes:
        version: the HAProxy that the user names; None is 2.6, without its warnings.
        vocabulary: the fetches and converters that there are.
        frame_limit: the highest ``max-frame-size``, and the default.
    """

    version: Version | None
    missing: Missing
    vocabulary: Vocabulary
    frame_limit: int

    @classmethod
    def of(cls, haproxy_version: str | None, missing: str, proxy: Proxy, bufsize: int) -> Self:
        """Read the arguments of `load_spoe`.

        Raises:
            ValueError: there is no such version, or nothing to do with missing samples.
        """
        version = None if haproxy_version is None else Version.of_haproxy(haproxy_version)
        choice = Missing(missing)
        branch = (version or DEFAULT).branch
        vocabulary = Vocabulary(
            branch,
            own=choice is not Missing.NOTE,
            has_backend=proxy is not Proxy.FRONTEND,
        )
        # HAProxy rounds tune.bufsize up to 16 bytes, and keeps room for the length of a frame.
        return cls(version, choice, vocabulary, -(-bufsize // 16) * 16 - LENGTH_SIZE)
