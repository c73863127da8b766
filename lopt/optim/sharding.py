"""Sharded parameters (`DTensor`: FSDP2, tensor parallelism): rules see whole tensors, memory holds the shards."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`; asked without importing `torch.distributed`."""
    return hasattr(tensor, "full_tensor")


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
