"""Draws curves: plot.py FILE CURVES, run by the Python of the rivals' environment, which has matplotlib.

CURVES: JSON, a list of {label, x, y, points: [[x, median, low, high], ...]}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter


def main(path: str, text: str) -> None:
    curves = json.loads(text)
    pyplot.rcParams["svg.hashsalt"] = "ppss"  # the same curves give the same file
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for curve in curves:
        x, middle, low, high = zip(*curve["points"], strict=True)
        (line,) = axes.plot(x, middle, marker="o", label=curve["label"])
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)
    axes.set_xlabel(curves[0]["x"])
    axes.set_ylabel(curves[0]["y"])
    _scale(axes, curves[0])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def _scale(axes: Axes, curve: Mapping[str, Any]) -> None:
    """Slots and items double; rates begin at 0, or a small loss would look large."""
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}")
    if curve["x"] == "slots":
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        ideal = [point[0] for point in curve["points"]]
        axes.plot(ideal, ideal, linestyle=":", color="grey", label="ideal")
    else:
        if curve["x"] == "items":
            axes.set_xscale("log")
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)


if __name__ == "__main__":
    main(*sys.argv[1:])
