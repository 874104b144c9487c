from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Waf, spoe

from spop.engine import AsyncEngine, Engine


@pytest.fixture
def waf() -> Waf:
    return Waf()


@pytest.fixture
def address(waf: Waf) -> Iterator[str]:
    """Where the agent is served."""
    with waf.agent.serve_in_background() as server:
        yield str(server.address)


@pytest.fixture
def make_engine(tmp_path: Path, address: str) -> Iterator[Callable[..., Any]]:
    """``make_engine(Engine, events=False)``: an engine that asks the agent."""
    engines: list[Engine] = []

    def make(kind: Any, *, to: str = address, **options: Any) -> Any:
        engine = kind.from_file(spoe(tmp_path, **options), backends={"agents": to})
        if isinstance(engine, Engine):
            engines.append(engine)
        else:
            assert isinstance(engine, AsyncEngine)  # Its loop's application closes it.
        return engine

    yield make
    for engine in engines:
        engine.close()
