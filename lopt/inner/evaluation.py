"""Training fresh networks with a rule, and what comes of it. Every rule meets the same networks and batches.

Shapes: T networks, S different seeds, E evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from lopt.inner.step import FLOOR, LIMIT
from lopt.inner.task import Batch, Task
from lopt.numerics.schedules import learning_rates
from lopt.progress import tracked
from lopt.rules.base import BoundRule, State, Tensors
from lopt.rules.classical import TorchOptim

FINAL_STEPS = 20
"""The final loss is the mean over that many last steps."""


@dataclass(frozen=True)
class Curves:
    """What became of T networks."""

    train_loss: Tensor
    """(T, steps): the loss on each training batch, before the step on it; inf once a network's loss or its
    parameters were not finite."""
    diverged: Tensor
    """(T,) bool: not finite, or a final loss far above the first."""
    metrics: dict[str, dict[str, Tensor]]
    """By split and name: (T,) at the end of the run, nan where the network was not finite."""

    @property
    def mean_loss(self) -> Tensor:
        """(T,): mean training loss over the run; inf where diverged."""
        return self.train_loss.mean(1).where(~self.diverged, torch.inf)

    @property
    def final_loss(self) -> Tensor:
        """(T,): mean training loss over the last 20 steps; inf where diverged."""
        return self.train_loss[:, -FINAL_STEPS:].mean(1).where(~self.diverged, torch.inf)

    @property
    def log_relative(self) -> Tensor:
        """(T, steps): log(L_t / L_0 + `FLOOR`), the ratio at most `LIMIT`, which one that is not finite counts as."""
        ratio = self.train_loss / self.train_loss[:, :1].clamp(min=1e-8)
        return torch.log(torch.where(ratio < LIMIT, ratio, LIMIT) + FLOOR)


@torch.no_grad()
def train_networks(
    rule: BoundRule,
    task: Task,
    seeds: Sequence[int],
    steps: int,
    *,
    lr: Tensor | float = 1.0,
    schedule: str | Sequence[str] = "constant",
    total_steps: float | None = None,
    splits: Sequence[str] = ("validation",),
    label: str = "",
) -> Curves:
    """Train one fresh network for each of T seeds, all under one vmap.

    Args:
        rule: any rule on `task.graph`. For a `TorchOptim`, every network has an optimizer of its own.
        seeds: initial weights and order of the data come from the seed alone. A seed may appear several times,
            for example with different learning rates.
        lr: multiplies the rule's step; a number, or (T,).
        schedule: of the learning rate; one of `lopt.numerics.schedules.SCHEDULES`, or one for each network.
        total_steps: what the rule is told of the horizon.
        splits: where metrics are taken at the end.
        label: of the progress on stderr; "": none is shown.

    Shapes: seeds (T,) -> `Curves` of T networks
    """
    # Second moments decay into denormals, which are several times slower to compute with.
    torch.set_flush_denormal(True)
    rates = learning_rates(lr, schedule, len(seeds), steps)
    kind = _Apart if isinstance(rule.rule, TorchOptim) else _Together
    return kind(rule, task, seeds, rates, total_steps).train(splits, label)


class _Together:
    """T networks in training under one vmap; those not finite any more are dropped, so that they harm no other."""

    def __init__(
        self, rule: BoundRule, task: Task, seeds: Sequence[int], rates: Tensor, total_steps: float | None
    ) -> None:
        distinct = list(dict.fromkeys(seeds))
        self.rule, self.task = rule, task
        self.seed_of = torch.tensor([distinct.index(seed) for seed in seeds])
        # Even numbers seed the weights and odd ones the data, so that no seed's data repeats another's weights.
        self.initial = _joined([task.init(1, Generator().manual_seed(2 * seed)) for seed in distinct])
        self.streams = [Generator().manual_seed(2 * seed + 1) for seed in distinct]
        self.rates = rates.to(next(iter(self.initial.values())).device)
        self.alive = torch.arange(len(seeds))
        self.params: dict[str, Tensor] = _pick(self.initial, self.seed_of)
        self.start(total_steps)

    def start(self, total_steps: float | None) -> None:
        """The rule's state before the first step."""
        self.state: State = torch.vmap(lambda params: self.rule.init(params, total_steps))(self.params)

    def train(self, splits: Sequence[str], label: str) -> Curves:
        """All steps, and metrics after the last."""
        losses = torch.full(self.rates.shape, torch.inf)
        for t in tracked(range(losses.shape[1]), label):
            if len(self.alive) > 0:
                here = self.alive
                losses[here, t] = self.step(t)
        # The last step comes after the last loss.
        finite = torch.stack([p.flatten(1).isfinite().all(1) for p in self.params.values()])
        self.drop(finite.all(0))
        return Curves(losses, self.diverged(losses), {split: self.evaluate(split) for split in splits})

    def step(self, t: int) -> Tensor:
        """One step of the living networks: their losses before it, inf for those that it drops."""
        batch = _joined([self.task.sample("train", 1, stream) for stream in self.streams])
        loss = self.update(_pick(batch, self.seed_of[self.alive]), self.rates[self.alive, t])
        self.drop(loss.isfinite())
        return loss.float().cpu().where(loss.isfinite().cpu(), torch.inf)

    def update(self, batch: Batch, rates: Tensor) -> Tensor:
        """Move the living networks; their losses before that."""

        def one_network(
            params: dict[str, Tensor], state: State, batch: Batch, lr: Tensor
        ) -> tuple[Tensor, dict[str, Tensor], State]:
            grads, loss = torch.func.grad_and_value(self.task.loss)(params, batch)
            return loss, *self.rule.update(grads, state, params, lr)

        loss, self.params, self.state = torch.vmap(one_network)(self.params, self.state, batch, rates)
        return loss

    def drop(self, keep: Tensor) -> None:
        """Go on with the living networks where `keep` holds."""
        if not keep.all():
            index = keep.nonzero().flatten()
            self.alive = self.alive[index.cpu()]
            self.keep(index)

    def keep(self, index: Tensor) -> None:
        """Let go of all networks but these."""
        self.params, self.state = _pick(self.params, index), _pick(self.state, index)

    def evaluate(self, split: str) -> dict[str, Tensor]:
        """(T,) of every metric; nan for the networks that were dropped."""
        if len(self.alive) > 0:
            params = self.evaluation_params(self.rates[self.alive, -1])
            figures = torch.vmap(lambda params: self.task.metrics(params, split))(params)
        else:  # the names of the metrics are still wanted
            figures = torch.vmap(lambda params: self.task.metrics(params, split))(self.initial)
        full = {name: torch.full((len(self.seed_of),), torch.nan) for name in figures}
        for name, figure in full.items():
            figure[self.alive] = figures[name][: len(self.alive)].float().cpu()
        return full

    def evaluation_params(self, rates: Tensor) -> Tensors:
        """The parameters that the rule would have the living networks judged by."""
        return torch.vmap(self.rule.rule.evaluation_params)(self.params, self.state, rates)

    def diverged(self, losses: Tensor) -> Tensor:
        """(T,): dropped, or far above the first loss at the end."""
        first, last = losses[:, 0], losses[:, -FINAL_STEPS:].mean(1)
        dropped = torch.ones(len(losses), dtype=torch.bool).index_fill(0, self.alive, False)
        return dropped | (last > first + (LIMIT - 1) * first.abs())


