"""One inner step of T networks of one task, to be differentiated through.

Shapes: T networks (tasks) along the leading axis of every tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.inner.task import Batch, Task
from lopt.rules.base import BoundRule, State, Tensors


class Networks(NamedTuple):
    """T networks in training: parameters (T, *shape) and the rule's state."""

    params: dict[str, Tensor]
    state: State


LIMIT = 3.0
"""A network whose loss ends above that many times its first has diverged, even if every loss was finite."""

FLOOR = 1e-3
"""Added to relative losses under a logarithm: what is gained below this counts little."""

Step = Callable[[Networks, Batch], tuple[Tensor, Networks]]


def second_order_step(rule: BoundRule, task: Task, own: Tensors | None = None) -> Step:
    """(networks, batch) -> losses (T,) before the step, networks after it."""

    def one_network(
        own: Tensors, params: Tensors, state: State, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        grads, loss = torch.func.grad_and_value(task.loss)(params, batch)
        return loss, *with_own(rule, own).update(grads, state, params)

    def step(networks: Networks, batch: Batch) -> tuple[Tensor, Networks]:
        loss, params, state = torch.vmap(one_network)(own or {}, *networks, batch)
        return loss, Networks(params, state)

    return step


def first_order_step(rule: BoundRule, task: Task, own: Tensors | None = None) -> Step:
    """As `second_order_step`, with the inner gradients g taken as constants.

    The loss L(p) is then stood in for by L + <g, p - p'>, p' being p as a constant: the same value and the same
    derivative, without keeping the forward pass.
    """
    value = torch.vmap(torch.func.grad_and_value(task.loss))

    def linearised(grads: Tensors, params: Tensors) -> Tensor:
        terms = [((params[name] - params[name].detach()) * g).flatten(1).sum(1) for name, g in grads.items()]
        return torch.stack(terms).sum(0)

    def one_network(
        own: Tensors, grads: Tensors, state: State, params: Tensors
    ) -> tuple[dict[str, Tensor], State]:
        return with_own(rule, own).update(grads, state, params)

    def step(networks: Networks, batch: Batch) -> tuple[Tensor, Networks]:
        params, state = networks
        with torch.no_grad():
            grads, loss = value({name: p.detach() for name, p in params.items()}, batch)
        new_params, new_state = torch.vmap(one_network)(own or {}, grads, state, params)
        return loss + linearised(grads, params), Networks(new_params, new_state)

    return step


def each_its_own(rule: BoundRule, networks: Networks) -> dict[str, Tensor]:
    """The rule's meta-parameters (*shape) as (T, *shape), without a copy.

    Under vmap a product of a shared matrix with T others moves their axes about; that of T with T does not, which
    makes the backward pass up to twice as fast.
    """
    meta = dict(rule.rule.named_parameters()) if rule.meta_parameters is None else rule.meta_parameters
    count = len(next(iter(networks.params.values())))
    return {name: p.expand(count, *p.shape) for name, p in meta.items()}


def with_own(rule: BoundRule, own: Tensors) -> BoundRule:
    """The rule with these meta-parameters; as it is if there are none."""
    return replace(rule, meta_parameters=own) if own else rule


def detached(networks: Networks) -> Networks:
    """The same networks without their history: the end of a truncation."""
    params = {name: p.detach() for name, p in networks.params.items()}
    state = {name: {key: value.detach() for key, value in s.items()} for name, s in networks.state.items()}
    return Networks(params, state)
