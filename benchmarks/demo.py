"""The demo: meta-train a rule on digits, then hold it against tuned AdamW and Muon on fresh networks.

    python -m benchmarks demo        (or: make demo)

Writes runs/demo/: the run's own files, results.json and curves.png.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lopt
from lopt.cli.arguments import Parser
from lopt.comparison import Comparison, compare
from lopt.comparison.report import smoothed, write_results
from lopt.files import write_picture
from lopt.rules import LearnedRule
from lopt.runs.provenance import provenance
from lopt.tables import aligned
from lopt.training import train
from meta_tasks import make_task

CONFIG = Path("configs/demo.yaml")
STEPS, LONG_FACTOR = 300, 3
"""Baselines are tuned at the shorter horizon; the comparison also runs three times as far, and the rule, which has
met horizons from 60 to 900, is told how far."""

TASKS = {
    "perceptron 64-32-32-10": ("mlp", {"widths": [32, 32], "batch_size": 64}),
    "convolutional network 8-12": ("cnn", {"widths": [8, 12], "strides": "alternate", "batch_size": 64}),
}
"""Networks to train in the comparison, on seeds that neither meta-training nor tuning has seen."""

BASELINES = {"muon": "#dd8452", "adamw": "#c44e52"}
COLOURS = {"learned": "#1f4e9c", "fresh": "#7fa3d9", "lopt-small": "#55a868", **BASELINES}

FIGURES = {
    "mean_train_loss": "mean loss",
    "final_train_loss": "final training loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}


def main() -> None:
    parser = Parser(description=__doc__)
    parser.parse_args()
    start = time.perf_counter()
    out = Path("runs/demo")
    shutil.rmtree(out, ignore_errors=True)
    print(f"meta-training ({CONFIG})", flush=True)
    rule = train(CONFIG, {"out": str(out)}).best_rule
    trained = time.perf_counter()
    rules = {
        "learned": rule,
        "fresh": LearnedRule.from_description(rule.describe()),
        "lopt-small": lopt.load_rule("lopt-small"),
    }
    print(f"comparing on a {' and a '.join(TASKS)}, each in a process of its own", flush=True)
    # A spawned process: PyTorch's threads do not survive a fork.
    with ProcessPoolExecutor(len(TASKS), get_context("spawn")) as pool:
        comparisons = dict(zip(TASKS, pool.map(comparison_on, TASKS, [rules] * len(TASKS)), strict=True))
    for comparison in comparisons.values():
        print(f"\n{comparison}\n", flush=True)
    results = {name: comparison.record() for name, comparison in comparisons.items()}
    seconds = {
        "meta_training": round(trained - start),
        "comparison": round(time.perf_counter() - trained),
    }
    table = outcome(results)
    write_results(
        {"outcome": table, "seconds": seconds, "provenance": provenance(), "tasks": results},
        out / "results.json",
    )
    write_picture(out / "curves.png", picture(results), dpi=130)
    print("\n".join(["", table, "", *verdicts(results)]))
    print(
        f"meta-training {seconds['meta_training']} s, comparison {seconds['comparison']} s; see {out}/curves.png"
    )


def comparison_on(name: str, rules: Mapping[str, LearnedRule]) -> Comparison:
    """The rules beside tuned baselines on one of `TASKS`."""
    family, options = TASKS[name]
    task = make_task(family, options)
    return compare(rules, [task], tuple(BASELINES), steps=STEPS, long_factor=LONG_FACTOR)


def outcome(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The long horizon in one table: a row for each optimizer, means over the seeds."""
    header = ["", *(f"{name}: {title}" for name in results for title in FIGURES.values())]
    names = next(iter(results.values()))["entries"]
    rows = [
        [name, *(_short(result["entries"][name], key) for result in results.values() for key in FIGURES)]
        for name in names
    ]
    return aligned(header, rows)


