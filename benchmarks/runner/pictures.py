"""Learning curves of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from lopt.files import write_picture
from lopt.rules import pretrained_names

COLUMNS = 2
"""Panels beside one another, at most."""

BANDED = 8
"""With more curves than that in any panel, bands would hide one another: then there are none."""

COLOURS = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]


NAMES = 20
"""Names of the legend that fit beside a row of panels."""


class PlainLog(LogFormatter):
    """0.6 instead of 6 x 10^-1, at the ticks of a logarithmic axis that have a label at all."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def plot_tasks(summary: Mapping[str, Any], path: Path) -> None:
    """Training loss over steps, a panel for each task: rules solid, baselines dashed; median and range of the seeds.

    Rules beyond the twentieth curve are dotted, in colours that others have solid. The rules of a variant, NAME.SEED
    for each meta-seed, share a colour and a line of the legend.
    """
    tasks = {name: task for name, task in summary["tasks"].items() if task["entries"]}
    if not tasks:
        return
    styles = plot_styles(
        {_variant(n): e["kind"] for task in tasks.values() for n, e in task["entries"].items()}
    )
    columns = min(COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    names = math.ceil(len(styles) / (NAMES * rows))
    figure = Figure(figsize=(6 * columns + 2.2 * names - 0.7, 4.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    banded = all(len(task["entries"]) <= BANDED for task in tasks.values())
    for axes, (name, task) in zip(panels, tasks.items(), strict=False):
        _panel(axes, name, task, styles, banded)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    handles = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside right center",
        frameon=False,
        fontsize="small",
        ncols=names,
    )
    bands = ", band from the lowest to the highest" if banded else ""
    figure.suptitle(f"training loss, median of the test seeds{bands}", fontsize="medium")
    write_picture(path, figure, dpi=110)


def set_log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers; between the decades only where it spans few of them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PlainLog())
    axes.yaxis.set_minor_formatter(PlainLog(minor_thresholds=(1.2, 0.6)))


def plot_styles(kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Of every variant, given its kind: the strong colours are for baselines and the rules that ship."""
    shipped = pretrained_names()
    ranked = sorted(kinds, key=lambda name: (kinds[name] == "rule" and name not in shipped, name))
    styles: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(ranked):
        line = "--" if kinds[name] != "rule" else "-" if k < len(COLOURS) else ":"
        styles[name] = {"color": COLOURS[(2 * k + k // 10) % len(COLOURS)], "linestyle": line}
    return styles


def _variant(name: str) -> str:
    return name.partition(".")[0]


def _panel(
    axes: Axes, name: str, task: Mapping[str, Any], styles: Mapping[str, dict[str, Any]], banded: bool
) -> None:
    positive = True
    for optimizer, entry in task["entries"].items():
        curve = entry["curve"]
        losses = np.array([[math.nan if x is None else x for x in row] for row in curve["train_loss"]])
        shown = np.isfinite(losses).all(0)  # a curve ends where its first seed diverges
        if not shown.any():
            continue
        steps, losses = np.array(curve["steps"])[shown], losses[:, shown]
        positive &= bool((losses > 0).all())
        above: dict[str, Any] = (
            {"linewidth": 2.0, "zorder": 3} if entry["kind"] == "rule" else {"linewidth": 1.3}
        )
        variant = _variant(optimizer)
        style = styles[variant]
        axes.plot(steps, np.median(losses, 0), label=variant, **style, **above)
        if banded:
            low, high = losses.min(0), losses.max(0)
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.1, linewidth=0)
    if positive:
        set_log_scale(axes)
    axes.set(xlabel="training steps", ylabel="training loss", xlim=(0, task["steps"]), title=name)
    axes.grid(alpha=0.4, linewidth=0.5)
