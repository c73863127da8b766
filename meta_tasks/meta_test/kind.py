"""What a kind of the meta-test suite is: a module, its examples, what is measured. Everything else is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor, nn

from lopt.inner.task import SPLITS
from meta_tasks.data import load_images
from meta_tasks.data.tables import TableSet, load_table
from meta_tasks.module_task import ExamplesTask, Pair, classification

SIZES = {"train": 2048, "validation": 512, "test": 1024}
"""Examples of each split, where they are generated."""

Figures = Callable[[Any, Tensor], Mapping[str, Tensor]]
"""Outputs of the module and targets -> means over the examples; "loss" is the training loss, and positive."""


@dataclass(frozen=True)
class Kind:
    """One kind of task. Examples are drawn once, each split from a seed of its own; all networks have the same."""

    build: Callable[[], nn.Module]
    """A fresh network, its random numbers from torch's default generator."""
    examples: Callable[[str, Generator], Pair]
    """All N examples of a split: inputs (N, ...), or a tuple of those, and targets (N, ...)."""
    figures: Figures = classification
    batch_size: int = 32
    chunk: int = 512
    """How many examples are evaluated at a time."""


class KindTask(ExamplesTask):
    """The task of a kind."""

    def __init__(self, name: str, kind: Kind) -> None:
        examples = {
            split: kind.examples(split, Generator().manual_seed(seed)) for seed, split in enumerate(SPLITS)
        }
        super().__init__(f"meta_test/{name}", kind.build, examples, kind.batch_size, kind.chunk)
        self.kind = kind

    def figures(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        return dict(self.kind.figures(outputs, targets))


def digits(split: str, copies: int = 1) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) with values from 0 to 1, each `copies` times, and labels (N)."""
    data = load_images("digits")
    images, labels = data.images[split].float() / 255, data.labels[split].long()
    return images.repeat(copies, 1, 1, 1), labels.repeat(copies)


def table(name: str) -> Callable[[str, Generator], Pair]:
    """The rows of a table of scikit-learn."""

    def examples(split: str, _: Generator) -> Pair:
        data: TableSet = load_table(name)
        return data.inputs[split], data.targets[split]

    return examples