def _short(entry: Mapping[str, Any], key: str) -> str:
    mean = entry["long_horizon"][key]["mean"]
    if mean is None:
        return "diverged"
    return f"{mean:.1%}" if key == "test_accuracy" else f"{mean:.2g}"


def verdicts(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """For each task a sentence: where the learned rule is ahead of tuned AdamW at the long horizon, and where not."""
    sentences = []
    for name, result in results.items():
        means = {
            key: [result["entries"][who]["long_horizon"][key]["mean"] for who in ("learned", "adamw")]
            for key in ("mean_train_loss", "final_train_loss", "test_loss")
        }
        told = ", ".join(
            f"{FIGURES[key]} {_or_diverged(ours)} against {_or_diverged(theirs)}"
            for key, (ours, theirs) in means.items()
        )
        won = sum(ours is not None and (theirs is None or ours < theirs) for ours, theirs in means.values())
        sentences.append(
            f"{name}, {result['long_steps']} steps: the learned rule is ahead of tuned AdamW in {won} of {len(means)}:"
            f" {told}"
        )
    return sentences


def _or_diverged(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2g}"


def picture(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A row for each task: training loss over both horizons, and the test loss at the end of the longer one."""
    figure = Figure(figsize=(14, 4.4 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), 3, squeeze=False, width_ratios=(1, 1, 0.75))
    for row, (name, result) in zip(grid, results.items(), strict=True):
        for axes, horizon in zip(row, ("horizon", "long_horizon"), strict=False):
            _curves(axes, result, horizon)
        row[0].set_ylabel(f"{name}\n\ntraining loss")
        _test_losses(row[2], result)
    seeds = len(next(iter(results.values()))["seeds"])
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"fresh networks on digits, {seeds} seeds: median and range, smoothed", fontsize=11)
    return figure


def _curves(axes: Axes, result: Mapping[str, Any], horizon: str) -> None:
    for name, entry in reversed(result["entries"].items()):
        curve = entry[horizon]["curve"]
        losses = np.array(curve["train_loss"], dtype=float)  # None, of a network that diverged, is nan
        losses = np.exp(smoothed(np.log(losses + 1e-7), len(curve["steps"]) // 20))
        steps, wide = curve["steps"], name == "learned"
        axes.plot(
            steps, np.median(losses, 0), color=COLOURS[name], linewidth=2.8 if wide else 1.6, label=_label(name, entry)
        )  # fmt: skip
        axes.fill_between(steps, losses.min(0), losses.max(0), color=COLOURS[name], alpha=0.12, linewidth=0)
    axes.set(
        yscale="log",
        xlabel="training steps",
        xlim=(0, steps[-1]),
        title=f"{result['long_steps' if horizon == 'long_horizon' else 'steps']} steps",
    )
    axes.grid(alpha=0.3, linewidth=0.5)


def _test_losses(axes: Axes, result: Mapping[str, Any]) -> None:
    entries = result["entries"]
    for place, (name, entry) in enumerate(reversed(entries.items())):
        loss = entry["long_horizon"]["test_loss"]
        values = [value for value in loss["values"] if value is not None]
        if loss["mean"] is None:
            axes.text(0, place, " diverged", va="center")
            continue
        axes.barh(place, loss["mean"], color=COLOURS[name], height=0.62, alpha=0.85)
        axes.plot(values, [place] * len(values), "o", color="black", markersize=3, alpha=0.6)
        accuracy = entry["long_horizon"]["test_accuracy"]["mean"]
        axes.text(
            max(values), place, f"  {loss['mean']:.3f}  ({accuracy:.1%})", va="center", fontsize="small"
        )
    axes.set_yticks(range(len(entries)), list(reversed(entries)))
    axes.set(xlabel="test loss (and accuracy)", title=f"after {result['long_steps']} steps")
    axes.margins(x=0.45)
    axes.set_xlim(left=0)


def _label(name: str, entry: Mapping[str, Any]) -> str:
    return f"{name} (tuned)" if entry["kind"] == "baseline" else name


if __name__ == "__main__":
    main()
