"""The inner step as one compiled function: inner gradient, vmap and rule together, once for each architecture.

What it gives is measured by benchmarks/meta_throughput.py. What it costs is half a minute of a processor for every
architecture that no earlier run on the same machine has compiled, so it pays where cohorts live for hundreds of
truncations, where architectures are kept, or on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from lopt.inner.step import Networks, Step
from lopt.inner.task import Batch, Task
from lopt.numerics.fused import kernel_of
from lopt.rules.base import BoundRule, Tensors

Maker = Callable[[BoundRule, Task, Tensors], Step]
KEPT = f"{__name__}.steps"
TRACED = torch.__version__ >= "2.8"
"""Whether there is what `kernel_of` takes."""


def compiled_step(make: Maker, rule: BoundRule, task: Task, own: Tensors) -> Step:
    """`make(rule, task, own)`, compiled when it is first called; as it is, with one warning, if that fails.

    Compiled code is kept on the graph, for as long as that lives: all calls with a rule, a graph and a type of task
    are taken to be for the same loss, and without derivatives for the same meta-parameters but for `own`.
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
        self.guarded = _Guarded(whole)
        self.kernels: dict[Any, _Kernel] = {}
        self.fails = False

    def __call__(self, own: Tensors, networks: Networks, batch: Batch) -> tuple[Tensor, Networks]:
        if not self.fails:
            try:
                guarded = torch.is_grad_enabled() or not TRACED
                return (self.guarded if guarded else self.kernel)(own, networks, batch)
            except Exception as error:  # the compiler's own are of many kinds
                reason = str(error).strip().splitlines()[:1]
                warnings.warn(
                    f"inner steps run uncompiled: {type(error).__name__}: {' '.join(reason)}", stacklevel=2
                )
                self.fails = True
        return self.plain(own, networks, batch)

    def kernel(self, *args: Any) -> tuple[Tensor, Networks]:
        """Without derivatives there is nothing to guard, nor to be traced but the operations."""
        leaves, structure = tree_flatten(args)
        # With the structure: dicts out of a checkpoint may be in another order.
        key = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self.kernels:
            self.kernels[key] = _Kernel(self.plain, leaves, structure)
        return self.kernels[key](leaves)


class _Kernel:
    """A function of the leaves of one tree, for their shapes."""

    result: TreeSpec

    def __init__(self, function: Callable[..., Any], leaves: list[Tensor], structure: TreeSpec) -> None:
        def flat(*given: Tensor) -> list[Tensor]:
            values, self.result = tree_flatten(function(*tree_unflatten(given, structure)))
            return [value.contiguous() for value in values]

        self.run: Callable[..., Sequence[Tensor]] = kernel_of(flat, _contiguous(leaves), any_sizes=False)

    def __call__(self, leaves: list[Tensor]) -> tuple[Tensor, Networks]:
        result: tuple[Tensor, Networks] = tree_unflatten(self.run(*_contiguous(leaves)), self.result)
        return result


def _contiguous(leaves: list[Tensor]) -> list[Tensor]:
    return [leaf.detach().contiguous() for leaf in leaves]


class _Guarded:
    """What derivatives can go through."""

    def __init__(self, function: Any) -> None:
        # With code of its own: torch counts and keeps compilations by code, and gives up after a few.
        fresh = FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)
        self.function: Callable[..., Any] = torch.compile(fresh, fullgraph=True, dynamic=False)

    def __call__(self, own: Tensors, networks: Networks, batch: Batch) -> tuple[Tensor, Networks]:
        # Else a mask is kept for every relu, one byte at a time: eight times slower than to find it again.
        with torch._functorch.config.patch(aggressive_recomputation=True):
            result: tuple[Tensor, Networks] = self.function(own, tree_map(_uniform, networks), batch)
        return result


def _uniform(value: Tensor) -> Tensor:
    """In one memory layout, and to be differentiated by from the first step on: or else steps compile anew."""
    value = value.clone(memory_format=torch.contiguous_format) if value.dim() == 1 else value.contiguous()
    return value if value.requires_grad else value.detach().requires_grad_()
