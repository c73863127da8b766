"""FM-16 and C10-32, the two tasks on which Neural Graphs (Kofinas et al. 2024, arXiv 2403.12143) tests optimizers.

    lopt benchmark neural_graphs --data DIR [--rules runs/metanets-*] [--only adam muon] [--tasks fm-16]

Rules: lopt-base, lopt-small, and every metanet meta-trained on FashionMNIST alone with the same budget
(configs/metanets.yaml; benchmarks/rules/neural_graphs).
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.runner.benchmark import Benchmark, Case
from meta_tasks import TASKS

FULL = Benchmark(
    name="neural_graphs",
    title="FM-16 and C10-32",
    protocol="""
        Small convolutional networks on FashionMNIST (FM-16, 14,378 parameters) and CIFAR-10 (C10-32, 56,970
        parameters, which no metanet saw in meta-training), batch 128, no augmentation, 1,000 steps; accuracy on all
        10,000 test images, seeds 101 to 105. The metanets are meta-trained on FashionMNIST alone with one budget
        (configs/metanets.yaml; "metanets-fresh" is the rule that they all start as); rules run as they are (lr 1) and
        are told the horizon. lopt-base was changed twice after a look at C10-32, on other tasks both times: it got a
        weight decay after losing to Muon there, and the form "preconditioned", as lopt-small did, after being level
        with Muon (LOG.md).
    """,
    cases={"fm-16": Case(TASKS["fm-16"]), "c10-32": Case(TASKS["c10-32"])},
)

QUICK = replace(
    FULL,
    protocol="FM-16 alone, for 60 steps, two test seeds, three learning rates: a check that it runs, no result.",
    cases={"fm-16": Case(TASKS["fm-16"], steps=60)},
    baselines=("adamw", "muon"),
    rates=3,
    test_seeds=(101, 102),
)
