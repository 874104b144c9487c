"""The SPOP types that fetches really arrive with: `arriving_types`.

A declared type is not what arrives: ``src`` declares IPv4 and may be IPv6, ``req.hdrs`` declares
binary and is sent as STRING. ``ci/haproxy_types.py`` makes the table from what an agent was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from spop.constants import DataType

_KINDS: Mapping[str, frozenset[DataType]] = {
    "BOOL": frozenset((DataType.BOOL,)),
    "INTEGER": frozenset((DataType.INT32, DataType.UINT32, DataType.INT64, DataType.UINT64)),
    "ADDRESS": frozenset((DataType.IPV4, DataType.IPV6)),
    "STRING": frozenset((DataType.STRING,)),
    "BINARY": frozenset((DataType.BINARY,)),
}


def arriving_types(expression: str) -> frozenset[DataType]:
    """The types of a fetch with its arguments; none if it is not known."""
    kinds = _table().get(expression.partition("(")[0], ())
    return frozenset().union(*(_KINDS[kind] for kind in kinds))


@cache
def _table() -> Mapping[str, list[str]]:
    text = (files("spop.engine.haproxy") / "types.tsv").read_text()
    rows = (line.split("\t") for line in text.splitlines())
    return {name: kinds.split() for name, kinds in rows}
