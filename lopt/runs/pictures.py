"""Pictures of a run, drawn from its log: training.png as it goes, and each of them by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lopt.files import write_picture
from lopt.runs.history import History

PICTURE = "training.png"
WINDOW = 10
"""Figures of single turns are drawn as medians of that many: each is of other networks, at other ages."""

Drawing = Callable[[Axes, History], None]


def draw_training(folder: Path) -> None:
    """Write RUN/training.png from the log."""
    write_picture(folder / PICTURE, training_picture(History.read(folder)), dpi=110)


def training_picture(history: History) -> Figure:
    """Outer losses, validation scores, and what the rule trains like by now."""
    drawings = (outer_losses, validation_scores, validation_curves)
    figure = Figure(figsize=(5 * len(drawings), 4.4), layout="constrained")
    for axes, drawing in zip(figure.subplots(1, len(drawings)), drawings, strict=True):
        draw(axes, history, drawing)
    return figure


def draw(axes: Axes, history: History, drawing: Drawing) -> None:
    """One drawing, with a grid, and a legend where there is something to tell apart."""
    drawing(axes, history)
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def outer_losses(axes: Axes, history: History) -> None:
    """What meta-training lowers, by family of tasks."""
    for name in history.names("outer_loss/"):
        _plot_medians(axes, history.series(name), name.removeprefix("outer_loss/"))
    axes.set(xlabel="outer steps", ylabel="outer loss", title=f"meta-training, medians of {WINDOW}")


def validation_scores(axes: Axes, history: History) -> None:
    """Scores on the fixed tasks that choose the rule which is kept."""
    for name in history.names("validation/"):
        steps, values = zip(*history.series(name), strict=True)
        axes.plot(steps, values, marker="o", markersize=3, label=name.removeprefix("validation/"))
    axes.set(xlabel="outer steps", ylabel="mean log relative loss", title="validation, the lower the better")


def validation_curves(axes: Axes, history: History) -> None:
    """The loss over a validation run: of the latest rule, and dashed of the fresh one."""
    validations = history.values("curves")
    for curves, style in ((validations[0], "--"), (validations[-1], "-")) if validations else ():
        for number, (name, losses) in enumerate(curves["losses"].items()):
            label = name if style == "-" else None
            axes.plot(curves["steps"], losses, style, color=f"C{number}", linewidth=1.5, label=label)
    title = "the rule on validation tasks (dashed: fresh)"
    axes.set(xlabel="inner steps", ylabel="training loss / first loss", title=title, yscale="log")


def step_sizes(axes: Axes, history: History) -> None:
    """How far a step moves the tensors of each class."""
    for name in history.names("step_rms/"):
        _plot_medians(axes, history.series(name), name.removeprefix("step_rms/"))
    axes.set(
        xlabel="outer steps", ylabel="rms of a step", title="step sizes by class of tensor", yscale="log"
    )


def update_ratios(axes: Axes, history: History) -> None:
    """The same beside the size of the weights."""
    for name in history.names("update_ratio/"):
        _plot_medians(axes, history.series(name), name.removeprefix("update_ratio/"))
    axes.set(xlabel="outer steps", ylabel="rms of a step / of the weights", yscale="log")
    axes.set_title("step sizes relative to the weights")


def meta_gradient(axes: Axes, history: History) -> None:
    """The norm of the meta-gradient."""
    finite = [(step, norm) for step, norm in history.series("gradient_norm") if np.isfinite(norm)]
    if finite:
        _plot_medians(axes, finite, "")
    axes.set(xlabel="outer steps", ylabel="norm", title=f"meta-gradient, medians of {WINDOW}", yscale="log")


def shares(axes: Axes, history: History) -> None:
    """How many networks' meta-gradients were cut to size or left out."""
    for name in ("clipped_share", "dropped_share"):
        if series := history.series(name):
            _plot_medians(axes, series, name.removesuffix("_share"))
    axes.set(xlabel="outer steps", ylabel="share of the networks", ylim=(-0.03, 1.03))
    axes.set_title("meta-gradients of single networks")


def where_time_goes(axes: Axes, history: History) -> None:
    """Seconds of wall-clock by what they were spent on."""
    spent = seconds_by_activity(history)
    names, values = list(spent)[::-1], list(spent.values())[::-1]
    bars = axes.barh(names, values, height=0.6)
    total = sum(values) or 1.0
    axes.bar_label(bars, [f" {value:.3g} s, {value / total:.0%}" for value in values], fontsize="small")
    axes.set(xlabel="seconds", title="where the time goes")
    axes.margins(x=0.3)


def seconds_by_activity(history: History) -> dict[str, float]:
    """Turns by family, validation, and the rest: outer optimizer, log, checkpoints, and drawing networks.

    Several processes may be at turns at once, which then sum to more than wall-clock, and leave no rest.
    """
    spent = {
        f"training {name.removeprefix('seconds/')}": sum(history.values(name))
        for name in history.names("seconds/")
    }
    validating = sum(record.get("seconds", 0.0) for record in history.records if "validation" in record)
    wall = sum(history.values("seconds"))
    rest = max(wall - validating - sum(spent.values()), 0.0)
    return {**spent, "validation": validating, "the rest": rest}


def _plot_medians(axes: Axes, series: list[tuple[int, float]], label: str) -> None:
    steps, values = (np.array(column, dtype=float) for column in zip(*series, strict=True))
    parts = np.array_split(np.arange(len(steps)), -(-len(steps) // WINDOW))
    middle = [float(np.median(values[part])) for part in parts]
    axes.plot([float(steps[part].mean()) for part in parts], middle, marker=".", label=label)
