"""The picture of a run in progress: outer losses, validation scores, and what the rule trains like by now."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lopt.files import write_atomically
from lopt.runs.history import History

PICTURE = "training.png"
WINDOW = 10
"""Outer losses are drawn as medians of that many turns: each is of other networks, at other ages."""


def draw_training(folder: Path) -> None:
    """Write RUN/training.png from the log."""
    history = History.read(folder)
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name in history.names("outer_loss/"):
        _plot_medians(left, history.series(name), name.removeprefix("outer_loss/"))
    left.set(xlabel="outer steps", ylabel="outer loss", title=f"meta-training, medians of {WINDOW}")
    for name in history.names("validation/"):
        steps, values = zip(*history.series(name), strict=True)
        middle.plot(steps, values, marker="o", markersize=3, label=name.removeprefix("validation/"))
    middle.set(
        xlabel="outer steps", ylabel="mean log relative loss", title="validation, the lower the better"
    )
    if curves := history.last("curves"):
        for name, losses in curves["losses"].items():
            right.plot(curves["steps"], losses, label=name)
    right.set(xlabel="inner steps", ylabel="training loss / first loss", title="the rule on validation tasks")
    right.set_yscale("log")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        if axes.has_data():
            axes.legend(frameon=False, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_atomically(folder / PICTURE, buffer.getvalue())


def _plot_medians(axes: Axes, series: list[tuple[int, float]], label: str) -> None:
    steps, values = (np.array(column, dtype=float) for column in zip(*series, strict=True))
    parts = np.array_split(np.arange(len(steps)), -(-len(steps) // WINDOW))
    middle = [float(np.median(values[part])) for part in parts]
    axes.plot([float(steps[part].mean()) for part in parts], middle, marker=".", label=label)
