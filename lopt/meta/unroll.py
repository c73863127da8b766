"""Inner training as a differentiable function: a rule trains T networks of one task side by side.

Shapes: T networks (tasks) along the leading axis of every tensor, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lopt.meta.task import Batch, Task
from lopt.rules.base import BoundRule, State, Tensors


class Networks(NamedTuple):
    """T networks in training: parameters (T, *shape) and the rule's state."""

    params: dict[str, Tensor]
    state: State


class Unrolled(NamedTuple):
    """What an unroll leaves behind."""

    networks: Networks
    losses: Tensor
    """(K + 1, T): the loss before each of the K steps, and after the last."""


def unroll(
    rule: BoundRule, task: Task, networks: Networks, batches: Sequence[Batch], *, second_order: bool = True,
    rematerialise: bool = False,
) -> Unrolled:  # fmt: skip
    """Train for K steps on the first K of K + 1 batches; every loss can be differentiated by the meta-parameters.

    second_order: differentiate through the inner gradients too. Without, they are taken as constants, which is
        cheaper and biased: 14 % too small after 20 steps, worse after more, on a learnable rate.
    rematerialise: keep only the networks between steps and compute each step again in the backward pass.
    """
    step = second_order_step(rule, task) if second_order else first_order_step(rule, task)
    losses = []
    for batch in batches[:-1]:
        if rematerialise:
            loss, networks = checkpoint(step, networks, batch, use_reentrant=False, preserve_rng_state=False)
        else:
            loss, networks = step(networks, batch)
        losses.append(loss)
    losses.append(torch.vmap(task.loss)(networks.params, batches[-1]))
    return Unrolled(networks, torch.stack(losses))


Step = Callable[[Networks, Batch], tuple[Tensor, Networks]]


def second_order_step(rule: BoundRule, task: Task) -> Step:
    """(networks, batch) -> losses (T,) before the step, networks after it."""

    def one_network(params: Tensors, state: State, batch: Batch) -> tuple[Tensor, Tensors, State]:
        grads, loss = torch.func.grad_and_value(task.loss)(params, batch)
        return loss, *rule.update(grads, state, params)

    def step(networks: Networks, batch: Batch) -> tuple[Tensor, Networks]:
        loss, params, state = torch.vmap(one_network)(*networks, batch)
        return loss, Networks(params, state)

    return step


def first_order_step(rule: BoundRule, task: Task) -> Step:
    """As `second_order_step`, with the inner gradients g taken as constants.

    The loss L(p) is then stood in for by L + <g, p - p'>, p' being p as a constant: the same value and the same
    derivative, without keeping the forward pass.
    """
    value = torch.vmap(torch.func.grad_and_value(task.loss))

    def linearised(grads: Tensors, params: Tensors) -> Tensor:
        return sum(((params[name] - params[name].detach()) * g).flatten(1).sum(1) for name, g in grads.items())

    def step(networks: Networks, batch: Batch) -> tuple[Tensor, Networks]:
        params, state = networks
        with torch.no_grad():
            grads, loss = value({name: p.detach() for name, p in params.items()}, batch)
        new_params, new_state = torch.vmap(rule.update)(grads, state, params)
        return loss + linearised(grads, params), Networks(new_params, new_state)

    return step


def detached(networks: Networks) -> Networks:
    """The same networks without their history: the end of a truncation."""
    params = {name: p.detach() for name, p in networks.params.items()}
    state = {name: {key: value.detach() for key, value in s.items()} for name, s in networks.state.items()}
    return Networks(params, state)
