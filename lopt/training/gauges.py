"""How large the steps of a rule are, by class of tensor.

Shapes: T networks, G classes.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import CLASSES, classes


def step_gauges(graph: ParameterGraph, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
    """(3, G): for each class its count of tensors, and sums of log rms step and log (rms step / rms parameter).

    The rms of a step is what the learning rate is to Adam. Networks whose step is not finite are left out.
    """
    table = torch.zeros(3, len(CLASSES), dtype=torch.float64)
    for name, of_class in zip(graph.parameters, classes(graph), strict=True):
        step = _rms(after[name] - before[name])
        sizes = torch.stack([step, step / _rms(before[name]).clamp(min=1e-8)]).clamp(min=1e-12)
        finite = sizes.isfinite().all(0)
        if finite.any():
            column = CLASSES.index(of_class)
            table[0, column] += 1
            table[1:, column] += sizes[:, finite].log().mean(1).double().cpu()
    return table


def named_gauges(table: Tensor) -> dict[str, float]:
    """Geometric means by name out of sums of `step_gauges`."""
    means_by_name = {}
    for of_class, (count, step, ratio) in zip(CLASSES, table.T.tolist(), strict=True):
        if count:
            means = torch.tensor([step, ratio], dtype=torch.float64).div(count).exp().tolist()
            means_by_name[f"step_rms/{of_class}"], means_by_name[f"update_ratio/{of_class}"] = means
    return means_by_name


def peak_memory() -> float:
    """The most memory that this process has held so far, in MiB; of the GPU's where it uses one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _rms(values: Tensor) -> Tensor:
    """(T, ...) -> (T,)."""
    return values.detach().flatten(1).square().mean(1).sqrt()
