"""The ledger of `make chaos`: what it takes for an answer, for an error, and for what must not be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

LOAD = Path(__file__).parent.parent / "chaos" / "load.py"
PATH = "/inline/8000-1-5"


@pytest.fixture
def ledger() -> Any:
    spec = importlib.util.spec_from_file_location("chaos_load", LOAD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Ledger()


@pytest.mark.parametrize(
    ("seen", "balanced"),
    [
        ((PATH, "", ""), True),
        (("", "yes", ""), True),
        (("", "", "1"), True),
        (("/inline/8001-1-5", "", ""), False),
        (("", "", ""), False),
        (("", "yes", "1"), False),
        ((PATH, "yes", ""), False),
        ((PATH, "", "1"), False),
    ],
    ids=["own answer", "on_error", "error", "another's", "nothing", "both", "answer and on_error",
         "answer and error"],
)  # fmt: skip
def test_a_request_has_its_own_answer_or_one_error(
    ledger: Any, seen: tuple[str, str, str], balanced: bool
) -> None:
    ledger.begin()
    ledger.count(PATH, *seen)
    assert ledger.balanced is balanced


def test_a_request_without_a_response_is_missing(ledger: Any) -> None:
    ledger.begin()
    assert not ledger.balanced


def test_only_the_own_answer_is_right_without_trouble(ledger: Any) -> None:
    assert ledger.count(PATH, PATH, "", "")
    assert not ledger.count(PATH, "", "yes", "")
    assert not ledger.count(PATH, "", "", "1")
    assert ledger.count("/failing/8000-1-6", "", "yes", "")
