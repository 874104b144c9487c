"""An agent whose batch is handled by a function of another module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import batch_function

from spop import Agent, Batch


@dataclass
class Settings:
    factor: int = 2


agent = Agent(config=Settings)
agent.message("m", batch=Batch(size=1, executor="process"))(batch_function.multiply)


@agent.lifespan
async def resources() -> AsyncIterator[dict[str, Any]]:
    batch_function.factor = agent.config.factor
    yield {"begun": True}
