"""How far meta-training gets from plain Adam on digits, with the graph and without: minutes a rule, no download.

    lopt benchmark from_adam [--only graph.0 factored.0 adam]

Each variant is meta-trained here (configs/from_adam.yaml with the changes below) once for each meta-seed, unless its
rule lies in benchmarks/rules/from_adam.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.runner.benchmark import Benchmark, Case
from benchmarks.runner.variants import Variant, overview_of, per_parameter_mlp, recipes, rule
from meta_tasks import TASKS

CONFIG = Path(__file__).parents[1] / "configs" / "from_adam.yaml"
META_SEEDS = (0, 1, 2, 3, 4)

DIRECTIONS = ["adam", "slow", "gradient", "factored", "constant"]
"""The config's, and one beside which a raw output is a step by itself."""

VARIANTS = {
    "graph": Variant("AxisNet: messages between scalars and neurons"),
    "factored": Variant(
        "a network for each scalar by itself with as many meta-parameters, which sees factored moments",
        per_parameter_mlp(59),
    ),
    "alone": Variant(
        "the same without factored moments among its features",
        per_parameter_mlp(59, factored=False),
    ),
    "paths": Variant(
        "AxisNet with messages along paths too",
        rule(metanet={"name": "axisnet", "paths": 3}),
    ),
    "paths-constant": Variant(
        "the same with a constant direction",
        rule(metanet={"name": "axisnet", "paths": 3}, directions=DIRECTIONS),
    ),
    "factored-constant": Variant(
        "a network for each scalar by itself, factored moments and a constant direction",
        per_parameter_mlp(60, directions=DIRECTIONS),
    ),
}

FULL = Benchmark(
    name="from_adam",
    title="From Adam, with the graph and without",
    protocol="""
        Rules that start as Adam with cosine decay, and so have everything to learn, meta-trained on perceptrons on
        digits (200 outer steps of 20 inner steps, 8 networks at a time, configs/from_adam.yaml): AxisNet, with
        messages along paths and without, and per-parameter MLPs with as many meta-parameters and the same budget, five
        meta-seeds each. Tested for 300 steps on perceptrons of the trained kind, wider and deeper ones, and on a
        convolutional network and an autoencoder, which no variant has seen.
    """,
    cases={
        name: Case(TASKS[name], steps=300)
        for name in ("digits-mlp", "digits-mlp-wide", "digits-mlp-deep", "digits-cnn", "digits-autoencoder")
    },
    baselines=("adam", "adamw", "muon"),
    rules=(),
    recipes=recipes(CONFIG, VARIANTS, META_SEEDS),
    overview=overview_of(
        VARIANTS,
        (
            ("paths", "factored"),
            ("paths", "graph"),
            ("graph", "factored"),
            ("graph", "alone"),
            ("paths-constant", "factored-constant"),
            ("factored-constant", "factored"),
        ),
    ),
)

QUICK = replace(
    FULL,
    protocol="Two outer steps, one meta-seed, one task for 60 steps: a check that it runs, no result.",
    cases={"digits-mlp": Case(TASKS["digits-mlp"], steps=60)},
    baselines=("adamw",),
    rates=3,
    test_seeds=(101, 102),
    recipes=recipes(
        CONFIG, VARIANTS, (0,), "--meta.steps", "2", "--meta.networks", "2", "--meta.truncation", "5",
        "--meta.validation_steps", "10",
    ),
)  # fmt: skip
