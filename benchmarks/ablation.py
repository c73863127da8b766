"""What the parts of a learned rule are worth: each is left out or replaced, with the budget kept.

    lopt benchmark ablation --data DIR [--only whole.0 no-graph.0 adamw]

Each variant is meta-trained here (configs/ablation.yaml with the changes below) once for each meta-seed, unless its
rule lies in benchmarks/rules/ablation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from benchmarks.runner.benchmark import Benchmark, Case
from benchmarks.runner.recipe import Recipe
from lopt.meta.report import aligned
from meta_tasks import TASKS

CONFIG = Path(__file__).parents[1] / "configs" / "ablation.yaml"
META_SEEDS = (0, 1, 2)


def _without_graph(options: dict[str, Any]) -> dict[str, Any]:
    """Of a per-parameter MLP with as many meta-parameters, which sees factored moments in the place of neighbours."""
    own = {"width": 29, "layers": 4, "factored": True}
    return {name: value for name, value in options.items() if name != "neuron_width"} | own


VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "whole": ("the rule as it is", ()),
    "no-graph": (
        "a network for each scalar by itself with as many meta-parameters",
        (
            "--rule.metanet", "mlp",
            "--rule.options", json.dumps(_without_graph(yaml.safe_load(CONFIG.read_text())["rule"]["options"])),
        ),
    ),
    "adam-base": (
        "nothing is orthogonalised: it starts as Adam",
        ("--rule.options.update_form", "mixture", "--rule.options.rate", "2e-2", "--rule.options.scales", "{}"),
    ),
    "one-direction": (
        "Adam's direction alone, nothing to mix before it is orthogonalised",
        ("--rule.options.directions", "[adam]", "--rule.options.weights", "[1.0]"),
    ),
    "short-horizons": (
        "every network trained for 60 steps",
        ("--meta.shortest_horizon", "60", "--meta.longest_horizon", "60"),
    ),
    "long-horizons": (
        "every network trained for 600 steps",
        ("--meta.shortest_horizon", "600", "--meta.longest_horizon", "600"),
    ),
    "first-order": ("backpropagation that takes the inner gradients as given", ("--meta.second_order", "false")),
    "es": ("evolution strategies", ("--meta.estimator", "es")),
    "pes": ("persistent evolution strategies", ("--meta.estimator", "pes")),
    "mixture": ("backpropagation and PES", ("--meta.estimator", "mixture")),
}  # fmt: skip
"""What is different, in words and as overrides of the config."""

FRESH = "fresh"
"""The whole rule before meta-training; its random weights are multiplied by zero, so that one seed says all."""


def recipes(seeds: tuple[int, ...], *changes: str) -> dict[str, Recipe]:
    """Every variant with every meta-seed, and the fresh rule."""
    trained = {
        f"{name}.{seed}": Recipe(CONFIG, (*overrides, "--seed", str(seed), *changes))
        for name, (_, overrides) in VARIANTS.items()
        for seed in seeds
    }
    return {FRESH: Recipe(CONFIG, trained=False), **trained}


def overview(summary: Mapping[str, Any]) -> tuple[Any, str]:
    """For each variant and task, final training loss and test accuracy: mean and deviation over the meta-seeds."""
    tasks = summary["tasks"]
    variants = {name: words for name, (words, _) in VARIANTS.items()} | {
        FRESH: "the rule before meta-training"
    }
    figures = {name: {task: _of_variant(name, tasks[task]["entries"]) for task in tasks} for name in variants}
    header = [
        "variant",
        "what is different",
        *(f"{task}: {what}" for task in tasks for what in ("loss", "accuracy, %")),
    ]
    rows = [
        [
            name,
            variants[name],
            *(_cell(found[key]) for found in by_task.values() for key in ("loss", "accuracy")),
        ]
        for name, by_task in figures.items()
        if any(found["loss"] for found in by_task.values())
    ]
    text = (
        "### Variants\n\nMean training loss and test accuracy, mean ± deviation over the meta-seeds (each the mean of"
        " the test seeds). The deviation is what luck in meta-training makes: smaller differences say nothing.\n\n"
    )
    return figures, text + aligned(header, rows)


def _of_variant(name: str, entries: Mapping[str, Any]) -> dict[str, list[float | None]]:
    own = [entry for key, entry in entries.items() if key.partition(".")[0] == name]
    return {
        "loss": [entry["mean_train_loss"]["mean"] for entry in own],
        "accuracy": [
            entry["test_accuracy"]["mean"] and 100 * entry["test_accuracy"]["mean"] for entry in own
        ],
    }


def _cell(values: list[float | None]) -> str:
    finite = [value for value in values if value is not None]
    if not finite:
        return "diverged" if values else "-"
    spread = f" ± {stdev(finite):.2g}" if len(finite) > 1 else ""
    lost = f" ({len(values) - len(finite)} diverged)" if len(finite) < len(values) else ""
    return f"{mean(finite):.4g}{spread}{lost}"


FULL = Benchmark(
    name="ablation",
    title="Ablation",
    protocol="""
        One rule of lopt-base's form, meta-trained on FashionMNIST at 14 x 14 pixels with a small budget (60 outer steps
        of 20 inner steps, 8 networks at a time, configs/ablation.yaml), and variants of it with as many outer and inner
        steps, each with three meta-seeds. Tested on a wider perceptron of the trained kind at 300 steps and, at five
        times the longest trained horizon, 3,000 steps, on FM-16 at 1,000 steps, and on a convolutional network with
        batch norm on CIFAR-10 at 16 x 16 pixels, a data set and a layer that no variant has seen.
    """,
    cases={
        "fashion-mlp": Case(TASKS["fashion-mlp"], steps=300),
        "fashion-mlp-3000": Case(TASKS["fashion-mlp"], steps=3000),
        "fm-16": Case(TASKS["fm-16"]),
        "c10-16-norm": Case(TASKS["c10-16-norm"]),
    },
    baselines=("adamw",),
    rules=(),
    recipes=recipes(META_SEEDS),
    overview=overview,
)

DIGITS = "{family: mlp, options: {widths: [12], batch_size: 16}}"

QUICK = replace(
    FULL,
    protocol="Digits, two outer steps, one meta-seed, tested for 60 steps: a check that it runs, no result.",
    cases={"digits-mlp": Case(TASKS["digits-mlp"], steps=60)},
    rates=3,
    test_seeds=(101, 102),
    recipes=recipes(
        (0,), "--tasks", f"[{DIGITS}]", "--validation", f"[{DIGITS}]", "--meta.steps", "2", "--meta.networks", "2",
        "--meta.cohorts", "2", "--meta.truncation", "5", "--meta.validation_steps", "10",
    ),
)  # fmt: skip
