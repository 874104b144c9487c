"""Plots that are the same bytes for the same figures, whatever the day."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def subplots(*rows_and_columns: int, **options: Any) -> Any:
    import matplotlib
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "spop"  # Of the ids, which are random otherwise.
    return pyplot.subplots(
        *rows_and_columns, **{"figsize": (9, 4), "layout": "constrained", **options}
    )


def save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
