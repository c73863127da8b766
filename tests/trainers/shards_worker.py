"""Steps over shards in several processes (`test_shards.py` starts them), with the same gradients as in one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

import lopt
from lopt.numerics import fused as kernels
from lopt.rules import Rule
from lopt.rules.shards import Shards
from lopt.rules.whitening import KEPT
from lopt.training.ranks import leave
from meta_tasks.networks import TransformerLanguageModel, mlp
from tests.rules.reference_steps import RULE_FILES

STEPS = 4
SAVED = 3
"""Steps before a checkpoint: the next one still needs the roots that were made in the first."""
AXISNET = RULE_FILES / "axisnet.safetensors"

Build = Callable[[], tuple[nn.Module, Tensor]]


class Experts(nn.Module):
    """Weights of three members, each a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(3, 5, 5) / 2) for _ in range(2))
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("eoi,ebi->ebo", self.first, x.expand(3, *x.shape)).relu()
        return self.head(torch.einsum("eoi,ebi->ebo", self.second, hidden).mean(0))


NETWORKS: dict[str, Build] = {
    # No size but one that divides by 2 or 4; the last ranks have no row of some tensors.
    "mlp": lambda: (mlp(7, (13, 5), 3), torch.zeros(1, 7)),
    "transformer": lambda: (
        TransformerLanguageModel(11, 6, 18, 2, 3),
        torch.zeros(1, 6, dtype=torch.int64),
    ),
    "experts": lambda: (Experts(), torch.zeros(1, 5)),
    # Shards long enough for kernels, of different lengths, and shorter ones.
    "wide": lambda: (mlp(65, (130, 90), 7), torch.zeros(1, 65)),
}


def rule_of(name: str) -> Rule:
    """A rule; a learned one with its metanet away from where it was trained to, so that each part has a say."""
    shipped = name.startswith("lopt")
    rule = (
        lopt.load_rule(name if shipped else AXISNET) if shipped or name == "axisnet" else lopt.make_rule(name)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return rule


def prepared(
    network: str, rule: Rule, shard: bool, fused: bool = False
) -> tuple[nn.Module, lopt.LearnedOptimizer]:
    torch.manual_seed(0)
    model, example = NETWORKS[network]()
    graph = lopt.ParameterGraph.trace(model, (example,))
    model.double()  # in which another order of sums is far below 1e-6
    if shard:
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, lopt.LearnedOptimizer(
        model.named_parameters(), rule=rule, graph=graph, weight_decay=0.1, total_steps=20, fused=fused
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, poisoned: int = -1) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            if step == poisoned:
                grad.view(-1)[0] = torch.nan
            p.grad = (
                distribute_tensor(grad, p.device_mesh, p.placements) if hasattr(p, "device_mesh") else grad
            )
        optimizer.step()


def whole(tensor: Any) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def found(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters, then states."""
    states = [value for p in model.parameters() for value in optimizer.state[p].values()]
    return [whole(tensor) for tensor in (*model.parameters(), *states)]


def difference(network: str, name: str, fused: str = "") -> dict[str, Any]:
    """What steps over shards give and what one process does, and the share of the state that a rank holds.

    The one process runs no kernels; how many a rank has made is told.
    """
    rule = rule_of(name)
    reference = prepared(network, rule, shard=False)
    train(*reference, range(STEPS))
    kernels._KERNELS.clear()
    model, optimizer = prepared(network, rule, shard=True, fused=bool(fused))
    train(model, optimizer, range(STEPS))
    (call,) = next(iter(optimizer._plans.values()))
    held = sum(v.to_local().numel() for s in optimizer.state.values() for v in s.values() if v.dim())
    total = sum(v.numel() for s in reference[1].state.values() for v in s.values() if v.dim())
    pairs = zip(found(model, optimizer), found(*reference), strict=True)
    return {
        "sharded": isinstance(call.shards, Shards),
        "error": max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs),
        "share": held / total,
        "kernels": len(kernels._KERNELS),
    }


def skipped() -> dict[str, Any]:
    model, optimizer = prepared("mlp", rule_of("lopt-small"), shard=True)
    train(model, optimizer, range(STEPS))
    before = found(model, optimizer)
    train(model, optimizer, range(1), poisoned=0)
    unchanged = all(torch.equal(a, b) for a, b in zip(before, found(model, optimizer), strict=True))
    return {"skipped": optimizer.skipped_steps, "unchanged": unchanged}


def kept_whole() -> float:
    """How far a run goes from one process's if a step on gathered tensors has left state of sides whole."""
    rule = rule_of("lopt-base")
    reference = prepared("transformer", rule, shard=False)
    train(*reference, range(2 * STEPS))
    model, optimizer = prepared("transformer", rule, shard=True)
    train(model, optimizer, range(SAVED))
    for state in optimizer.state.values():
        state.update({key: whole(value) for key, value in state.items() if key.endswith(KEPT)})
    train(model, optimizer, range(SAVED, 2 * STEPS))
    pairs = zip(found(model, optimizer), found(*reference), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def save(folder: Path) -> None:
    model, optimizer = prepared("transformer", rule_of("lopt-base"), shard=True)
    train(model, optimizer, range(SAVED))
    saved = get_optimizer_state_dict(model, optimizer)
    checkpoint.save({"model": model.state_dict(), "optimizer": saved}, checkpoint_id=folder / "checkpoint")
    train(model, optimizer, range(SAVED, 2 * STEPS))
    torch.save(found(model, optimizer), folder / f"continued-{dist.get_rank()}.pt")


def load(folder: Path) -> float:
    """How far a run goes from one that another number of ranks saved, and went on with."""
    model, optimizer = prepared("transformer", rule_of("lopt-base"), shard=True)
    train(model, optimizer, range(100, 101))
    loaded = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    checkpoint.load(loaded, checkpoint_id=folder / "checkpoint")
    model.load_state_dict(loaded["model"])
    set_optimizer_state_dict(model, optimizer, loaded["optimizer"])
    train(model, optimizer, range(SAVED, 2 * STEPS))
    continued = torch.load(folder / "continued-0.pt", weights_only=True)
    pairs = zip(found(model, optimizer), continued, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def results(folder: Path, *what: str) -> dict[str, Any]:
    """What is found in each of the cases "network:rule" and "network:rule:fused", and of the others by their names."""
    others = {
        "skipped": skipped,
        "kept_whole": kept_whole,
        "save": lambda: save(folder),
        "load": lambda: load(folder),
    }
    return {name: others[name]() if name in others else difference(*name.split(":")) for name in what}


def main(folder: Path, *what: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save({"shards": results(folder, *what)}, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    leave(0)
