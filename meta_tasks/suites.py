"""Named tasks, and named suites that keep the tasks for choosing and for testing a rule apart.

No task of a suite has the data set and architecture of another, and no config of ours trains on one of its test
tasks, which are looked at once, after everything has been chosen; but for configs/neural_graphs.yaml, which
meta-trains on "fm-16" itself, as Neural Graphs does: to its rules "c10-32" alone is a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lopt.config import short
from lopt.errors import ConfigError
from lopt.inner.task import Task
from meta_tasks.families import make_task

Named = tuple[str, Mapping[str, Any]]
"""Family name, with the options of the family or the spec of a task."""

TASKS: dict[str, Named] = {
    "digits-mlp": ("mlp", {"widths": (32, 32)}),
    "digits-mlp-wide": ("mlp", {"widths": (96, 96)}),
    "digits-mlp-deep": ("mlp", {"widths": (32, 32, 32, 32)}),
    "digits-cnn": ("cnn", {"widths": (12, 12)}),
    "digits-cnn-wide": ("cnn", {"widths": (32, 32)}),
    "digits-cnn-norm": ("cnn", {"widths": (12, 12), "norm": "batch"}),
    "digits-autoencoder": ("autoencoder", {"widths": (64, 32), "code": 8}),
    "photos-siren": ("siren", {"widths": (32, 32)}),
    "photos-siren-deep": ("siren", {"widths": (48, 48, 48)}),
    "sentences-rnn": ("char_lm", {"network": "rnn", "width": 48}),
    "sentences-transformer": ("char_lm", {"network": "transformer", "width": 48}),
    "quadratic": ("quadratic", {"dimension": 20, "condition": 1000.0}),
    "rosenbrock": ("rosenbrock", {"dimension": 10}),
    "fashion-mlp": ("mlp", {"dataset": "fashion_mnist", "size": 14, "widths": (64, 64)}),
    "fashion-mlp28": ("mlp", {"dataset": "fashion_mnist", "widths": (128,)}),
    "fashion-cnn28": ("cnn", {"dataset": "fashion_mnist", "widths": (12, 24, 24)}),
    "fm-16": (
        "cnn",
        {
            "dataset": "fashion_mnist",
            "widths": (16, 32, 32),
            "batch_size": 128,
            "evaluation_examples": 10_000,
        },
    ),
    "c10-32": (
        "cnn",
        {"dataset": "cifar10", "widths": (32, 64, 64), "batch_size": 128, "evaluation_examples": 10_000},
    ),
    "c10-16-norm": ("cnn", {"dataset": "cifar10", "size": 16, "widths": (16, 32, 32), "norm": "batch"}),
    "c10-resnet": ("resnet", {"dataset": "cifar10", "size": 16, "widths": (8, 16, 32), "batch_size": 64}),
    "c10-vit": (
        "vit",
        {"dataset": "cifar10", "size": 16, "patch": 4, "width": 48, "depth": 2, "batch_size": 64},
    ),
    "cancer-mlp": ("tabular", {"dataset": "breast_cancer", "widths": (64, 64)}),
    "mnist-mlp": ("mlp", {"dataset": "mnist", "widths": (128,)}),
    "mnist-autoencoder": ("autoencoder", {"dataset": "mnist", "size": 14, "widths": (128, 64), "code": 16}),
    "shakespeare-rnn": ("char_lm", {"dataset": "tinyshakespeare", "width": 96, "context": 32}),
    "shakespeare-lstm": (
        "char_lm",
        {"dataset": "tinyshakespeare", "network": "lstm", "width": 64, "context": 32},
    ),
    "shakespeare-gpt": (
        "char_lm",
        {"dataset": "tinyshakespeare", "network": "transformer", "width": 48, "depth": 2, "context": 32},
    ),
    "shakespeare-transformer": (
        "char_lm",
        {"dataset": "tinyshakespeare", "network": "transformer", "width": 64, "depth": 2, "context": 64},
    ),
}
"""Fixed tasks by name. "fm-16" and "c10-32" are those of Neural Graphs (Kofinas et al. 2024)."""


@dataclass(frozen=True)
class Suite:
    """Which tasks a rule is chosen by and tested on."""

    validation: tuple[str, ...]
    """Names in `TASKS`."""
    test: tuple[str, ...]


SUITES: dict[str, Suite] = {
    "digits": Suite(
        validation=("digits-mlp-deep", "digits-cnn-norm"),
        test=("digits-mlp-wide", "digits-cnn-wide"),
    ),
    "built-in": Suite(
        validation=("digits-mlp-deep", "digits-cnn-norm", "sentences-rnn", "quadratic"),
        test=(
            "digits-mlp-wide",
            "digits-cnn-wide",
            "photos-siren-deep",
            "sentences-transformer",
            "rosenbrock",
        ),
    ),
    "fashion": Suite(
        validation=("fashion-mlp28", "fashion-cnn28"),
        test=("fm-16", "c10-32"),
    ),
    "base": Suite(
        validation=("fashion-cnn28", "mnist-mlp", "digits-cnn-norm", "sentences-rnn"),
        test=(
            "fm-16",
            "c10-32",
            "c10-16-norm",
            "c10-resnet",
            "c10-vit",
            "cancer-mlp",
            "mnist-autoencoder",
            "photos-siren-deep",
            "shakespeare-rnn",
            "shakespeare-lstm",
            "shakespeare-gpt",
            "shakespeare-transformer",
            "rosenbrock",
        ),
    ),
}
"""Suites by name. "digits" and "built-in" need no data folder."""


def named_task(name: str, data_root: str | None = None, device: str | torch.device = "cpu") -> Task:
    """A fixed task by name. Raises `ConfigError` for an unknown name, `DataError` for missing data."""
    if name not in TASKS:
        raise ConfigError(f"there is no task {short(repr(name))}; there are {', '.join(TASKS)}")
    family, spec = TASKS[name]
    return make_task(family, spec, data_root, device)


def suite_tasks(name: str, part: str, data_root: str | None = None) -> dict[str, Task]:
    """The tasks of the "validation" or "test" part of a suite, by name."""
    if name not in SUITES:
        raise ConfigError(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    if part not in ("validation", "test"):
        raise ConfigError(f"a suite has no tasks for {part!r}; expected validation or test")
    return {task: named_task(task, data_root) for task in getattr(SUITES[name], part)}
