"""What a kind of the meta-test suite is: a module, its examples, what is measured. Everything else is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from lopt.inner.task import SPLITS
from meta_tasks.data import load_images
from meta_tasks.data.tables import TableSet, load_table
from meta_tasks.module_task import ModuleTask, Pair, classification, draw_indices

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


class KindTask(ModuleTask):
    """The task of a kind."""

    def __init__(self, name: str, kind: Kind, device: str | torch.device = "cpu") -> None:
        super().__init__(f"meta_test/{name}", kind.build, device)
        self.kind = kind
        self._examples: dict[str, Pair] = {
            split: _moved(kind.examples(split, Generator().manual_seed(seed)), self.device)
            for seed, split in enumerate(SPLITS)
        }

    def figures(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        return dict(self.kind.figures(outputs, targets))

    def sample(self, split: str, count: int, generator: Generator) -> Pair:
        """Examples (count, B, ...) drawn with replacement."""
        targets = self._examples[split][1]
        rows = draw_indices(len(targets), (count, self.kind.batch_size), generator, self.device)
        return _rows(self._examples[split], rows)

    def evaluation(self, split: str) -> Iterable[Pair]:
        """All examples of a split."""
        rows = torch.arange(len(self._examples[split][1]), device=self.device)
        for chunk in rows.split(self.kind.chunk):
            yield _rows(self._examples[split], chunk)


def _rows(examples: Pair, rows: Tensor) -> Pair:
    picked: Pair = torch.utils._pytree.tree_map(lambda tensor: tensor[rows], examples)
    return picked


def _moved(examples: Pair, device: torch.device) -> Pair:
    moved: Pair = torch.utils._pytree.tree_map(lambda tensor: tensor.to(device), examples)
    return moved


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


def squared_error(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Mean squared error."""
    return {"loss": F.mse_loss(outputs, targets.to(outputs.dtype))}
