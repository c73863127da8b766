"""Runs in two processes (`test_parallel.py` starts them) and writes what it finds to a file for each rank."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import lopt
from lopt.training.ranks import leave
from tests.optim.kit import learned, mlp, mlp_graph
from tests.trainers import shards_worker

STEPS = 6


def batch(step: int) -> tuple[Tensor, Tensor]:
    """All ranks' examples; each rank takes its half."""
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    return x, x[:, :3].sin()


def half(step: int) -> tuple[Tensor, Tensor]:
    x, y = batch(step)
    rank = dist.get_rank()
    return x.chunk(2)[rank], y.chunk(2)[rank]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, data=half, poison=()) -> None:
    for step in steps:
        optimizer.zero_grad()
        x, y = data(step)
        nn.functional.mse_loss(model(x), y).backward()
        if step in poison and dist.get_rank() == 0:
            grad = model.get_parameter("0.weight").grad
            (grad.to_local() if isinstance(grad, DTensor) else grad)[0, 0] = torch.nan
        optimizer.step()


def whole(model: nn.Module) -> list[Tensor]:
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def alone(poison=()) -> list[Tensor]:
    """The same training in one process, on whole batches."""
    model = mlp()
    steps = [step for step in range(STEPS) if step not in poison]
    train(model, learned(model.parameters(), graph=mlp_graph(), weight_decay=0.1), steps, batch)
    return whole(model)


def data_parallel() -> dict[str, object]:
    model = DistributedDataParallel(mlp())
    optimizer = learned(model.named_parameters(), graph=mlp_graph(), weight_decay=0.1)
    train(model, optimizer, range(STEPS))
    return {"parameters": whole(model), "alone": alone()}


class Forked(nn.Module):
    """Its processes may be sent another way each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.ways = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.ways[dist.get_rank()](self.stem(x).tanh())


def forked() -> list[Tensor]:
    model = Forked()
    graph = lopt.trace_on_first_forward(model)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    train(wrapped, learned(wrapped.named_parameters(), graph=graph), range(STEPS))
    return whole(model)


def traced_too_late() -> str:
    """What is said of a model that is sharded before it is traced."""
    model = mlp()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        lopt.trace_on_first_forward(model)
        model(half(0)[0])
    return str(told[-1].message)


def zero_redundancy() -> dict[str, object]:
    """Each process holds the state of some of the parameters, and sends the others what has become of them."""
    results = {}
    for how in ("plain", "zero"):
        inner = mlp()
        model = DistributedDataParallel(inner)
        options = {"rule": "lopt-small", "graph": lopt.trace_on_first_forward(inner), "total_steps": 50}
        optimizer = (
            lopt.LearnedOptimizer(model.parameters(), **options)
            if how == "plain"
            else ZeroRedundancyOptimizer(model.parameters(), lopt.LearnedOptimizer, **options)
        )
        train(model, optimizer, range(STEPS))
        results[how] = whole(model)
    return results


def sharded(folder: Path) -> dict[str, object]:
    mesh = init_device_mesh("cpu", (2,))

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = mlp()
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
        return model, learned(model.named_parameters(), graph=mlp_graph(), weight_decay=0.1)

    model, optimizer = make()
    train(model, optimizer, range(STEPS))
    result = {"parameters": whole(model), "alone": alone()}

    poisoned, skipping = make()
    train(poisoned, skipping, range(STEPS), poison=(2,))
    result["poisoned"], result["alone_poisoned"] = whole(poisoned), alone((2,))
    result["skipped"] = skipping.skipped_steps

    state = optimizer.state[model[0].weight]
    result["local_momenta"] = tuple(state["momenta"].to_local().shape)
    saved = get_optimizer_state_dict(model, optimizer)
    checkpoint.save({"optimizer": saved}, checkpoint_id=folder / "checkpoint")
    # A stranger's state, so that loading has something to change.
    other, resumed = make()
    train(other, resumed, range(100, 103))
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    loaded = {"optimizer": get_optimizer_state_dict(other, resumed)}
    checkpoint.load(loaded, checkpoint_id=folder / "checkpoint")
    set_optimizer_state_dict(other, resumed, loaded["optimizer"])
    train(model, optimizer, range(10, 13))
    train(other, resumed, range(10, 13))
    result["continued"], result["resumed"] = whole(model), whole(other)

    copied = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(copied)
    train(model, optimizer, range(13, 14))
    train(other, resumed, range(13, 14))
    result["reloaded"], result["not_reloaded"] = whole(model), whole(other)
    return result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cases = ("mlp:lopt-small", "mlp:adamw", "transformer:axisnet", "transformer:muon", "experts:lopt-small")
    cases = (*cases, "transformer:lopt-base", "experts:lopt-base")
    shards = shards_worker.results(folder, *cases, "skipped")
    result = {
        "ddp": data_parallel(),
        "forked": forked(),
        "too_late": traced_too_late(),
        "zero": zero_redundancy(),
        "fsdp2": sharded(folder),
        "shards": shards,
    }
    torch.save(result, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
