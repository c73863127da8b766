"""Sharded parameters (`DTensor`: FSDP2, tensor parallelism): memory holds the shards.

Where all are cut along their first axis over the same ranks, as FSDP2 does by itself, a rule that can steps the rows of
each rank; other rules, and other layouts, see whole tensors, gathered for the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.rules.shards import Shards

PLAIN = (Tensor, torch.nn.Parameter)


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`; asked without importing `torch.distributed`."""
    # Asked a hundred times in a step, of tensors that are plain as a rule: an attribute that is not there takes longer.
    return type(tensor) not in PLAIN and hasattr(tensor, "full_tensor")


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, on every rank; plain tensors as they are."""
    sharded: Any = tensor
    whole: Tensor = sharded.full_tensor() if is_sharded(tensor) else tensor
    return whole


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing its memory; plain tensors as they are."""
    sharded: Any = tensor
    part: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    return part


def shards_of(graph: ParameterGraph, tensors: Sequence[Any]) -> Shards | None:
    """How parameters and gradients of a graph are dealt out, if by rows over the same ranks; else None."""
    if not all(map(is_sharded, tensors)):
        return None
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements = tensors[0].device_mesh, tensors[0].placements
    cut = [i for i, placement in enumerate(placements) if type(placement) is not Replicate]
    if len(cut) != 1 or type(placements[cut[0]]) is not Shard or placements[cut[0]].dim != 0:
        return None
    if any(tensor.device_mesh != mesh or tensor.placements != placements for tensor in tensors):
        return None
    return Shards.of(graph, mesh.get_local_rank(cut[0]), mesh.size(cut[0]), mesh.get_group(cut[0]))


def laid_out(rows: Tensor, param: Any, shape: torch.Size | None = None) -> Tensor:
    """This rank's part as a tensor cut as `param` is, but for leading axes.

    What has other axes is cut along its first one: `rows` are a part of the `shape`, or, if none is told, all. Numbers
    stay plain, and whole on every rank.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    if not rows.dim():
        return rows
    lead = rows.dim() - param.dim()
    if lead < 0 or rows.shape[lead:] != local(param).shape:
        mesh, placements = param.device_mesh, param.placements
        if shape is None:
            whole = DTensor.from_local(rows, mesh, [Replicate()] * mesh.ndim, run_check=False)
            return whole.redistribute(placements=placements)
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(rows, mesh, placements, run_check=False, shape=shape, stride=stride)
    placements = [Shard(p.dim + lead) if isinstance(p, Shard) else p for p in param.placements]
    shape = torch.Size([*rows.shape[:lead], *param.shape])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        rows, param.device_mesh, placements, run_check=False, shape=shape, stride=stride
    )


def sharded_like(tensor: Tensor, param: Tensor) -> Tensor:
    """A whole tensor, equal on every rank, laid out as `param`: each rank keeps the same part of it.

    Leading axes that the parameter lacks stay whole; tensors of another shape, such as a step count, stay as they
    are on every rank. No communication.
    """
    lead = tensor.dim() - param.dim()
    if not is_sharded(param) or lead < 0 or tensor.shape[lead:] != param.shape:
        return tensor
    from torch.distributed.tensor import DTensor, Replicate, Shard

    sharded: Any = param
    mesh, placements = sharded.device_mesh, sharded.placements
    if lead:
        if any(type(p) not in (Shard, Replicate) for p in placements):
            return tensor
        placements = [Shard(p.dim + lead) if isinstance(p, Shard) else p for p in placements]
    whole = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=placements)
