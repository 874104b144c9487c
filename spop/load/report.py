"""Results as a table, JSON, CSV, a plot or a comparison."""

from __future__ import annotations

import csv
import json
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from spop import codec
from spop.load.generator import Plan, Result
from spop.load.histogram import QUANTILES
from spop.version import __version__

BUSY = 0.9
"""Share of a processor above which the generator may be the bottleneck."""

MEASURABLE = 0.1
"""Seconds of measurement below which a share of a processor tells nothing. The system gives a
process a processor for some milliseconds at a time, and within one such slice it is always busy."""


def as_object(plan: Plan, processes: int, result: Result) -> dict[str, Any]:
    """A run in types of JSON."""
    latencies = result.histogram
    agent_cpu = result.agent_cpu_seconds
    return {
        "spop": __version__,
        "codec": codec.IMPLEMENTATION,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "plan": {
            "address": str(plan.address),
            "mode": plan.mode,
            "connections": plan.connections,
            "depth": plan.in_flight,
            "rate": plan.rate,
            "processes": processes,
            "messages": [message.name for message in plan.messages],
        },
        "frames": result.frames,
        "seconds": result.seconds,
        "rate": _rate(result.frames, result.seconds),
        "latency": {
            "mean": latencies.mean,
            **{_quantile_name(q): latencies.quantile(q) for q in QUANTILES},
            "max": latencies.highest,
        },
        "errors": dict(result.errors),
        "all_empty": bool(result.frames and plan.expected is None and not result.with_actions),
        "interrupted": result.interrupted,
        "generator": {
            "frames_per_cpu_second": _rate(result.frames, result.cpu_seconds),
            "busy": result.busy,
            "is_the_bottleneck": _is_bottleneck(plan, result),
        },
        "agent_cpu_per_frame": agent_cpu / result.frames if agent_cpu and result.frames else None,
        "distribution": [list(point) for point in latencies.distribution()],
    }


def _rate(frames: int, seconds: float) -> float:
    return frames / seconds if seconds else 0.0


def _is_bottleneck(plan: Plan, result: Result) -> bool:
    """Whether the generator was too slow. With a rate it is always busy: it waits without sleep."""
    in_time = plan.rate is not None and result.frames >= 0.98 * plan.rate * result.seconds
    return result.seconds >= MEASURABLE and result.busy > BUSY and not in_time


def _quantile_name(q: float) -> str:
    return f"p{q * 100:g}"


def duration(seconds: float) -> str:
    """A time with a unit that fits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def table(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of a table for people."""
    rows = [
        ("frames", f"{shown['frames']:,} in {shown['seconds']:.2f} s"),
        ("throughput", f"{shown['rate']:,.0f} frames/s"),
    ]
    rows += [(name, duration(seconds)) for name, seconds in shown["latency"].items()]
    errors = ", ".join(f"{count:,} {kind}" for kind, count in shown["errors"].items())
    rows.append(("errors", errors or ("none" if shown["frames"] else "no frame was answered")))
    if shown.get("all_empty"):
        rows.append(("answers", "all are empty: no variable was set"))
    if shown["agent_cpu_per_frame"] is not None:
        rows.append(("agent's CPU per frame", duration(shown["agent_cpu_per_frame"])))
    generator = shown["generator"]
    own = f"{generator['frames_per_cpu_second']:,.0f} frames per second of CPU"
    rows.append(("generator", f"{own}, {generator['busy']:.0%} of a processor"))
    return rows


def stages_table(stages: list[dict[str, Any]]) -> list[str]:
    """A line for each rate."""
    lines = [f"{'rate':>10} {'answered/s':>12} {'p50':>9} {'p99':>9} {'max':>9}  errors"]
    for shown in stages:
        latency = shown["latency"]
        times = " ".join(f"{duration(latency[name]):>9}" for name in ("p50", "p99", "max"))
        errors = dict(table(shown))["errors"]
        lines.append(f"{shown['plan']['rate']:>10,g} {shown['rate']:>12,.0f} {times}  {errors}")
    return lines


