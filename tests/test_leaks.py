"""No error path of a public function of the compiled modules leaves memory or references behind."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

pytest.importorskip("spop._codec", reason="there is one implementation only")

from error_paths import GROUPS, Calls
from spop._dispatch import Dispatcher
from spop._intake import Intake
from spop._port import FastPath, FastPaths

from spop.errors import InvalidFrameError

ROUNDS = int(os.environ.get("SPOP_TEST_LEAK_ROUNDS", "200"))
"""Calls of each path. `make memcheck` has 10 000, `make coverage` measures no memory."""
FEW = 16
"""Bytes of each call that are no leak: numbers of counters, which grow."""
WATCHED = (None, True, b"", "", int, object, IPv4Address, InvalidFrameError, LookupError)


def repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        try:
            call()
        except Exception:
            continue


def references() -> list[int]:
    return [sys.getrefcount(each) for each in WATCHED]


@pytest.mark.parametrize("group", GROUPS)
def test_error_paths_leave_nothing_behind(group: str) -> None:
    calls: Calls = GROUPS[group]()
    gc.collect()
    gc.freeze()  # So that collections look at what the calls make alone.
    for name, call in calls.items():
        repeat(call, 20)
        if not ROUNDS:  # Coverage's own memory grows.
            continue
        gc.collect()
        tracemalloc.start()
        try:
            repeat(call, 5)
            blocks, (memory, _), counts = (
                sys.getallocatedblocks(),
                tracemalloc.get_traced_memory(),
                references(),
            )
            repeat(call, ROUNDS)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - memory
            more = [after - before for after, before in zip(references(), counts, strict=True)]
            assert grown < FEW * ROUNDS, f"{name}: {grown / ROUNDS:.1f} bytes a call"
            assert sys.getallocatedblocks() - blocks < ROUNDS // 2 + 50, name
            assert max(map(abs, more)) < ROUNDS * 9 // 10, (name, more)
        finally:
            tracemalloc.stop()
    gc.unfreeze()


TOLD = ("dispatchers", "fast paths")
"""Groups in which most failures are told to a function, or in an ACK."""


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in TOLD])
def test_each_of_them_is_an_error(group: str) -> None:
    for name, call in GROUPS[group]().items():
        error = error_of(call)
        assert error is not None, name
        assert not isinstance(error, SystemError | MemoryError), (name, error)


def test_none_in_the_place_of_an_object_is_a_type_error() -> None:
    """Compiled code would read memory behind None otherwise."""
    any_: Any = Dispatcher()
    paths: Any = FastPaths(any_, bytearray(256), bool, bool, bool)
    for call in (
        lambda: any_.receive(None, b""),
        lambda: any_.take_back(None),
        lambda: any_.result(None, None, None, 0, 256),
        lambda: any_.acknowledge(None, None, None),
        lambda: FastPath(paths, None, -1, "it"),  # type: ignore[arg-type]
        lambda: FastPath(None, Intake(256), -1, "it"),  # type: ignore[arg-type]
    ):
        assert isinstance(error_of(call), TypeError)


def error_of(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None
