"""Diagnostics of a configuration: what is wrong, how it is collected, and the error.

A reader raises a `refusal` at the first mistake of a line. A `Collector` keeps it, and the reader
goes on with the next line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from spop.engine.config.model import Location
from spop.errors import SpopError


class Severity(Enum):
    """HAProxy refuses a configuration for an error, and accepts it with a warning.

    A note is no mistake: HAProxy and the engine do what the file says, or HAProxy does.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A mistake in a configuration.

    Attributes:
        message: one sentence for the person who wrote the file.
        hint: what to write instead; None if that is not known.
        rule: the name of the rule that found it.
    """

    severity: Severity
    location: Location
    message: str
    hint: str | None = None
    rule: str = "syntax"

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.location}: {self.severity.value}: {self.message}{hint}"


class ConfigError(SpopError):
    """A configuration that HAProxy would refuse. Its text has a line for each error.

    Attributes:
        diagnostics: the errors and warnings, in the order of the file.
    """

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        errors = (d for d in self.diagnostics if d.severity is Severity.ERROR)
        super().__init__("\n".join(map(str, errors)))


def refusal(
    location: Location, message: str, hint: str | None = None, rule: str = "syntax"
) -> ConfigError:
    """The error for one mistake."""
    return ConfigError([Diagnostic(Severity.ERROR, location, message, hint, rule)])


class Collector:
    """Collects the diagnostics of a file while it is read."""

    def __init__(self) -> None:
        self._found: list[Diagnostic] = []

    def error(
        self, location: Location, message: str, hint: str | None = None, rule: str = "syntax"
    ) -> None:
        self._found.append(Diagnostic(Severity.ERROR, location, message, hint, rule))

    def warning(
        self, location: Location, message: str, hint: str | None = None, rule: str = "syntax"
    ) -> None:
        self._found.append(Diagnostic(Severity.WARNING, location, message, hint, rule))

    def note(
        self, location: Location, message: str, hint: str | None = None, rule: str = "syntax"
    ) -> None:
        self._found.append(Diagnostic(Severity.NOTE, location, message, hint, rule))

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the diagnostics of an error that is raised in the ``with`` statement."""
        try:
            yield
        except ConfigError as error:
            self._found += error.diagnostics

    def all(self) -> tuple[Diagnostic, ...]:
        """The diagnostics, in the order of the file."""
        return tuple(sorted(self._found, key=lambda d: (d.location.line, d.location.column)))

    @property
    def failed(self) -> bool:
        """Whether there was an error."""
        return any(d.severity is Severity.ERROR for d in self._found)


def listed(names: Sequence[str]) -> str:
    """Names as a part of a sentence: ``'a', 'b' and 'c'``."""
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
