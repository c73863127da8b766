"""One training run and what is measured in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import lopt
from benchmarks.at_scale.workloads import WORKLOADS
from lopt.graph.first_forward import FirstForwardGraph
from lopt.training.gauges import peak_memory


class Run:
    """Builds what a loop needs, records its losses (`losses`) and times its optimizer."""

    def __init__(self, workload: str, steps: int, data: Path | None) -> None:
        self.workload, self.steps, self.data = WORKLOADS[workload], steps, data
        self.losses: list[float] = []

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return self.workload.network()

    def examples(self, processes: int = 1) -> TensorDataset:
        """As many as the processes will use."""
        return self.workload.examples(self.steps * self.workload.batch * processes, self.data)

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Equal batches in equal order for every trainer; each process of several has its own."""
        if not dist.is_initialized():
            return DataLoader(self.examples(), self.workload.batch)
        examples = self.examples(dist.get_world_size())
        sampler: DistributedSampler[Any] = DistributedSampler(examples, shuffle=False)
        return DataLoader(examples, self.workload.batch, sampler=sampler)

    def optimizer(
        self, model: nn.Module, graph: lopt.ParameterGraph | FirstForwardGraph
    ) -> lopt.LearnedOptimizer:
        """The optimizer under test, over the model as the trainer has wrapped it."""
        self.learned = lopt.LearnedOptimizer(model.named_parameters(), graph=graph, total_steps=self.steps)
        self.stopwatch = Stopwatch(self.learned)
        return self.learned

    def report(self) -> dict[str, Any]:
        """Figures of this process; with several, `finite` speaks for all."""
        params = [p.detach() for group in self.learned.param_groups for p in group["params"]]
        state = [value for values in self.learned.state.values() for value in values.values()]
        finite = {
            "losses": all_finite(torch.tensor(self.losses)),
            "parameters": all_finite(*params),
            "state": len(state) > 0 and all_finite(*state),
        }
        assert len(self.losses) == self.steps, f"{len(self.losses)} losses of {self.steps} steps"
        tail = max(1, self.steps // 10)
        return {
            "parameters": sum(p.numel() for p in params),
            "steps": self.stopwatch.steps,
            "first_loss": round(self.losses[0], 4),
            "last_loss": round(mean(self.losses[-tail:]), 4),
            "losses": [round(loss, 4) for loss in self.losses],
            "finite": finite,
            "skipped_steps": self.learned.skipped_steps,
            **self.stopwatch.report(),
            "peak_memory_mib": round(peak_memory()),
        }


class Stopwatch:
    """Times each step through the optimizer's own hooks; what a closure takes is not the optimizer's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.began, self.in_closure = 0.0, 0.0
        self.inside: list[float] = []
        self.ends: list[float] = []
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @property
    def steps(self) -> int:
        return len(self.ends)

    def report(self) -> dict[str, float]:
        """Median seconds; the first step, which traces the network, is left out."""
        between = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        rest = [whole - inside for whole, inside in zip(between, self.inside[1:], strict=True)]
        return {
            "optimizer_seconds_per_step": round(median(self.inside[1:]), 4),
            "other_seconds_per_step": round(median(rest), 4),
        }

    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # `args` begins with the optimizer itself.
        self.in_closure = 0.0
        closures = {**dict(zip(("self", "closure"), args, strict=False)), **kwargs}
        if closures.get("closure") is not None:
            closures["closure"] = self._timed(closures["closure"])
        closures.pop("self", None)
        self.began = _now()
        return args[:1], closures

    def _timed(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def timed() -> Any:
            began = _now()
            try:
                return closure()
            finally:
                self.in_closure += _now() - began

        return timed

    def _after(self, *_: Any) -> None:
        self.ends.append(_now())
        self.inside.append(self.ends[-1] - self.began - self.in_closure)


def all_finite(*tensors: Tensor) -> bool:
    """Whether all numbers are finite, on every process; shards are each asked where they lie."""
    here = all(bool(_local(tensor).isfinite().all()) for tensor in tensors)
    if not dist.is_initialized():
        return here
    present: list[bool] = [here] * dist.get_world_size()
    dist.all_gather_object(present, here)
    return all(present)


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies of this process's parts."""
    return [_local(tensor).detach().clone() for tensor in tensors]


def _local(tensor: Any) -> Tensor:
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
