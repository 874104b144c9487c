"""Several runs of one plan: at one rate after another, or against another agent in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from spop.address import Address
from spop.load.generator import Plan, Result
from spop.load.report import as_object, figures

Run = Callable[[Plan], Result]
"""Runs a plan."""


def parse_rates(text: str) -> tuple[float, ...]:
    """Rates with commas between them.

    Raises:
        ValueError: one is no rate.
    """
    try:
        rates = tuple(map(float, text.split(",")))
    except ValueError:
        rates = ()
    if not rates or not all(0.1 <= rate < 1e9 for rate in rates):
        raise ValueError(
            f"{text!r} is no rate: frames a second, 0.1 at least, as 1000 or 1000,2000"
        )
    return rates


def stages(plan: Plan, rates: Sequence[float | None], run: Run) -> Iterator[tuple[Plan, Result]]:
    """Run a plan at each rate. An interrupted stage is the last."""
    for rate in rates:
        stage = replace(plan, rate=rate)
        result = run(stage)
        yield stage, result
        if result.interrupted:
            return


@dataclass
class Side:
    """An agent of two: its plan, its rounds, and what they add up to."""

    plan: Plan
    rounds: list[Result] = field(default_factory=list)
    total: Result = field(default_factory=Result)

    def add(self, result: Result) -> None:
        seconds = self.total.seconds + result.seconds  # Rounds follow each other.
        self.total.merge(result)
        self.total.seconds = seconds
        self.rounds.append(result)


def in_turn(plan: Plan, other: Address, rounds: int, run: Run) -> tuple[Side, Side]:
    """Run a plan against two agents in turn: A B, B A, A B and so on, so that both drift alike.

    Each round has its share of the plan's duration or count. An interrupted round is dropped.
    """
    part = replace(
        plan,
        duration=None if plan.duration is None else plan.duration / rounds,
        count=None if plan.count is None else max(1, plan.count // rounds),
        warm_up=plan.warm_up / rounds,
    )
    sides = Side(part), Side(replace(part, address=other))
    for number in range(rounds):
        results = {}
        for side in sides if number % 2 == 0 else reversed(sides):
            results[side.plan.address] = result = run(side.plan)
            if result.interrupted:
                for each in sides:
                    each.total.interrupted = True
                return sides
        for side in sides:
            side.add(results[side.plan.address])
    return sides


class Ratio(NamedTuple):
    """How many times a figure of the second agent is that of the first: median, and all rounds'."""

    median: float
    lowest: float
    highest: float


def ratios(first: Side, second: Side) -> dict[str, Ratio]:
    """The ratio of each figure. One that is 0 in a round of the first agent has none."""
    found: dict[str, list[float]] = {}
    for one, other in zip(first.rounds, second.rounds, strict=True):
        shown = as_object(first.plan, 1, one), as_object(second.plan, 1, other)
        for name, a, b, _ in figures(*shown):
            if a:
                found.setdefault(name, []).append(b / a)
    return {name: Ratio(statistics.median(r), min(r), max(r)) for name, r in found.items()}


def against_object(first: Side, second: Side, processes: int) -> dict[str, Any]:
    """Both agents, and their ratios, in types of JSON."""
    return {
        "first": as_object(first.plan, processes, first.total),
        "second": as_object(second.plan, processes, second.total),
        "rounds": len(first.rounds),
        "ratios": {name: ratio._asdict() for name, ratio in ratios(first, second).items()},
    }
