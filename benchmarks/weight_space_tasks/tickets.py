"""Winning tickets: masks for fresh networks, of readers that have seen others with the masks that pruning found.

accuracy is that of masked networks after training from their initial weights, in the mean over test networks, and
overlap the share of what a mask keeps that pruning keeps too. dense: no mask; imp: what pruning finds for these very
networks; random and magnitude: as many weights of each matrix as it keeps in the training set, chosen by chance or as
the largest initial ones (random_global: the same share of all matrices). @inputs: the first matrix's are shared out
among the pixels as they are there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.runner.log import Record
from lopt.weight_space.fitting import FitOptions, Fitted, fit
from lopt.weight_space.masks import MaskReader, flat_masks, make_masker, mask_loss
from lopt.weight_space.network_set import NetworkSet, Tensors
from lopt.weight_space.perceptrons import Schooling, accuracy, train
from lopt.weight_space.tickets import TICKETS, by_input, by_layer, counts_of, make_tickets, masks_of

LEARNED = {"paths": 1.0, "nfn_np": 0.2, "pointwise": 0.2}
"""Share of the passes: one takes a metanet with channels for every weight fifteen times as long."""
METHODS = (
    "dense", "imp", "random_global", "random", "magnitude", "paths", "random@inputs", "magnitude@inputs",
    "paths@inputs", "nfn_np", "nfn_np@inputs", "pointwise", "pointwise@inputs",
)  # fmt: skip
BUDGET = {"recipe": "tickets", "networks": 256, "passes": 6000, "rate": 2e-3}
QUICK = {"recipe": "tickets-digits", "networks": 48, "passes": 480, "rate": 2e-3}
TESTED = 8
"""Networks that are trained with their masks, or as many as there are."""
LESSONS = {
    "tickets": Schooling(epochs=8, batch=128, lr=8e-3),
    "tickets-digits": Schooling(epochs=20, batch=64, lr=2e-2),
}


def run(method: str, budget: Record, seed: int, folder: Path, data: str | None) -> Record:
    """Choose masks for the test networks by one method, and train these."""
    path = folder / f"{budget['recipe']}.safetensors"
    networks = _networks(budget["recipe"], budget["networks"], path, data)
    known, test = networks.split("train"), networks.split("test")
    test = test.select(torch.arange(min(TESTED, len(test))))
    fitted, found = None, {}
    name, _, shared = method.partition("@")
    if name in LEARNED:
        seen = round(LEARNED[name] * budget["passes"])
        options = FitOptions(passes=seen, batch=8, lr=budget["rate"], weight_decay=1e-2, seed=seed)
        reader, fitted = _fitted(name, budget["recipe"], budget["networks"], path, options, data)
        found = {"losses": fitted.losses, "seen": seen}
        found["meta_parameters"] = sum(parameter.numel() for parameter in reader.parameters())
        with torch.no_grad():
            scores = reader(test.params)
    else:
        scores = _unlearned(name, test, seed)
    masks = _chosen(name, scores, known, test, bool(shared))
    recipe = TICKETS[budget["recipe"]]
    trained = train(
        recipe.shape, test.params, recipe.examples("train", data), LESSONS[budget["recipe"]], masks
    )
    reached = accuracy(recipe.shape, trained, recipe.examples("test", data))
    own, kept = masks_of(test), sum(int(mask.sum()) for mask in masks.values())
    return {
        "accuracy": reached.mean().item(),
        "accuracy_deviation": reached.std().item(),
        "overlap": sum(int((masks[n] & own[n]).sum()) for n in own) / max(kept, 1),
        "ms": fitted.ms if fitted else 0.0,
        "seconds": fitted.seconds if fitted else 0.0,
        "meta_parameters": 0,
        **found,
    }


@cache
def _networks(name: str, count: int, path: Path, data: str | None) -> NetworkSet:
    return make_tickets(name, count, path, data).select(torch.arange(count))


@cache
def _fitted(
    name: str, recipe: str, count: int, path: Path, options: FitOptions, data: str | None
) -> tuple[MaskReader, Fitted]:
    """Once for both ways of choosing from what it says."""
    known = _networks(recipe, count, path, data).split("train")
    torch.manual_seed(options.seed)
    reader = make_masker(name, known)
    # With its last weights: the loss on others is not what tells a good reader of masks, see there.
    return reader, fit(
        reader, known, flat_masks(known), options, loss=mask_loss, desc=f"{name} {options.seed}"
    )


def _unlearned(name: str, test: NetworkSet, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    own = {weight: test.params[weight] for weight in masks_of(test)}
    if name == "magnitude":
        return {weight: value.abs() for weight, value in own.items()}
    return {weight: torch.rand(value.shape, generator=generator) for weight, value in own.items()}


def _chosen(name: str, scores: Tensors, known: NetworkSet, test: NetworkSet, shared: bool) -> Tensors:
    if name == "dense":
        return {weight: torch.ones_like(mask) for weight, mask in masks_of(test).items()}
    if name == "imp":
        return masks_of(test)
    counts = counts_of(known)
    if name == "random_global":
        share = sum(counts.values()) / sum(value[0].numel() for value in scores.values())
        counts = {weight: round(share * value[0].numel()) for weight, value in scores.items()}
    if not shared:
        return by_layer(scores, counts)
    first = next(iter(scores))
    return by_input(scores, counts, _kept_of_inputs(masks_of(known)[first]))


def _kept_of_inputs(masks: Tensor) -> Tensor:
    return masks.double().sum(1).mean(0)
