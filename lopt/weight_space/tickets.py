"""Winning tickets (Frankle and Carbin 2019, arXiv 1803.03635): which weights of a fresh network are worth keeping.

Iterative magnitude pruning (IMP): in each round the network is trained from its initial weights, and of the weights
that are left the largest are kept, over all layers together. Perceptrons on small images; biases are all kept.
Shapes: B networks, P weights of all matrices.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from lopt.config import Count, Settings, Share
from lopt.weight_space.growing import grown, splits_of
from lopt.weight_space.network_set import NetworkSet, Tensors, load
from lopt.weight_space.perceptrons import Examples, PerceptronShape, Schooling, accuracy, initial, train
from meta_tasks.data.images import load_images

COHORT = 8
"""Networks trained at once; also how many are made between saves."""
MASK = "mask:"
"""Before the name of a weight in the columns of a set: which of them IMP keeps."""


class TicketRecipe(Settings):
    """What networks, and how their tickets are found."""

    images: str = "mnist"
    size: Count = 14
    """Height and width of the images."""
    hidden: tuple[int, ...] = (128, 64)
    keep: Share = 0.05
    """Of the weights."""
    rounds: Count = 2
    schooling: Schooling = Schooling(epochs=3, batch=256, lr=3e-3)
    """Of each round."""

    @property
    def shape(self) -> PerceptronShape:
        """Of the networks."""
        return PerceptronShape(sizes=(self.size**2, *self.hidden, 10))

    def examples(self, split: str, root: str | Path | None = None) -> Examples:
        """Of one of the splits of the images."""
        images = load_images(self.images, size=self.size, root=root)
        return Examples(images.images[split], images.labels[split], images.mean.item(), images.std.item())


TICKETS = {
    "tickets": TicketRecipe(),
    "tickets-digits": TicketRecipe(
        images="digits", size=8, hidden=(32, 16), keep=0.15, schooling=Schooling(epochs=30, batch=64, lr=1e-2)
    ),
}
"""Data sets of networks with their tickets."""


def make_tickets(
    name: str, count: int, out: str | os.PathLike[str], root: str | Path | None = None
) -> NetworkSet:
    """`count` fresh perceptrons, with the masks that IMP finds for them as columns; goes on with what is at `out`.

    name: in `TICKETS`. Raises `DataError` where images are missing, `ConfigError` if `out` has other networks.
    """
    recipe = TICKETS[name]
    shape, examples = recipe.shape, recipe.examples("train", root)
    held = recipe.examples("validation", root)

    def made(numbers: range) -> NetworkSet:
        params = initial(shape, numbers)
        masks, dense = imp(recipe, params, examples)
        columns = {MASK + name: mask for name, mask in masks.items()}
        columns |= {"seed": torch.tensor(numbers), "accuracy": accuracy(shape, dense, held).float()}
        return NetworkSet(params, columns, splits_of(numbers))

    header = {"name": name, "recipe": recipe.model_dump(), "architecture": shape.model_dump()}
    return grown(out, header, count, made, COHORT, load, "accuracy")


def imp(recipe: TicketRecipe, params: Tensors, examples: Examples) -> tuple[Tensors, Tensors]:
    """Masks of B networks (B, *shape) by weight, and the parameters at the end of the first round."""
    shape = recipe.shape
    masks = {name: torch.ones_like(params[name], dtype=torch.bool) for name in shape.weights}
    dense: Tensors = {}
    for number in range(1, recipe.rounds + 1):
        trained = train(shape, params, examples, recipe.schooling, masks if dense else None)
        dense = dense or trained
        masks = largest(
            {name: trained[name] for name in masks}, recipe.keep ** (number / recipe.rounds), masks
        )
    return masks, dense


def largest(weights: Tensors, share: float, among: Tensors) -> Tensors:
    """Masks of the largest of the weights that are left, so that this share of all is kept in each network."""
    size = torch.cat(
        [value.abs().masked_fill(~among[name], -1.0).flatten(1) for name, value in weights.items()], 1
    )
    chosen = _top(size, round(share * size.shape[1]))
    return _apart(chosen, weights)


def by_layer(scores: Tensors, counts: dict[str, int]) -> Tensors:
    """Masks (B, *shape) of the so many highest scores of each matrix."""
    return {name: _top(value.flatten(1), counts[name]).view_as(value) for name, value in scores.items()}


def by_input(scores: Tensors, counts: dict[str, int], shares: Tensor) -> Tensors:
    """As `by_layer`, but the first matrix's are shared out among the inputs in proportion to `shares` (n_0)."""
    first = next(iter(scores))
    rank = scores[first].argsort(1, descending=True).argsort(1) + 0.5
    return by_layer({**scores, first: -rank / (shares + 1e-6)}, counts)


def counts_of(networks: NetworkSet) -> dict[str, int]:
    """How many weights IMP keeps of each matrix, in the mean over a set."""
    return {
        name: round(mask.flatten(1).double().sum(1).mean().item())
        for name, mask in masks_of(networks).items()
    }


def masks_of(networks: NetworkSet) -> Tensors:
    """What IMP keeps: (N, *shape) of each matrix."""
    return {n.removeprefix(MASK): v for n, v in networks.columns.items() if n.startswith(MASK)}


def said_of_tickets(networks: NetworkSet) -> str:
    """A line about a set: the accuracy of its networks, and what IMP keeps of each matrix."""
    accuracies, masks = networks.columns["accuracy"], masks_of(networks)
    kept = ", ".join(f"{100 * mask.double().mean():.1f}" for mask in masks.values())
    return (
        f"{len(networks)} networks, {accuracies.median():.1f} % of validation images right before pruning "
        f"(worst {accuracies.min():.1f}); kept of their matrices: {kept} %"
    )


def _top(values: Tensor, count: int) -> Tensor:
    """(B, P) -> whether each is among the `count` highest of its row."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    return chosen.scatter_(1, values.topk(count, 1).indices, True)


def _apart(flat: Tensor, like: Tensors) -> Tensors:
    parts = flat.split([value[0].numel() for value in like.values()], 1)
    return {
        name: part.reshape(value.shape).contiguous()
        for (name, value), part in zip(like.items(), parts, strict=True)
    }
