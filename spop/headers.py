"""`Headers`: the compiled twin where the compiled codec is used, else the one in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop import codec

if TYPE_CHECKING or codec.IMPLEMENTATION == "python":
    from spop._headers_py import Headers
else:
    try:
        from spop._headers import Headers
    except ModuleNotFoundError:
        from spop._headers_py import Headers

__all__ = ["Headers"]