def against_table(shown: dict[str, Any]) -> list[str]:
    """Two agents, the median of their rounds' ratios, and the lowest and highest ratio."""
    first, second = shown["first"], shown["second"]
    names = [each["plan"]["address"] for each in (first, second)]
    width = max(16, *map(len, names))
    lines = [
        f"{'':<22} {names[0]:>{width}} {names[1]:>{width}}    ratio  of {shown['rounds']} rounds"
    ]
    for name, one, other, _ in comparison(first, second):
        ratio = shown["ratios"].get(name)
        spread = "–"
        if ratio:
            spread = f"{ratio['median']:.2f} ×  {ratio['lowest']:.2f} to {ratio['highest']:.2f}"
        lines.append(f"{name:<22} {one:>{width}} {other:>{width}}   {spread}")
    errors = [dict(table(each))["errors"] for each in (first, second)]
    return [*lines, f"{'errors':<22} {errors[0]:>{width}} {errors[1]:>{width}}"]


class Limit(NamedTuple):
    """A limit of a figure, such as ``p99>5ms``. Times are seconds."""

    figure: str
    above: bool
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError: it is no limit."""
        match = _LIMIT.fullmatch(text)
        if match is None or (match[4] and match[1] in ("rate", "errors")):
            known = ", ".join(_FIGURES)
            raise ValueError(f"{text!r} is no limit: FIGURE>LIMIT or FIGURE<LIMIT, with {known}")
        return cls(match[1], match[2] == ">", float(match[3]) * _UNITS[match[4] or "s"])

    def is_reached(self, shown: dict[str, Any]) -> bool:
        found = self._figure(shown)
        return found > self.value if self.above else found < self.value

    def _figure(self, shown: dict[str, Any]) -> float:
        if self.figure == "rate":
            return float(shown["rate"])
        if self.figure == "errors":
            return float(sum(shown["errors"].values()))
        return float(shown["latency"][self.figure])

    def __str__(self) -> str:
        sign, plain = ">" if self.above else "<", self.figure in ("rate", "errors")
        limit = f"{self.value:g}" if plain else duration(self.value)
        return f"{self.figure} {sign} {limit}"


_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_FIGURES = ("rate", "errors", "mean", "max", *map(_quantile_name, QUANTILES))
_LIMIT = re.compile(rf"({'|'.join(map(re.escape, _FIGURES))})([<>])([0-9]*[.]?[0-9]+)(s|ms|us|µs)?")


def load(path: Path) -> dict[str, Any]:
    """Read a run that was written as JSON.

    Raises:
        ValueError: the file has no run.
    """
    try:
        shown = json.loads(path.read_text("utf-8"))
        several = not {"stages", "second"}.isdisjoint(shown)
        if not several:
            table(shown)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is no result of spop bench") from None
    if several:
        raise ValueError(f"{path} has several runs, and one is compared with one")
    return dict(shown)


def write_csv(path: Path, runs: list[dict[str, Any]]) -> None:
    """The distribution: latency in seconds, and the share of frames that stayed within it.

    Of several runs, address and rate stand before it.
    """
    several = len(runs) > 1
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*["address", "rate"] * several, "latency_seconds", "share"])
        for shown in runs:
            run = [shown["plan"]["address"], shown["plan"]["rate"]] * several
            writer.writerows([*run, *point] for point in shown["distribution"])


def write_plot(path: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Latency over the share of frames, up to the last nines, as SVG or PNG by the suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, shown in runs.items():
        points = [(1 / (1 - share), 1e6 * x) for x, share in shown["distribution"] if share < 1]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xscale="log", yscale="log", xlabel="share of frames", ylabel="latency, µs")
    nines = [1, 2, 10, 100, 1000, 10_000, 100_000]
    axes.set_xticks(nines, ["0", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"])
    axes.grid(visible=True, alpha=0.3)
    if len(runs) > 1:
        axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


Figure = tuple[str, float, float, Callable[[float], str]]
"""A name, two values, and how they are shown."""


def figures(first: dict[str, Any], second: dict[str, Any]) -> list[Figure]:
    """The values that both runs have."""
    rows: list[Figure] = [
        ("throughput, frames/s", first["rate"], second["rate"], lambda rate: f"{rate:,.0f}")
    ]
    rows += [
        (name, first["latency"][name], second["latency"][name], duration)
        for name in first["latency"]
        if name in second["latency"]
    ]
    costs = first["agent_cpu_per_frame"], second["agent_cpu_per_frame"]
    if None not in costs:
        rows.append(("agent's CPU per frame", *costs, duration))
    return rows


def comparison(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The values that both runs have, and their ratio."""
    return [
        (name, show(a), show(b), f"{b / a:.2f} ×" if a else "–")
        for name, a, b, show in figures(first, second)
    ]
