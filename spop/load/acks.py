"""Matching ACKs: the compiled twin where the compiled codec is used, else the one in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop import codec
from spop.load._acks_py import SUB_BITS

if TYPE_CHECKING or codec.IMPLEMENTATION == "python":
    from spop.load._acks_py import bucket, take_acks
else:
    try:
        from spop.load._acks import bucket, take_acks
    except ModuleNotFoundError:
        from spop.load._acks_py import bucket, take_acks

__all__ = ["SUB_BITS", "bucket", "take_acks"]
