"""The agents are tested with the HAProxys that their pages have files for."""

from __future__ import annotations

import haproxy
import pytest

BRANCHES = {(2, 6), (3, 4)}


def _chosen() -> list[str]:
    there = haproxy.installed()
    return [path for path in there if haproxy.version(path)[:2] in BRANCHES] or there[:1]


@pytest.fixture(params=_chosen(), ids=haproxy.dotted)
def haproxy_binary(request: pytest.FixtureRequest) -> str:
    """HAProxy 2.6 and 3.4, or the one of this machine."""
    path: str = request.param
    return path
