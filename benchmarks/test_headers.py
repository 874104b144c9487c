"""One header of forty, looked up, against all forty made to objects, by pytest-benchmark.

Each time the headers are new, as a handler is given them. The one that is looked up is the last.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

FIELDS = [(f"x-header-{number}", f"some value of header {number}") for number in range(39)]
FIELDS.append(("x-forwarded-for", "192.0.2.10"))
TEXT = "".join(f"{name}: {value}\r\n" for name, value in FIELDS) + "\r\n"

Read = Callable[[Any], Any]


def plain_python(text: str) -> dict[str, str]:
    """What a handler does that is given ``req.hdrs`` as str."""
    return dict(line.split(": ", 1) for line in text.split("\r\n") if line)


def reads(module: str) -> dict[str, Read]:
    headers = pytest.importorskip(module).Headers
    return {
        "one": lambda sent: headers(sent)["X-Forwarded-For"],
        "one that is missing": lambda sent: headers(sent).get("cookie"),
        "all": lambda sent: headers(sent).items(),
    }


TWINS = {"compiled": "spop._headers", "pure Python": "spop._headers_py"}


@pytest.mark.benchmark(min_time=0.001)
@pytest.mark.parametrize("form", ["req.hdrs", "req.hdrs_bin"])
@pytest.mark.parametrize("read", ["one", "one that is missing", "all"])
@pytest.mark.parametrize("twin", TWINS)
def test_headers(benchmark: Any, twin: str, read: str, form: str) -> None:
    python = importlib.import_module("spop._headers_py").Headers
    sent = TEXT if form == "req.hdrs" else python(FIELDS).__spop_binary__()
    benchmark.group = f"forty headers, {form}"
    benchmark.extra_info["package"] = f"{read}, {twin}"
    found = benchmark(reads(TWINS[twin])[read], sent)
    assert found == {"one": "192.0.2.10", "one that is missing": None, "all": FIELDS}[read]


@pytest.mark.benchmark(min_time=0.001, group="forty headers, req.hdrs")
def test_plain_python(benchmark: Any) -> None:
    benchmark.extra_info["package"] = "a dict of all, without spop"
    assert benchmark(lambda: plain_python(TEXT)["x-forwarded-for"]) == "192.0.2.10"
