"""`Headers`, in the twin that `spop.twins` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop.twins import twin

if TYPE_CHECKING:
    from spop._headers_py import Headers
else:
    Headers = twin("spop._headers").Headers

__all__ = ["Headers"]
