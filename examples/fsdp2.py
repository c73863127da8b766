"""FSDP2 with a sharded checkpoint: torchrun --nproc-per-node 2 -m examples.fsdp2 [RULE]"""

from __future__ import annotations

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

import lopt
from examples.digits import dataset, network
from lopt.rules import Rule


def main(rule: str | Rule = "lopt-base", epochs: int = 1) -> list[float]:
    """The loss of every batch of this rank."""
    dist.init_process_group("gloo")
    model, data = network(), dataset()
    # Sharded parameters cannot be traced, so this comes first.
    graph = lopt.ParameterGraph.trace(model, (data[0][0][None],))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = lopt.LearnedOptimizer(model.named_parameters(), rule=rule, graph=graph)
    losses = []
    for epoch in range(epochs):
        sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data, seed=epoch)
        for images, labels in DataLoader(data, 32, sampler=sampler):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    save_and_load(model, optimizer, folder[0])
    dist.destroy_process_group()
    return losses


def save_and_load(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    """Every rank writes and reads its own shards."""
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    weights, state = get_state_dict(model, optimizer)
    loaded = {"model": weights, "optimizer": state}
    checkpoint.load(loaded, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])


if __name__ == "__main__":
    print(f"last loss {main(*sys.argv[1:])[-1]:.4f}")
