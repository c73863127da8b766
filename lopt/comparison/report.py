"""The results of a comparison as a table, a picture and a file."""

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

from lopt.files import write_atomically
from lopt.tables import aligned

COLUMNS = (
    "optimizer", "lr", "schedule", "mean train loss", "final train loss", "test loss", "test accuracy",
    "steps to baseline", "ms/step", "diverged",
)  # fmt: skip

SMOOTHING = 25
"""A drawn curve is a running mean over that fraction of the run."""

FloatArray = npt.NDArray[np.float64]


def render_table(results: Mapping[str, Any]) -> str:
    """One aligned Markdown table for each horizon; figures are mean ± standard deviation over the seeds."""
    return "\n\n".join(_table(results, horizon) for horizon in ("horizon", "long_horizon"))


def plot_curves(comparisons: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Training loss over steps: a row for each comparison (task), a panel for each horizon.

    Curves are medians over the seeds, smoothed, with a band from the lowest to the highest.
    """
    rows = len(comparisons)
    figure = Figure(figsize=(12, 0.8 + 4.4 * rows), layout="constrained")
    for row, results in zip(figure.subplots(rows, 2, squeeze=False), comparisons, strict=True):
        for axes, horizon in zip(row, ("horizon", "long_horizon"), strict=True):
            _panel(axes, results, horizon)
        row[0].legend(frameon=False, fontsize="small")
    seeds = len(comparisons[0]["seeds"])
    figure.suptitle(f"smoothed training loss, median of {seeds} seeds, band from the lowest to the highest")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def write_results(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the results as JSON, atomically."""
    write_atomically(Path(path), json.dumps(results, indent=1, allow_nan=False).encode() + b"\n")


def _table(results: Mapping[str, Any], horizon: str) -> str:
    steps = results["steps" if horizon == "horizon" else "long_steps"]
    title = f"{results['task']}, {steps} steps, mean ± deviation over {len(results['seeds'])} seeds"
    if results["best_baseline"]:
        title += f"; steps to the final loss of {results['best_baseline']}"
    rows = [_row(name, entry, entry[horizon]) for name, entry in results["entries"].items()]
    return f"{title}\n\n{aligned(COLUMNS, rows)}"


def _row(name: str, entry: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    edge = " (edge)" if entry.get("at_edge") else ""
    reached = found["steps_to_baseline"]
    return [
        name,
        f"{entry['lr']:g}{edge}" if "lr" in entry else "-",
        entry.get("schedule", "-"),
        spread(found["mean_train_loss"]),
        spread(found["final_train_loss"]),
        spread(found.get("test_loss")),
        spread(found.get("test_accuracy")),
        "-" if reached is None else str(reached),
        f"{entry['ms_per_step']:.2f}",
        f"{found['diverged']} of {len(found['mean_train_loss']['values'])}",
    ]


def spread(found: Mapping[str, Any] | None) -> str:
    """A figure as mean ± deviation; "-" where there is none."""
    if found is None:
        return "-"
    if found["mean"] is None:
        return "diverged"
    return f"{found['mean']:.4g}" + ("" if found["std"] is None else f" ± {found['std']:.2g}")


def _panel(axes: Axes, results: Mapping[str, Any], horizon: str) -> None:
    lowest = []
    for number, (name, entry) in enumerate(results["entries"].items()):
        curve = entry[horizon]["curve"]
        losses = np.array([[math.inf if x is None else x for x in row] for row in curve["train_loss"]])
        losses = smoothed(losses, len(curve["steps"]) // SMOOTHING)
        steps, middle = np.array(curve["steps"]), np.median(losses, 0)
        shown = np.isfinite(middle)
        width = 2.4 if entry["kind"] == "rule" else 1.3
        axes.plot(steps[shown], middle[shown], color=f"C{number}", linewidth=width, label=_label(name, entry))
        # Where some seeds diverged the band goes on with the highest loss still finite.
        highest = np.where(np.isfinite(losses), losses, -math.inf).max(0)
        lowest.append(losses.min())
        axes.fill_between(
            steps[shown], losses.min(0)[shown], highest[shown], color=f"C{number}", alpha=0.15, linewidth=0
        )
    if all(low > 0 for low in lowest):
        axes.set_yscale("log")
    axes.set(xlabel="training steps", ylabel="training loss", xlim=(0, entry[horizon]["steps"]))
    axes.set_title(f"{results['task']}, {entry[horizon]['steps']} steps")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)


def smoothed(losses: FloatArray, width: int) -> FloatArray:
    """(N, B) -> (N, B): centred running mean over `width` points, with the ends repeated beyond the ends."""
    width = max(width, 1)
    padded = np.pad(losses, ((0, 0), ((width - 1) // 2, width // 2)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=1).mean(-1)


def _label(name: str, entry: Mapping[str, Any]) -> str:
    return f"{name} ({entry['schedule']}, lr {entry['lr']:g})" if "lr" in entry else name