class _Apart(_Together):
    """T networks in training, each with a living `torch.optim.Optimizer` of its own, whatever that remembers."""

    def start(self, total_steps: float | None) -> None:
        assert isinstance(self.rule.rule, TorchOptim)
        self.networks = []
        for k in range(len(self.alive)):
            params = {name: torch.nn.Parameter(p[k].clone()) for name, p in self.params.items()}
            self.networks.append((params, self.rule.rule.build(params, self.rule.graph)))
        self.rates_at_first = [float(group["lr"]) for group in self.networks[0][1].param_groups]

    def update(self, batch: Batch, rates: Tensor) -> Tensor:
        gradients, loss = torch.vmap(torch.func.grad_and_value(self.task.loss))(self.params, batch)
        for k, (params, optimizer) in enumerate(self.networks):
            for name, p in params.items():
                # A copy: optimizers may write to a gradient, and rows of a stack share its memory.
                p.grad = gradients[name][k].clone()
            for group, lr in zip(optimizer.param_groups, self.rates_at_first, strict=True):
                group["lr"] = lr * float(rates[k])
            optimizer.step()
        self.gather()
        return loss

    def gather(self) -> None:
        """`params` as the optimizers left them."""
        each = [params for params, _ in self.networks]
        if each:
            self.params = {name: torch.stack([params[name].data for params in each]) for name in each[0]}

    def keep(self, index: Tensor) -> None:
        self.networks = [self.networks[k] for k in index.tolist()]
        self.params = _pick(self.params, index)

    def evaluation_params(self, rates: Tensor) -> Tensors:
        # Schedule-free optimizers swap the parameters for their average.
        averaging = [o for _, o in self.networks if hasattr(o, "eval") and hasattr(o, "train")]
        for optimizer in averaging:
            optimizer.eval()
        self.gather()
        judged = self.params  # `gather` makes new ones
        for optimizer in averaging:
            optimizer.train()
        self.gather()
        return judged


def _joined(trees: Sequence[Any]) -> Any:
    """Trees of (1, ...) tensors -> one tree of (S, ...) tensors."""
    return tree_map(lambda *tensors: torch.cat(tensors), trees[0], *trees[1:])


def _pick(tree: Any, index: Tensor) -> Any:
    """The rows `index` of every tensor."""
    return tree_map(lambda x: x.index_select(0, index.to(x.device)), tree)
