from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import haproxy
import hypothesis
import pytest

from spop import codec
from spop.engine.variables import PROCESS

# The same examples each time; `make fuzz` looks for new ones.
hypothesis.settings.register_profile(
    "steady", max_examples=300, derandomize=True, deadline=None, database=None
)
hypothesis.settings.register_profile("search", max_examples=20_000, deadline=None)
hypothesis.settings.load_profile("steady")


def twins(name: str) -> list[object]:
    modules = [pytest.param(importlib.import_module(f"spop.{name}_py"), id="python")]
    try:
        modules.append(pytest.param(importlib.import_module(f"spop.{name}"), id="c"))
    except ModuleNotFoundError:
        assert codec.IMPLEMENTATION == "python"
    return modules


@pytest.fixture(params=twins("_codec"))
def twin(request: pytest.FixtureRequest) -> ModuleType:
    """Each implementation of the codec."""
    module: ModuleType = request.param
    return module


@pytest.fixture(params=twins("_dispatch"))
def dispatch(request: pytest.FixtureRequest) -> ModuleType:
    """Each implementation of the dispatcher."""
    module: ModuleType = request.param
    return module


@pytest.fixture(params=twins("_headers"))
def headers_twin(request: pytest.FixtureRequest) -> ModuleType:
    """Each implementation of `Headers`."""
    module: ModuleType = request.param
    return module


@pytest.fixture(
    params=haproxy.installed(), ids=lambda path: ".".join(map(str, haproxy.version(path)))
)
def haproxy_binary(request: pytest.FixtureRequest) -> str:
    """Each HAProxy of this machine."""
    path: str = request.param
    return path


@pytest.fixture(autouse=True)
def no_process_variables() -> Iterator[None]:
    """The variables of scope ``proc`` are every test's own."""
    yield
    PROCESS.clear()
