"""Steps in the lives of connections, each with a round of the loop of its own.

Accepting, opening or closing a connection takes as long as answering several frames. So each is a
step of its own, and frames of other connections wait for one step at most. Steps are taken in the
order in which they were added. A drain is a step, too: it runs after the connections that were
accepted before it are added to the loop.

So is each further pass over the frames of a connection that a pass has left, in a queue of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Step = Callable[[], object]


class Steps:
    """The steps of one loop. Used in its thread alone.

    Args:
        run: runs a step.
    """

    def __init__(self, run: Callable[[Step], object]) -> None:
        self._run = run
        self._steps: deque[Step] = deque()

    def __len__(self) -> int:
        """Number of steps that wait for their rounds."""
        return len(self._steps)

    def add(self, step: Step) -> None:
        """Run `step` in a later round."""
        self._steps.append(step)

    def take(self) -> None:
        """Run the first step. There must be one."""
        self._run(self._steps.popleft())

    def take_all(self) -> None:
        """Run all steps, as there are no more rounds."""
        while self._steps:
            self.take()
