"""The blocks of Python in docs/handlers.md run as they stand, and its handlers answer."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spop import Agent

PAGE = (Path(__file__).parent.parent / "docs" / "handlers.md").read_text()
BLOCKS = re.findall(r"^```python title=.*?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a block, as a module that processes can import too."""
    monkeypatch.syspath_prepend(tmp_path)
    loaded: list[ModuleType] = []

    def load(block: str) -> ModuleType:
        name = f"block_{BLOCKS.index(block)}"
        (tmp_path / f"{name}.py").write_text(block)
        monkeypatch.delitem(sys.modules, name, raising=False)
        loaded.append(importlib.import_module(name))
        return loaded[-1]

    yield load
    for module in loaded:
        module.agent.close_test()
        del sys.modules[module.__name__]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs_as_it_stands(load: Load, number: int) -> None:
    agent = load(BLOCKS[number]).agent
    assert isinstance(agent, Agent)
    if agent.config_class is None:
        with agent.serve_in_background():
            pass


ANSWERED: dict[str, dict[str, Any]] = {
    "check-client-ip": {"ip": IPv4Address(1), "ua": "a bot"},
    "score": {"path_length": 1, "body_length": 2},
    "request": {"headers": "user-agent: curl\r\n\r\n"},
    "lookup": {"ip": "127.0.0.1"},
}


@pytest.mark.parametrize("name", ANSWERED)
def test_a_handler_of_a_block_answers(load: Load, name: str) -> None:
    block = next(each for each in BLOCKS if f'@agent.message("{name}"' in each)
    assert load(block).agent.test(name, **ANSWERED[name])
