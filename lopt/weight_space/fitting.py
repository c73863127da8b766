"""Training a reader on networks, and asking it.

    reader = make_reader("ng_gnn", train, outputs=10)
    fitted = fit(reader, train, train.columns["label"], validation=networks.split("validation"))
    predict(reader, test.params).argmax(1)

Shapes: N networks, B of them in a batch, Y predicted values.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from lopt.config import Count, NonNegative, Positive, Settings, Share
from lopt.errors import ConfigError, DataError
from lopt.numerics.defaults import torchs_defaults
from lopt.progress import progress
from lopt.weight_space.network_set import NetworkSet, Tensors, rows_of

Change = Callable[[Tensors, torch.Generator], Tensors]
"""Of B networks into others that mean the same."""
Loss = Callable[[nn.Module, Any, Tensor], Tensor]
"""Of a reader on B networks with their targets: their mean loss."""


class Networks(Protocol):
    """What is learned from: a `NetworkSet` or a `NetworkPark`."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Any:
        """What a reader is given of those that an index chooses."""
        ...

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """(N): all in a random order."""
        ...

    @property
    def finite(self) -> Tensor:
        """(N): whether all weights are."""
        ...


class FitOptions(Settings):
    """How a reader is trained: AdamW with one cycle of its rate, gradients cut to norm 1."""

    passes: Count = 50_000
    """Networks that it sees, counted again whenever they come round."""
    batch: Annotated[int, Field(ge=1, le=65_536)] = 64
    lr: Positive = 2e-3
    weight_decay: NonNegative = 5e-4
    warm_up: Annotated[float, Field(gt=0, lt=1)] = 0.1
    smoothing: Share = 0.0
    """Of labels."""
    checks: Count = 8
    """Looks at the validation networks, the best of which is kept."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


@dataclass(frozen=True)
class Fitted:
    """What became of a training."""

    losses: list[float]
    """Means of the training loss between checks."""
    validation: list[float]
    """Loss on the validation networks at each check."""
    start: float | None
    """That before any training, if there are such networks."""
    best: int
    """The check whose weights the reader has; -1: it was never better than it had been before."""
    seconds: float
    """Processor time."""
    ms: float
    """Milliseconds of processor time for each network trained on, all included."""


def loss_of(targets: Tensor, smoothing: float = 0.0) -> Loss:
    """Cross-entropy for classes (whole numbers), the squared error for numbers."""

    def distance(reader: nn.Module, params: Tensors, wanted: Tensor) -> Tensor:
        said, wanted = reader(params), wanted.reshape(len(wanted), -1)
        if said.shape != wanted.shape:  # torch would spread one over the other
            raise ConfigError(
                f"fit: expected targets {tuple(said.shape)}, as what the reader says of a batch, found"
                f" {tuple(wanted.shape)}; give classes as whole numbers, or make the reader with as many outputs"
            )
        return F.mse_loss(said, wanted)

    def error(reader: nn.Module, params: Tensors, wanted: Tensor) -> Tensor:
        logits = reader(params)
        if not (wanted >= 0).all() or not (wanted < logits.shape[1]).all():
            raise ConfigError(
                f"fit: expected classes from 0 to {logits.shape[1] - 1}, as many as the reader has outputs, found"
                f" {int(wanted.min())} to {int(wanted.max())}; make the reader with more outputs, or give numbers that"
                " are no classes as floats"
            )
        return F.cross_entropy(logits, wanted.long(), label_smoothing=smoothing)

    return distance if targets.is_floating_point() else error


@torchs_defaults()
def fit(
    reader: nn.Module,
    networks: Networks,
    targets: Tensor,
    options: FitOptions | None = None,
    validation: tuple[Networks, Tensor] | None = None,
    change: Change | None = None,
    loss: Loss | None = None,
    desc: str = "reader",
) -> Fitted:
    """Train a reader to say of each network its target: a class (N) or numbers (N) or (N, Y).

    change: drawn anew for every batch, such as `Views` of the images of SIRENs. loss: another one than `loss_of` has.
    With validation networks and targets the reader ends with the weights that were best for them, be they those that
    it came with: one that was trained before is never made worse.
    Raises `ConfigError` if networks and targets are not as many or classes more than outputs, `DataError` if they are
    not finite.
    """
    options = options or FitOptions()
    for some, wanted in [(networks, targets), *([validation] if validation else [])]:
        check_examples(some, wanted)
    measure = loss or loss_of(targets, options.smoothing)
    generator = torch.Generator().manual_seed(options.seed)
    steps = max(options.passes // options.batch, 1)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    # One cycle needs two steps or more; its last is one beyond those taken, as torch counts them. Torch divides by the
    # steps of the warm-up less one, which must not be zero.
    warm_up = max(options.warm_up, 2 / (steps + 2))
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=steps + 2, pct_start=warm_up, cycle_momentum=False
    )
    between = -(-steps // options.checks)
    losses: list[float] = [0.0]
    scores: list[float] = []
    order = torch.empty(0, dtype=torch.long)
    shown, begun = progress(steps, desc), time.process_time()
    reader.train()
    start, best, kept, lowest = None, -1, None, math.inf
    if validation is not None:
        start, kept = mean_loss(reader, *validation, loss), copy.deepcopy(reader.state_dict())
        # One that is NaN is no rival to what comes.
        lowest = start if math.isfinite(start) else math.inf
    try:
        for step in range(steps):
            if len(order) < options.batch:
                order = torch.cat([order, networks.shuffled(generator)])
            index, order = order[: options.batch], order[options.batch :]
            params = networks.batch(index)
            params = params if change is None else change(params, generator)
            found = measure(reader, params, targets[index])
            optimizer.zero_grad()
            found.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            cycle.step()
            losses[-1] += found.item() / min(between, steps - between * (len(losses) - 1))
            shown.update()
            if (step + 1) % between == 0 or step + 1 == steps:
                if validation is not None:
                    scores.append(mean_loss(reader, *validation, loss))
                    if scores[-1] <= lowest:
                        best, lowest, kept = len(scores) - 1, scores[-1], copy.deepcopy(reader.state_dict())
                    shown.set_postfix(loss=losses[-1], validation=scores[-1])
                losses += [0.0] if step + 1 < steps else []
    finally:
        shown.close()
    if kept is not None:
        reader.load_state_dict(kept)
    reader.eval()
    seconds = time.process_time() - begun
    best = best if scores else len(losses) - 1
    return Fitted(losses, scores, start, best, seconds, 1000 * seconds / (steps * options.batch))


def check_examples(networks: Networks, targets: Tensor) -> None:
    """Raise `ConfigError` if not every network has a target, `DataError` if weights or targets are not finite.

    One that is not would make all that is learned NaN.
    """
    if not isinstance(targets, Tensor) or not targets.dim():
        raise ConfigError(
            f"fit: expected a tensor of targets, one for each network, found {type(targets).__name__}"
            f"{' of one number' if isinstance(targets, Tensor) else '; make it one with torch.tensor'}"
        )
    if len(networks) != len(targets) or not len(targets):
        raise ConfigError(
            f"fit: expected a target for each network, found {len(targets)} for {len(networks)}"
        )
    finite = networks.finite & rows_of(targets).isfinite().all(1)
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"networks: expected finite weights and targets, found {len(bad)} of {len(networks)} with others, first"
            f" number {bad[0]}; leave them out with `select`"
        )


@torch.no_grad()
@torchs_defaults()
def predict(reader: nn.Module, networks: Tensors | Networks, batch: int = 256) -> Tensor:
    """(N, Y): logits of classes, or numbers, for N networks or their parameters (N, *shape), in evaluation mode.

    Raises `DataError` for none.
    """
    if isinstance(networks, dict):
        networks = NetworkSet(networks, {}, torch.zeros(len(next(iter(networks.values())))))
    if not len(networks):
        raise DataError("networks: expected one or more, found none")
    training = reader.training
    reader.eval()
    parts = [reader(networks.batch(rows)) for rows in torch.arange(len(networks)).split(batch)]
    reader.train(training)
    return torch.cat(parts)


@torch.no_grad()
@torchs_defaults()
def mean_loss(
    reader: nn.Module, networks: Networks, targets: Tensor, loss: Loss | None = None, batch: int = 256
) -> float:
    """Of all networks, in evaluation mode."""
    measure, training = loss or loss_of(targets), reader.training
    reader.eval()
    total = 0.0
    for rows in torch.arange(len(networks)).split(batch):
        wanted = targets[rows]
        total += measure(reader, networks.batch(rows), wanted).item() * len(wanted)
    reader.train(training)
    return total / len(networks)
