"""Inner training as a differentiable function: a rule trains T networks of one task side by side.

Shapes: T networks (tasks) along the leading axis of every tensor, K inner steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.inner.compiled import compiled_step
from lopt.inner.rematerialise import rematerialised
from lopt.inner.step import Networks, each_its_own, first_order_step, second_order_step
from lopt.inner.task import Batch, Task
from lopt.rules.base import BoundRule, Tensors


class Unrolled(NamedTuple):
    """What an unroll leaves behind."""

    networks: Networks
    losses: Tensor
    """(K + 1, T): the training loss before each of the K steps, and after the last."""
    measured: Tensor
    """(K, T): the loss after each step, on the probe batches if there are any."""
    previous: dict[str, Tensor]
    """The parameters before the last step, without history."""


def unroll(
    rule: BoundRule, task: Task, networks: Networks, batches: Sequence[Batch], *, own: Tensors | None = None,
    probes: Sequence[Batch] | None = None, second_order: bool = True, rematerialise: bool = False,
    compiled: bool = False,
) -> Unrolled:  # fmt: skip
    """Train for K steps on the first K of K + 1 batches; every loss can be differentiated by the meta-parameters.

    own: meta-parameters (T, *shape), for each network its own, in place of the rule's.
    probes: K batches to measure the networks on after each step, in place of the next training batch.
    second_order: differentiate through the inner gradients too. Without, they are taken as constants, which is
        cheaper and biased: 14 % too small after 20 steps, worse after more, on a learnable rate.
    rematerialise: keep only the networks between steps and compute each step again in the backward pass.
    compiled: run steps as one compiled function, see `lopt.inner.compiled`; not together with `rematerialise`.
    """
    own = own or each_its_own(rule, networks)
    make = second_order_step if second_order else first_order_step
    step = compiled_step(make, rule, task, own) if compiled else make(rule, task, own)
    if rematerialise:
        # The derivative by the meta-parameters is wanted, so they have to be arguments.
        step = partial(rematerialised(lambda own, *at: make(rule, task, own)(*at)), own)
    losses, measured = [], []
    previous = networks.params  # where there is no step
    for index, batch in enumerate(batches[:-1]):
        previous = networks.params
        loss, networks = step(networks, batch)
        losses.append(loss)
        if probes is not None:
            measured.append(torch.vmap(task.loss)(networks.params, probes[index]))
    losses.append(torch.vmap(task.loss)(networks.params, batches[-1]))
    past = {name: p.detach() for name, p in previous.items()}
    return Unrolled(networks, torch.stack(losses), torch.stack(measured or losses[1:]), past)
