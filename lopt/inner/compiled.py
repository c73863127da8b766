"""The inner step as one compiled function: inner gradient, vmap and rule together, once for each architecture.

What it gives is measured by benchmarks/meta_throughput.py. What it costs is half a minute of a processor for every
architecture, so it pays where cohorts live for hundreds of truncations, or on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.utils._pytree import tree_map

from lopt.inner.step import Networks, Step
from lopt.inner.task import Batch, Task
from lopt.rules.base import BoundRule, Tensors

Maker = Callable[[BoundRule, Task, Tensors], Step]
KEPT = f"{__name__}.steps"


def compiled_step(make: Maker, rule: BoundRule, task: Task, own: Tensors) -> Step:
    """`make(rule, task, own)`, compiled when it is first called; as it is, with one warning, if that fails.

    Compiled code is kept on the graph, for as long as that lives: all calls with a rule, a graph and a type of task
    are taken to be for the same loss and for batches of the same shapes.
    """
    kept = rule.graph.__dict__.setdefault(KEPT, {})
    key = (make, rule.rule, type(task))
    if key not in kept:
        kept[key] = _Compiled(make, rule, task)
    compiled: _Compiled = kept[key]
    return lambda networks, batch: compiled(own, networks, batch)


class _Compiled:
    def __init__(self, make: Maker, rule: BoundRule, task: Task) -> None:
        def whole(own: Tensors, networks: Networks, batch: Batch) -> tuple[Tensor, Networks]:
            return make(rule, task, own)(networks, batch)

        self.plain = whole
        # With code of its own: torch counts and keeps compilations by code, and gives up after a few.
        apart = whole.__code__.replace()
        fresh = FunctionType(apart, whole.__globals__, closure=whole.__closure__)
        self.function: Callable[..., Any] = torch.compile(fresh, fullgraph=True, dynamic=False)
        self.proven = False

    def __call__(self, own: Tensors, networks: Networks, batch: Batch) -> tuple[Tensor, Networks]:
        networks = tree_map(_uniform, networks)
        # Else a mask is kept for every relu, one byte at a time: eight times slower than to find it again.
        with torch._functorch.config.patch(aggressive_recomputation=True):
            if self.proven:
                return self.function(own, networks, batch)
            try:
                result = self.function(own, networks, batch)
                self.proven = True
                return result
            except Exception as error:
                reason = str(error).strip().splitlines()[:1]
                warnings.warn(
                    f"inner steps run uncompiled: {type(error).__name__}: {' '.join(reason)}", stacklevel=2
                )
                self.function, self.proven = self.plain, True
        return self.plain(own, networks, batch)


def _uniform(value: Tensor) -> Tensor:
    """In one memory layout, and to be differentiated by from the first step on: or else steps compile anew."""
    value = value.clone(memory_format=torch.contiguous_format) if value.dim() == 1 else value.contiguous()
    if torch.is_grad_enabled() and not value.requires_grad:
        return value.detach().requires_grad_()
    return value
