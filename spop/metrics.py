"""An agent's own metrics: what its handlers count, beside what the server counts.

Each has a cell in the memory that `spop.counters` describes, so that the counts of all processes
are read without asking them, and outlive a process. Any thread may count.
"""

from __future__ import annotations

import re
import threading
from typing import Any, NamedTuple, Self, TypeVar

MOST_METRICS = 256
"""Number of an agent's own metrics, each set of labels counted by itself."""

_NAME = re.compile(r"(?!spop_)[a-z][a-z0-9_]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


class Description(NamedTuple):
    """What a metric is.

    Attributes:
        kind: "counter" or "gauge".
        name: as Prometheus has it, without ``_total``.
        meaning: a sentence for people.
        labels: names and values.
    """

    kind: str
    name: str
    meaning: str
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_json(cls, given: Any) -> Self:
        """The description that was sent as JSON.

        Raises:
            ValueError: it is none.
        """
        try:
            kind, name, meaning, labels = given
            made = cls(kind, name, meaning, tuple((key, value) for key, value in labels))
        except (TypeError, ValueError):
            raise ValueError("a metric is malformed") from None
        texts = [kind, name, meaning, *(text for pair in made.labels for text in pair)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a metric is malformed")
        return made

    def is_beside(self, other: Description) -> bool:
        """Whether both may have the same name: the kind and the labels' names are the same."""
        names = [name for name, _ in self.labels]
        return self.kind == other.kind and names == [name for name, _ in other.labels]

    def joined(self, one: int, other: int) -> int:
        """The value over two processes: the sum of counters, the larger of gauges."""
        return one + other if self.kind == "counter" else max(one, other)


class Counter:
    """A number that only grows. Servers show the sum over all processes."""

    kind = "counter"

    def __init__(self, about: Description) -> None:
        self.about = about
        self._lock = threading.Lock()
        self._cell: memoryview = memoryview(bytearray(8)).cast("q")

    def add(self, count: int = 1) -> None:
        """Count so many more."""
        with self._lock:
            self._cell[0] += count

    @property
    def value(self) -> int:
        """The count in this process, since its server was made."""
        return int(self._cell[0])

    def use(self, cell: memoryview) -> None:
        """Count in this cell from now on. Servers call this."""
        self._cell = cell


class Gauge(Counter):
    """A present value. Servers show the largest of all processes."""

    kind = "gauge"

    def set(self, value: int) -> None:
        """It is so much now."""
        self._cell[0] = value


Metric = TypeVar("Metric", bound=Counter)


def _check_texts(who: str, meaning: str, labels: dict[str, str]) -> None:
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{who}: {label!r} is no name of a label")
    for what, text in {"the meaning": meaning, **labels}.items():
        if not isinstance(text, str):
            raise TypeError(f"{who}: {what} is {text!r}, a str is needed")
        if not text.isascii():
            text.encode()  # A UnicodeEncodeError is a ValueError.


class Metrics:
    """The metrics of an agent, in the order of their cells."""

    def __init__(self) -> None:
        self._all: list[Counter] = []
        self._cells: memoryview | None = None
        self._sealed = False

    def get(self, kind: type[Metric], name: str, meaning: str, labels: dict[str, str]) -> Metric:
        """The metric of this name with these labels. It is made if there is none.

        Raises:
            ValueError: a name can't be used, or is that of a metric of another kind.
            TypeError: the meaning or a label's value is no text.
            RuntimeError: it is new, and the server serves already.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{kind.kind} {name!r}: a name is [a-z][a-z0-9_]*, without spop_")
        _check_texts(f"{kind.kind} {name!r}", meaning, labels)
        about = Description(kind.kind, name, meaning, tuple(sorted(labels.items())))
        for each in self._all:
            if each.about == about and isinstance(each, kind):
                return each
            if each.about.name == name and not each.about.is_beside(about):
                raise ValueError(
                    f"{kind.kind} {name!r} is there already, with other labels or kind"
                )
        if self._sealed:
            raise RuntimeError(f"{kind.kind} {name!r} is new: make it before the agent is served")
        made = kind(about)
        self.add(made)
        return made

    def add(self, metric: Counter) -> None:
        """Add a metric, which may be another agent's.

        Raises:
            ValueError: there are too many.
        """
        if metric in self._all:
            return
        if len(self._all) == MOST_METRICS:
            raise ValueError(f"an agent has {MOST_METRICS} metrics at most")
        self._all.append(metric)
        self._place(len(self._all) - 1)

    def include(self, other: Metrics) -> None:
        """Add the metrics of another agent."""
        for metric in other._all:
            self.add(metric)

    def use(self, cells: memoryview) -> None:
        """Count in these cells from now on."""
        self._cells, self._sealed = cells, False
        for index in range(len(self._all)):
            self._place(index)

    def seal(self) -> list[Description]:
        """There are no others from now on. Returns the descriptions of all."""
        self._sealed = True
        return self.descriptions()

    def descriptions(self) -> list[Description]:
        return [each.about for each in self._all]

    def _place(self, index: int) -> None:
        if self._cells is not None:
            self._all[index].use(self._cells[index : index + 1])
