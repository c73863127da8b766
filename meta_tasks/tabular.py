"""Multilayer perceptrons on the rows of a table: classification or regression, as the table has it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from meta_tasks.data.tables import Table, TableSet, load_table
from meta_tasks.family import SpecFamily, register_family
from meta_tasks.image_stream import NetworkSpec
from meta_tasks.module_task import ModuleTask, Pair, classification, draw_indices, evenly_spaced
from meta_tasks.networks import Activation, mlp
from meta_tasks.spec import Layers, Wide


class TabularSpec(NetworkSpec):
    """A multilayer perceptron on standardised columns."""

    dataset: Table = "breast_cancer"
    widths: Layers[Wide] = (32, 32)
    activation: Activation = "relu"
    norm: Literal["none", "layer"] = "none"
    batch_size: Wide = 32


class TabularTask(ModuleTask):
    """Cross-entropy of logits (B, classes), or mean squared error of values (B, 1), on rows (B, columns)."""

    def __init__(self, spec: TabularSpec, table: TableSet, device: str | torch.device) -> None:
        name = f"tabular/{spec.dataset}/{'-'.join(map(str, spec.widths))}-{spec.activation}"
        outputs = table.classes or 1
        build = partial(mlp, table.columns, spec.widths, outputs, spec.activation, spec.norm)
        super().__init__(name, build, device, spec.init_scale)
        self.table = table
        self.batch_size = spec.batch_size
        self.limit = spec.evaluation_examples

    def sample(self, split: str, count: int, generator: Generator) -> Pair:
        """Rows (count, B, columns) and their targets, drawn with replacement."""
        inputs, targets = self.table.inputs[split], self.table.targets[split]
        rows = draw_indices(len(inputs), (count, self.batch_size), generator, self.device)
        return inputs[rows], targets[rows]

    def evaluation(self, split: str) -> Iterable[Pair]:
        """Evenly spaced rows, in one chunk."""
        inputs, targets = self.table.inputs[split], self.table.targets[split]
        rows = evenly_spaced(len(inputs), self.limit, self.device)
        yield inputs[rows], targets[rows]

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and accuracy, or the mean squared error."""
        if not self.table.classes:
            return {"loss": F.mse_loss(outputs, targets.to(outputs.dtype))}
        return classification(outputs, targets)


@register_family("tabular")
class TabularFamily(SpecFamily[TabularSpec]):
    """Perceptrons of varied widths, depths and activations on tables."""

    spec_class = TabularSpec

    def task(self, spec: TabularSpec) -> TabularTask:
        """The perceptron of one spec."""
        return TabularTask(spec, load_table(spec.dataset, self.device), self.device)
