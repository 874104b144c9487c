"""The reader of SPOE files: any bytes give a configuration or diagnostics."""

from __future__ import annotations

from random import Random
from typing import Any

from pair import Twins
from structure import OPTIONS, Options, in_list

from spop.engine.config.spoe import parse_spoe

__all__ = ["mutate", "outcome"]

ENGINES = [None, None, "engine", "waf", "ip-reputation", "mirror"]
MARKS = (b"", b"(", b")", b",", b"'", b'"')
VERSIONS = ["2.6", None, "1.8", "2.2", "3.0", "3.2", "3.4"]


def outcome(twins: Twins, data: bytes) -> Any:
    options = Options(data)
    engine, version = options.take(ENGINES), options.take(VERSIONS)
    missing = options.take(["note", "error", "unavailable"])
    text = data[OPTIONS:]
    report = parse_spoe(text, engine=engine, haproxy_version=version, missing=missing)
    assert (report.config is None) == any(
        each.severity.name == "ERROR" for each in report.diagnostics
    )
    for each in report.diagnostics:
        assert each.message
        assert 1 <= each.location.line <= text.count(b"\n") + 1, each
    return len(report.diagnostics)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Lines and words that change places, and words of other lines."""
    rng = Random(seed)
    options, lines = data[:OPTIONS].ljust(OPTIONS, b"\0"), data[OPTIONS:].split(b"\n")
    if rng.randrange(6) == 0:
        options = rng.randbytes(OPTIONS)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if rng.randrange(3) == 0:
            in_list(rng, lines, lambda: rng.choice(lines or [b""]))
            continue
        place = rng.randrange(len(lines) or 1)
        words = (lines or [b""])[place].split(b" ")
        other = rng.choice(lines or [b""]).split(b" ")
        in_list(rng, words, lambda other=other: rng.choice(other) + rng.choice(MARKS))
        lines[place : place + 1] = [b" ".join(words)]
    return (options + b"\n".join(lines))[:max_size]
