"""The pytest plugin: fixtures that serve an agent, connect a client, run a real HAProxy.

pytest loads it by its entry point; nothing else of the package imports it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spop.testing.haproxy import HAProxy, find_haproxy

if TYPE_CHECKING:
    from spop import Agent, Client
    from spop.agent import AgentServer


@pytest.fixture
def serve_agent() -> Iterator[Callable[..., AgentServer]]:
    """A function that serves an agent until the test ends: ``serve_agent(agent, **options)``.

    It takes what `Agent.serve_in_background` takes and returns the server.
    """
    with contextlib.ExitStack() as stack:

        def serve(agent: Agent, *args: Any, **options: Any) -> AgentServer:
            return stack.enter_context(agent.serve_in_background(*args, **options))

        yield serve


@pytest.fixture
def agent_client(serve_agent: Callable[..., AgentServer]) -> Iterator[Callable[..., Client]]:
    """A function that serves an agent and connects a client: ``agent_client(agent, **settings)``.

    It takes the settings of `spop.Client`, which it returns.
    """
    from spop import Client

    with contextlib.ExitStack() as stack:

        def connect(agent: Agent, **settings: Any) -> Client:
            return stack.enter_context(Client(str(serve_agent(agent).address), **settings))

        yield connect


@pytest.fixture
def run_haproxy(
    serve_agent: Callable[..., AgentServer], tmp_path: Path
) -> Iterator[Callable[..., HAProxy]]:
    """A function that runs HAProxy in front of an agent: ``run_haproxy(agent, spoe=, rules=)``.

    `spoe` are the sections of the SPOE file, its scope ``[test]`` and ``use-backend agents``
    included; `rules` are lines of the frontend. The test is skipped where there is no HAProxy.
    """
    binary = find_haproxy()
    if binary is None:
        pytest.skip("HAProxy is not installed")
    with contextlib.ExitStack() as stack:

        def run(agent: Agent, *, spoe: str, rules: str) -> HAProxy:
            address = str(serve_agent(agent).address)
            return stack.enter_context(HAProxy(binary, tmp_path, address, spoe, rules))

        yield run
