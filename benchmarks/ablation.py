"""What the parts of a learned rule are worth: each is left out or replaced, with the budget kept.

    lopt benchmark ablation --data DIR [--only whole.0 no-graph.0 adamw]

Each variant is meta-trained here (configs/ablation.yaml with the changes below) once for each meta-seed, unless its
rule lies in benchmarks/rules/ablation.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.runner.benchmark import Benchmark, Case
from benchmarks.runner.variants import Variant, overview_of, per_parameter_mlp, recipes, rule
from meta_tasks import TASKS

CONFIG = Path(__file__).parents[1] / "configs" / "ablation.yaml"
META_SEEDS = (0, 1, 2)

AS_ADAM: dict[str, Any] = {"update_form": "mixture", "rate": 2e-2, "scales": {}}
"""The fresh rule is Adam: nothing is orthogonalised, and all tensors have one rate."""

PATHS = {"name": "axisnet", "width": 8, "neuron_width": 16, "paths": 3}
"""The config's metanet, with messages along paths."""

WITH_CONSTANT = {"adam": 1.0, "slow": 0.0, "gradient": 0.0, "constant": 0.0}

FASTER = ("--meta.learning_rate", "6e-3")
"""From Adam there is further to go than sixty steps of the config's outer learning rate."""

VARIANTS = {
    "whole": Variant("the rule as it is: hidden matrices are orthogonalised"),
    "preconditioned": Variant(
        "they are orthogonalised in better coordinates, as lopt-base has it now",
        rule(update_form="preconditioned"),
    ),
    "no-graph": Variant(
        "a network for each scalar by itself with as many meta-parameters",
        per_parameter_mlp(29, factored=True),
    ),
    "adam-base": Variant(
        "nothing is orthogonalised: it starts as Adam",
        rule(**AS_ADAM),
    ),
    "per-parameter": Variant(
        "a network for each scalar by itself, and nothing is orthogonalised",
        per_parameter_mlp(29, factored=True, **AS_ADAM),
    ),
    "paths": Variant(
        "AxisNet with messages along paths too, from Adam",
        rule(metanet=PATHS, **AS_ADAM),
    ),
    "paths-constant": Variant(
        "the same with a constant direction and thrice the outer learning rate",
        (*rule(metanet=PATHS, **AS_ADAM, directions=WITH_CONSTANT), *FASTER),
    ),
    "per-parameter-constant": Variant(
        "the same with a network for each scalar by itself in AxisNet's place",
        (
            *per_parameter_mlp(30, factored=True, **AS_ADAM, directions=WITH_CONSTANT),
            *FASTER,
        ),
    ),
    "one-direction": Variant(
        "Adam's direction alone, nothing to mix before it is orthogonalised",
        rule(directions={"adam": 1.0}),
    ),
    "short-horizons": Variant(
        "horizons of up to 60 steps, each lived through",
        ("--meta.shortest_horizon", "60", "--meta.longest_horizon", "60"),
    ),
    "long-horizons": Variant(
        "horizons of up to 600 steps, of which networks live 160 at most",
        ("--meta.shortest_horizon", "600", "--meta.longest_horizon", "600"),
    ),
    "first-order": Variant(
        "backpropagation that takes the inner gradients as given",
        ("--meta.estimator", "{name: backprop, second_order: false}"),
    ),
    "es": Variant("evolution strategies", ("--meta.estimator", "es")),
    "pes": Variant("persistent evolution strategies", ("--meta.estimator", "pes")),
    "mixture": Variant("backpropagation and PES", ("--meta.estimator", "mixture")),
}  # fmt: skip

FROM_ADAM = ("adam-base", "per-parameter", "paths", "paths-constant", "per-parameter-constant")

# What is set against the rule as it is; the graph and the base are weighed two by two.
CHANGES = tuple(name for name in VARIANTS if name not in FROM_ADAM and name not in ("whole", "no-graph"))

FULL = Benchmark(
    name="ablation",
    title="Ablation",
    protocol="""
        One rule of the form that lopt-base had before "preconditioned", meta-trained on FashionMNIST at 14 x 14 pixels
        with a small budget (60 outer steps of 20 inner steps, 8 networks at a time, configs/ablation.yaml), and
        variants of it with as many outer and inner steps, each with three meta-seeds. Horizons are of up to 600 steps,
        but eight architectures share the outer steps, so that no network lives more than 160: rules see the beginning
        of runs. Tested on a wider perceptron of the trained kind at 300 and 3,000 steps, on FM-16 at 1,000 steps, and
        on a convolutional network with batch norm on CIFAR-10 at 16 x 16 pixels, a data set and a layer that no variant
        has seen.
    """,
    cases={
        "fashion-mlp": Case(TASKS["fashion-mlp"], steps=300),
        "fashion-mlp-3000": Case(TASKS["fashion-mlp"], steps=3000),
        "fm-16": Case(TASKS["fm-16"]),
        "c10-16-norm": Case(TASKS["c10-16-norm"]),
    },
    baselines=("adamw",),
    rules=(),
    recipes=recipes(CONFIG, VARIANTS, META_SEEDS),
    overview=overview_of(
        VARIANTS,
        (
            ("whole", "per-parameter"),
            ("preconditioned", "per-parameter"),
            ("adam-base", "per-parameter"),
            ("paths", "per-parameter"),
            ("paths-constant", "per-parameter-constant"),
            ("whole", "no-graph"),
            ("whole", "adam-base"),
            *((name, "whole") for name in CHANGES),
        ),
    ),
)

DIGITS = "{family: mlp, options: {widths: [12], batch_size: 16}}"

QUICK = replace(
    FULL,
    protocol="Digits, two outer steps, one meta-seed, tested for 60 steps: a check that it runs, no result.",
    cases={"digits-mlp": Case(TASKS["digits-mlp"], steps=60)},
    rates=3,
    test_seeds=(101, 102),
    recipes=recipes(
        CONFIG, VARIANTS, (0,), "--tasks", f"[{DIGITS}]", "--validation", f"[{DIGITS}]",
        "--meta.steps", "2", "--meta.networks", "2", "--meta.cohorts", "2", "--meta.truncation", "5",
        "--meta.validation_steps", "10",
    ),
)  # fmt: skip
