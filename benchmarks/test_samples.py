"""What expressions and conditions cost for each request, by pytest-benchmark.

Every group has an empty function for comparison: ratios count. Each round lasts a millisecond,
so that reading the clock does not count.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from spop.engine.acl import compile_condition
from spop.engine.samples import compile_expression
from spop.engine.stream import Request, Stream

HEADERS = [
    ("Host", "shop.example:8080"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("Accept-Language", "en-US,en;q=0.5"),
    ("Accept-Encoding", "gzip, deflate, br"),
    ("Referer", "https://shop.example/"),
    ("Cookie", "sid=abc; theme=dark; basket=17"),
    ("X-Forwarded-For", "10.1.2.3"),
    ("Connection", "keep-alive"),
    ("Cache-Control", "no-cache"),
]

EXPRESSIONS = [
    "src",
    "method",
    "path",
    "str(x)",
    "var(txn.a.b)",
    "var(txn.a.b),add(1)",
    "req.hdr(user-agent)",
    "req.hdr(host),lower",
    "req.hdr(accept,2)",
    "req.hdrs",
    "req.cook(theme)",
    "req.hdr_ip(x-forwarded-for)",
    "urlp(y)",
    "path,field(2,/)",
    "src,ipmask(24)",
]

CONDITIONS = [
    "METH_GET",
    "{ path_beg /api }",
    "!{ path_end -i .png .gif .css }",
    "{ path_reg ^/api/[a-z]+$ }",
    "{ src 10.0.0.0/8 192.168.0.0/16 }",
    "{ hdr(host) -i shop.example:8080 }",
    "{ var(txn.a.b) -m int gt 3 }",
    "METH_GET !{ path_beg /static } or { hdr_cnt(cookie) 0 }",
]

A_FEW = ["src", "method", "path", "req.hdr(host)", "req.hdr(user-agent)", "req.hdrs"]
"""What an engine typically sends of each request."""


def stream() -> Stream:
    request = Request("GET", "/api/items?x=1&y=2", headers=HEADERS)
    return Stream(IPv4Address("10.0.0.7"), 50123, request=request, variables={"txn.a.b": 5})


def nothing(of: Stream) -> None:
    return None


@pytest.mark.benchmark(min_time=0.001, group="expression")
@pytest.mark.parametrize("text", ["", *EXPRESSIONS])
def test_expression(benchmark: Any, text: str) -> None:
    evaluate = compile_expression(text).evaluate if text else nothing
    assert (benchmark(evaluate, stream()) is None) is not bool(text)


@pytest.mark.benchmark(min_time=0.001, group="condition")
@pytest.mark.parametrize("text", ["", *CONDITIONS])
def test_condition(benchmark: Any, text: str) -> None:
    holds = compile_condition(text.split()).holds if text else nothing
    assert bool(benchmark(holds, stream())) is bool(text)


@pytest.mark.benchmark(min_time=0.001, group="six expressions of a fresh request")
@pytest.mark.parametrize("texts", [[], A_FEW], ids=["none", "six"])
def test_a_few_expressions(benchmark: Any, texts: list[str]) -> None:
    readers = [compile_expression(text).evaluate for text in texts]
    address = IPv4Address("10.0.0.7")

    def evaluate_all() -> list[object]:
        fresh = Stream(address, 50123, request=Request("GET", "/a", headers=HEADERS))
        return [evaluate(fresh) for evaluate in readers]

    assert None not in benchmark(evaluate_all)
