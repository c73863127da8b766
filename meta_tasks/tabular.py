"""Multilayer perceptrons on the rows of a table: classification or regression, as the table has it."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from meta_tasks.data.tables import Table, TableSet, load_table
from meta_tasks.family import SpecFamily, register_family
from meta_tasks.image_stream import NetworkSpec
from meta_tasks.module_task import ExamplesTask, classification, squared_error
from meta_tasks.networks import Activation, mlp
from meta_tasks.spec import Layers, Wide


class TabularSpec(NetworkSpec):
    """A multilayer perceptron on standardised columns."""

    dataset: Table = "breast_cancer"
    widths: Layers[Wide] = (32, 32)
    activation: Activation = "relu"
    norm: Literal["none", "layer"] = "none"
    batch_size: Wide = 32


class TabularTask(ExamplesTask):
    """Cross-entropy of logits (B, classes), or mean squared error of values (B, 1), on rows (B, columns)."""

    def __init__(self, spec: TabularSpec, table: TableSet, device: str | torch.device) -> None:
        name = f"tabular/{spec.dataset}/{'-'.join(map(str, spec.widths))}-{spec.activation}"
        self.classes, limit = table.classes, spec.evaluation_examples
        build = partial(mlp, table.columns, spec.widths, table.classes or 1, spec.activation, spec.norm)
        examples = {split: (inputs, table.targets[split]) for split, inputs in table.inputs.items()}
        super().__init__(name, build, examples, spec.batch_size, limit, limit, device, spec.init_scale)

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and accuracy, or the mean squared error."""
        return (classification if self.classes else squared_error)(outputs, targets)


@register_family("tabular")
class TabularFamily(SpecFamily[TabularSpec]):
    """Perceptrons of varied widths, depths and activations on tables."""

    spec_class = TabularSpec

    def task(self, spec: TabularSpec) -> TabularTask:
        """The perceptron of one spec."""
        return TabularTask(spec, load_table(spec.dataset, self.device), self.device)
