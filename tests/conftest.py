from __future__ import annotations

import importlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import haproxy
import hypothesis
import pytest

from spop import codec
from spop.context import ContextFilter
from spop.engine.variables import PROCESS

# A shell without job control has its background processes ignore SIGINT, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time; `make fuzz` looks for new ones.
hypothesis.settings.register_profile(
    "steady", max_examples=300, derandomize=True, deadline=None, database=None
)
hypothesis.settings.register_profile("search", max_examples=3_000, deadline=None)
hypothesis.settings.register_profile(
    "coverage", max_examples=20, derandomize=True, deadline=None, database=None
)
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


@pytest.fixture(params=["python"] if codec.IMPLEMENTATION == "python" else ["python", "c"])
def implementation(request: pytest.FixtureRequest) -> str:
    """Each implementation that there is."""
    name: str = request.param
    return name


@pytest.fixture
def dispatch(implementation: str) -> ModuleType:
    """The dispatcher's module of an implementation."""
    return importlib.import_module("spop._dispatch" + ("" if implementation == "c" else "_py"))


@pytest.fixture
def port(implementation: str) -> ModuleType:
    """The fast path's module of the same implementation as `dispatch`."""
    return importlib.import_module("spop._port" + ("" if implementation == "c" else "_py"))


@pytest.fixture
def context_filter(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Captured log records have what `ContextFilter` adds."""
    # The handler is one for all tests.
    with caplog.filtering(ContextFilter()):
        yield


@pytest.fixture(params=twins("_headers"))
def headers_twin(request: pytest.FixtureRequest) -> ModuleType:
    """Each implementation of `Headers`."""
    module: ModuleType = request.param
    return module


@pytest.fixture(params=haproxy.installed(), ids=haproxy.dotted)
def haproxy_binary(request: pytest.FixtureRequest) -> str:
    """Each HAProxy of this machine."""
    path: str = request.param
    return path


@pytest.fixture
def haproxy_2_6() -> str:
    """HAProxy 2.6, whose samples and verdicts are compared with ours."""
    for path in haproxy.installed():
        if haproxy.version(path)[:2] == (2, 6):
            return path
    pytest.skip("needs HAProxy 2.6")


@pytest.fixture
def haproxy_in_path(haproxy_binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each HAProxy of this machine, as the one that is found by its name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "haproxy").symlink_to(haproxy_binary)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return haproxy_binary


def pytest_itemcollected(item: pytest.Function) -> None:
    """Mark what `make haproxy` runs on every version: each test that asks for a HAProxy."""
    if not {"haproxy_binary", "haproxy_2_6"}.isdisjoint(item.fixturenames):
        item.add_marker(pytest.mark.haproxy)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", help="N/M: the Nth of M parts of the files")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other parts. Each M-th file is of one part, as those of a topic are alike."""
    number, count = map(int, config.getoption("part").split("/"))
    files = list(dict.fromkeys(item.path for item in items))
    mine = set(files[number - 1 :: count])
    config.hook.pytest_deselected(items=[item for item in items if item.path not in mine])
    items[:] = [item for item in items if item.path in mine]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests were skipped: a line for each reason."""
    skipped = terminalreporter.getreports("skipped")
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(autouse=True)
def no_process_variables() -> Iterator[None]:
    """The variables of scope ``proc`` are every test's own."""
    yield
    PROCESS.clear()


# These tests use no twin. They run once, with the compiled modules.
if os.environ.get("SPOP_PURE", "") not in ("", "0"):
    collect_ignore = [
        "agents",
        "samples",
        "test_addresses.py",
        "test_admin_http.py",
        "test_agent_ratelimit.py",
        "test_agent_reputation.py",
        "test_backends.py",
        "test_board.py",
        "test_channel.py",
        "test_chaos.py",
        "test_compat.py",
        "test_configuration.py",
        "test_cost.py",
        "test_distribution.py",
        "test_docs.py",
        "test_docs_haproxy.py",
        "test_draft.py",
        "test_errors.py",
        "test_figures.py",
        "test_fuzz.py",
        "test_haproxy_keywords.py",
        "test_haproxy_variables.py",
        "test_haproxy_versions.py",
        "test_imports.py",
        "test_interpreters.py",
        "test_leaks.py",
        "test_memcheck.py",
        "test_new.py",
        "test_notations.py",
        "test_output.py",
        "test_own_metrics.py",
        "test_prometheus.py",
        "test_proof.py",
        "test_public.py",
        "test_samples.py",
        "test_settings.py",
        "test_shutdown.py",
        "test_site.py",
        "test_spoe_config.py",
        "test_status_page.py",
        "test_timers.py",
        "test_top.py",
        "test_typing.py",
        "test_validate.py",
        "test_validate_together.py",
        "test_wheel.py",
        "test_wireshark.py",
        "web/test_rules.py",
    ]
