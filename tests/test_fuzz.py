"""The corpus of the fuzzers, with both twins, without sanitizers: `make fuzz` looks for more."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

FUZZ = Path(__file__).parent.parent / "fuzz"
sys.path.insert(0, str(FUZZ))

from pair import Twins, compiled, in_python, plain  # noqa: E402
from targets import TARGETS, WITHOUT_TWINS  # noqa: E402

pytest.importorskip("spop._codec", reason="there is one implementation only")


@pytest.fixture(scope="module")
def twins() -> tuple[Twins, Twins]:
    return compiled(), in_python()


def inputs(name: str) -> list[Path]:
    return sorted((FUZZ / "corpus" / name).iterdir())


@pytest.mark.parametrize("name", TARGETS)
def test_twins_have_the_same_outcomes_of_the_corpus(name: str, twins: tuple[Twins, Twins]) -> None:
    target: Any = importlib.import_module(f"targets.{name}")
    for path in inputs(name):
        for data in (path.read_bytes(), *mutations(target, path)):
            found = plain(target.outcome(twins[0], data))
            assert name in WITHOUT_TWINS or found == plain(target.outcome(twins[1], data)), path


def mutations(target: Any, path: Path) -> list[bytes]:
    """Three inputs that a fuzzer would try, always the same."""
    rng = Random(path.name)
    return [target.mutate(path.read_bytes(), 4096, rng.randrange(2**32)) for _ in range(3)]
