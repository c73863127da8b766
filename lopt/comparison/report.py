"""The results of a comparison as tables and pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lopt.comparison.figures import Figures, Statistic
from lopt.comparison.results import Entry, TaskComparison
from lopt.files import write_atomically
from lopt.tables import aligned

COLUMNS = (
    "optimizer", "lr", "schedule", "mean train loss", "final train loss", "test loss", "test accuracy",
    "steps to baseline", "ms/step", "diverged",
)  # fmt: skip

SMOOTHING = 25
"""A drawn curve is a running mean over that fraction of the run."""

FloatArray = npt.NDArray[np.float64]

COLOURS, STYLES = 10, ("-", "--", ":", "-.")
"""Lines that matplotlib gives colours of their own, and what tells further ones apart."""


def table(results: TaskComparison, horizon: str) -> str:
    """One aligned Markdown table; figures are mean ± standard deviation over the seeds."""
    steps = results.steps if horizon == "horizon" else results.long_steps
    title = f"{results.task}, {steps} steps, mean ± deviation over {len(results.seeds)} seeds"
    if results.best_baseline:
        title += f"; steps to the final loss of {results.best_baseline}"
    rows = [_row(name, entry, getattr(entry, horizon)) for name, entry in results.entries.items()]
    return f"{title}\n\n{aligned(COLUMNS, rows)}"


def _row(name: str, entry: Entry, figures: Figures) -> list[str]:
    reached = figures.steps_to_baseline
    return [
        name,
        "-" if entry.lr is None else f"{entry.lr:g}{' (edge)' if entry.at_edge else ''}",
        entry.schedule or "-",
        str(figures.mean_train_loss),
        str(figures.final_train_loss),
        *(spread(figures.metrics.get(metric)) for metric in ("test_loss", "test_accuracy")),
        "-" if reached is None else str(reached),
        f"{entry.ms_per_step:.2f}",
        f"{figures.diverged} of {figures.networks}",
    ]


def spread(statistic: Statistic | None) -> str:
    """A figure as mean ± deviation; "-" where there is none."""
    return "-" if statistic is None else str(statistic)


def write_results(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the results as JSON, atomically."""
    write_atomically(Path(path), json.dumps(results, indent=1, allow_nan=False).encode() + b"\n")


def curves_figure(tasks: Sequence[TaskComparison]) -> Figure:
    """Training loss over steps: a row for each task, a panel for each horizon.

    Curves are medians over the seeds, smoothed, with a band from the lowest to the highest.
    """
    figure = Figure(figsize=(12, 0.8 + 4.4 * len(tasks)), layout="constrained")
    for row, results in zip(figure.subplots(len(tasks), 2, squeeze=False), tasks, strict=True):
        for axes, horizon in zip(row, ("horizon", "long_horizon"), strict=True):
            _panel(axes, results, horizon)
        row[0].legend(frameon=False, fontsize="small")
    seeds = len(tasks[0].seeds)
    figure.suptitle(f"smoothed training loss, median of {seeds} seeds, band from the lowest to the highest")
    return figure


def _panel(axes: Axes, results: TaskComparison, horizon: str) -> None:
    lowest = []
    for number, (name, entry) in enumerate(results.entries.items()):
        figures: Figures = getattr(entry, horizon)
        curve = figures.curve
        losses = np.array([[math.inf if x is None else x for x in row] for row in curve.train_loss])
        losses = smoothed(losses, len(curve.steps) // SMOOTHING)
        steps, middle = np.array(curve.steps), np.median(losses, 0)
        shown = np.isfinite(middle)
        width = 2.4 if entry.kind == "rule" else 1.3
        style = STYLES[number // COLOURS % len(STYLES)]
        axes.plot(
            steps[shown], middle[shown], style, color=f"C{number}", linewidth=width, label=_label(name, entry)
        )
        # Where some seeds diverged the band goes on with the highest loss still finite.
        highest = np.where(np.isfinite(losses), losses, -math.inf).max(0)
        lowest.append(losses.min())
        axes.fill_between(
            steps[shown], losses.min(0)[shown], highest[shown], color=f"C{number}", alpha=0.15, linewidth=0
        )
    if all(low > 0 for low in lowest):
        axes.set_yscale("log")
    axes.set(xlabel="training steps", ylabel="training loss", xlim=(0, figures.steps))
    axes.set_title(f"{results.task}, {figures.steps} steps")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)


def smoothed(losses: FloatArray, width: int) -> FloatArray:
    """(N, B) -> (N, B): centred running mean over `width` points, with the ends repeated beyond the ends."""
    width = max(width, 1)
    padded = np.pad(losses, ((0, 0), ((width - 1) // 2, width // 2)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=1).mean(-1)


def _label(name: str, entry: Entry) -> str:
    return name if entry.lr is None else f"{name} ({entry.schedule}, lr {entry.lr:g})"
