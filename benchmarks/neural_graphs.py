"""FM-16 and C10-32, the two tasks on which Neural Graphs (Kofinas et al. 2024, arXiv 2403.12143) tests optimizers.

    lopt benchmark neural_graphs --data DIR [--rules runs/metanets-*] [--only adam muon] [--tasks fm-16]

Rules: lopt-base, lopt-small, and every metanet meta-trained on FashionMNIST alone with the same budget
(configs/metanets.yaml; benchmarks/rules/neural_graphs); "neural_graphs-" those of the paper's own protocol
(configs/neural_graphs.yaml).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.runner.benchmark import Benchmark, Case
from benchmarks.runner.variants import FRESH, Variant, overview_of, per_parameter_mlp, recipes, rule
from meta_tasks import TASKS

CONFIG = Path(__file__).parents[1] / "configs" / "metanets.yaml"
META_SEEDS = (0, 1, 2, 3)

DIRECTIONS = ["adam", "slow", "gradient", "factored", "constant"]
"""The config's, and one beside which a raw output is a step by itself."""

VARIANTS = {
    "metanets-axisnet_paths_constant": Variant(
        "AxisNet with messages along paths and a constant direction",
        rule(metanet={"name": "axisnet", "paths": 3}, directions=DIRECTIONS),
    ),
    "metanets-mlp_constant": Variant(
        "a network for each scalar by itself, of usual size (903 meta-parameters), and a constant direction",
        rule(metanet="mlp", directions=DIRECTIONS),
    ),
    "metanets-mlp_large_constant": Variant(
        "such a network with as many meta-parameters as AxisNet (13,000), and a constant direction",
        per_parameter_mlp(60, directions=DIRECTIONS),
    ),
}  # fmt: skip
"""Those that are meta-trained with several meta-seeds."""

PAIRS = (
    ("metanets-axisnet_paths_constant", "metanets-mlp_constant"),
    ("metanets-axisnet_paths_constant", "metanets-mlp_large_constant"),
)

RECIPES = {key: recipe for key, recipe in recipes(CONFIG, VARIANTS, META_SEEDS).items() if key != FRESH}

FULL = Benchmark(
    name="neural_graphs",
    title="FM-16 and C10-32",
    protocol="""
        Small convolutional networks on FashionMNIST (FM-16, 14,378 parameters) and CIFAR-10 (C10-32, 56,970 parameters,
        which no metanet saw in meta-training), batch 128, no augmentation, 1,000 steps; accuracy on all 10,000 test
        images, seeds 101 to 105. The metanets are meta-trained on FashionMNIST alone with one budget
        (configs/metanets.yaml; "metanets-fresh" is the rule that they all start as), three of them with several
        meta-seeds, some of them also with a warm-up over the first tenth of the horizon ("_warm_up"), one on
        lopt-small's base ("_on_lopt_small"); rules run as they are (lr 1) and are told the horizon. "neural_graphs-"
        are by the paper's protocol in few outer steps (configs/neural_graphs.yaml, LOG.md): they were meta-trained on
        the training images and network of FM-16 itself, so that C10-32 alone tests them. lopt-base was changed twice
        after a look at C10-32, on other tasks both times: it got a weight decay after losing to Muon there, and the
        form "preconditioned", as lopt-small did, after being level with Muon (LOG.md).
    """,
    cases={"fm-16": Case(TASKS["fm-16"]), "c10-32": Case(TASKS["c10-32"])},
    recipes=RECIPES,
    overview=overview_of(VARIANTS, PAIRS),
)

QUICK = replace(
    FULL,
    protocol="FM-16 alone, for 60 steps, two test seeds, three learning rates: a check that it runs, no result.",
    cases={"fm-16": Case(TASKS["fm-16"], steps=60)},
    baselines=("adamw", "muon"),
    rates=3,
    test_seeds=(101, 102),
    recipes={},
    overview=None,
)
