"""Matching ACKs, in the twin that `spop.twins` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop.load._acks_py import SUB_BITS
from spop.twins import twin

if TYPE_CHECKING:
    from spop.load._acks_py import bucket, take_acks
else:
    _acks = twin("spop.load._acks")
    bucket, take_acks = _acks.bucket, _acks.take_acks

__all__ = ["SUB_BITS", "bucket", "take_acks"]
