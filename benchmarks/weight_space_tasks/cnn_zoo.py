"""The zoo of classifiers: the test accuracy of a network from its weights alone (Unterthiner et al. 2020).

tau is Kendall's tau-b of predicted and true accuracies over all checkpoints of the test networks; tau_strata that of
pairs of checkpoints with the same step, share of the images and third of the rates, which scales of weights tell least
of; tau_last of their last checkpoints alone, as in published tables; r2 the share of variance told. against_statnn: the
difference of tau, and its interval over test networks drawn with replacement, each with all of its checkpoints.

fresh: so many networks behind those of the budget are the test, whatever their split. "graded" reads functions alone:
the classes told of 1,024 training images, by learned labels, in ten times as many passes (all networks answer once,
which its time leaves out); +graded are metanets beside it, trained after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.runner.log import Record
from benchmarks.weight_space_tasks.graded import both, longer
from lopt.weight_space.fitting import FitOptions, fit, predict
from lopt.weight_space.given_images import training_images
from lopt.weight_space.grading import GRADED, fit_grader, make_grader
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.ranks import signs, tau_b
from lopt.weight_space.systems import make_reader
from lopt.weight_space.zoo import ZOOS, make_zoo

METHODS = (
    "statnn", "nfn_np+64", "flat_mlp", "probes", "probegen", "nfn_np", "nfn_hnp", "ng_gnn", "ng_t", "ng_gnn+64", "gmn",
    "deepsets", "nfn_hnp+64", "ng_t+64", "graded", "nfn_np+graded", "signals",
)  # fmt: skip
"""Not dwsnet, which has no place for kernel taps."""
BUDGET = {"recipe": "cnn-zoo", "networks": 640, "passes": 6_000, "rate": 2e-3}
QUICK = {"recipe": "cnn-zoo-digits", "networks": 64, "passes": 480, "rate": 2e-3}
DECAY = 0.05
DRAWS = 1000


def run(method: str, budget: Record, seed: int, folder: Path, data: str | None) -> Record:
    """Train and test one reader with one seed."""
    name, count = budget["recipe"], budget["networks"]
    made = count + budget.get("fresh", 0)
    networks = make_zoo(name, made, folder / f"{name}.safetensors", data)
    rows = torch.arange(made * len(ZOOS[name].checkpoints)).split(count * len(ZOOS[name].checkpoints))
    torch.manual_seed(seed)
    train, validation, test = (
        networks.select(rows[0]).split(split) for split in ("train", "validation", "test")
    )
    test = networks.select(rows[1]) if "fresh" in budget else test
    known = train.columns["accuracy"]

    def wanted(part: NetworkSet) -> Tensor:
        return (part.columns["accuracy"] - known.mean()) / known.std()

    options = FitOptions(passes=budget["passes"], lr=budget["rate"], weight_decay=DECAY, seed=seed)
    validated = (validation, wanted(validation))
    kind, _, beside = method.partition("+")
    before = None
    if GRADED in (kind, beside):
        grader = make_grader(train, training_images(networks, data), 1)
        before = fit_grader(grader, train, wanted(train), longer(options), validated, method)
        reader = grader if kind == GRADED else make_reader(kind, train, 1, functions=grader)
    else:
        reader = make_reader(kind, train, 1, int(beside or 0))
    if before and kind == GRADED:
        fitted = before
    else:
        fitted = fit(reader, train, wanted(train), options, validated, desc=f"{method} {seed}")
    predicted = predict(reader, test.params)[:, 0] * known.std() + known.mean()
    truth = test.columns["accuracy"]
    last = test.columns["step"] == test.columns["step"].max()
    return {
        "tau": tau_b(truth, predicted),
        "tau_strata": tau_b(truth, predicted, alike(test)),
        "tau_last": tau_b(truth[last], predicted[last]),
        "r2": 1 - ((predicted - truth).square().mean() / truth.var(correction=0)).item(),
        "predicted": [round(value, 5) for value in predicted.tolist()],
        "truth": [round(value, 5) for value in truth.tolist()],
        "network": test.columns["network"].tolist(),
        **vars(fitted),
        **both(before, fitted),
        "meta_parameters": sum(parameter.numel() for parameter in reader.parameters()),
    }


def alike(networks: NetworkSet) -> Tensor:
    """(N, N): whether two checkpoints are of the same step, share and third of the rates."""
    columns = networks.columns
    thirds = torch.bucketize(columns["rate"], columns["rate"].quantile(torch.tensor([1 / 3, 2 / 3])))
    same = [value[:, None] == value for value in (columns["step"], columns["share"], thirds)]
    return same[0] & same[1] & same[2]


def beside(records: Sequence[Record], statnn: Sequence[Record]) -> dict[str, Any]:
    """How far the tau of a method is above StatNN's with the same seeds, the mean, and 95 % of the draws.

    Drawn are networks, or where there are several their architectures, each with all that is of it.
    """
    others = {record["seed"]: record for record in statnn}
    pairs = [(record, others[record["seed"]]) for record in records if record["seed"] in others]
    if not pairs or records[0]["method"] == "statnn":
        return {}
    owners = torch.tensor(pairs[0][0].get("architecture", pairs[0][0]["network"])).unique(
        return_inverse=True
    )[1]
    count = int(owners.max()) + 1
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(count, (DRAWS, count), generator=generator)
    times = torch.zeros(DRAWS, count).scatter_add_(1, drawn, torch.ones(DRAWS, count))
    weights = torch.cat([torch.ones(1, len(owners)), times[:, owners]]).double()
    found = torch.stack([_taus(own, weights) - _taus(other, weights) for own, other in pairs]).mean(0)
    low, high = found[1:].quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return {"against_statnn": {"difference": found[0].item(), "low": low, "high": high}}


def _taus(record: Record, weights: Tensor) -> Tensor:
    """tau-b with each checkpoint counted as often as a row of weights (D, N) says."""
    left, right = (signs(torch.tensor(record[name])) for name in ("truth", "predicted"))
    both, one, other = (((weights @ m) * weights).sum(1) for m in (left * right, left.abs(), right.abs()))
    return both / (one * other).sqrt()
