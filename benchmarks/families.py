"""Kinds of networks that people train, on data that no rule here was meta-trained on: speed-ups over tuned AdamW.

lopt benchmark families --data DIR [--only lopt-base adamw] [--tasks c10-vit]
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.runner.benchmark import Benchmark, Case
from benchmarks.runner.speedup import overview
from meta_tasks import TASKS

NAMES = (
    "c10-resnet",
    "c10-vit",
    "shakespeare-gpt",
    "shakespeare-lstm",
    "mnist-autoencoder",
    "photos-siren-deep",
    "cancer-mlp",
)
"""Tasks of `meta_tasks.TASKS`; none is in the validation part of a suite."""

FULL = Benchmark(
    name="families",
    title="Seven kinds of networks",
    protocol="""
        A residual network with batch norm and a vision transformer on CIFAR-10 (16 x 16 pixels), a GPT and an LSTM on
        the characters of Shakespeare, an autoencoder on MNIST, a SIREN that fits a photograph, and a perceptron on a
        table of breast cancer cases: 1,000 steps, seeds 101 to 105. lopt-base and lopt-small were meta-trained on
        smaller networks of most of these kinds (not on residual ones) and on none of these data sets but the
        photographs, which the seed chooses and crops; they run as they are (lr 1) and are told the horizon. These
        tasks have been looked at four times: the first lopt-base did not reach AdamW on the autoencoder and the
        SIREN, the second was chosen with an eye on other autoencoders and SIRENs, the third got a weight decay, and
        the fourth the form "preconditioned", both chosen on other tasks, as lopt-small was (LOG.md).
    """,
    cases={name: Case(TASKS[name]) for name in NAMES},
    compiled=True,
    overview=overview,
)

QUICK_NAMES = ("photos-siren-deep", "cancer-mlp", "digits-autoencoder")

QUICK = replace(
    FULL,
    protocol="Three small tasks that need no data, for 100 steps: a check that it runs, no result.",
    cases={name: Case(TASKS[name], steps=100) for name in QUICK_NAMES},
    baselines=("adamw", "muon"),
    compiled=False,
    rates=3,
    test_seeds=(101, 102),
)
