"""The wild park: the test accuracy of networks whose architectures were never seen, from their weights alone.

tau is Kendall's tau-b of predicted and true accuracies over all checkpoints of the test architectures; that of pairs
of checkpoints of one architecture is tau_architecture, of one activation and step tau_activation; r2 the share of
variance told. against_statnn: as in the zoo, with architectures drawn in the place of networks. With probes (+64) the
part that reads functions alone is trained first, by itself, on twice as many networks. "graded" and +graded: as in the
zoo. "activation" is no reader, but the mean accuracy of the training checkpoints with the same activation and step.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.runner.log import Record
from benchmarks.weight_space_tasks.graded import both, longer
from lopt.weight_space.fitting import FitOptions, Fitted, fit, predict
from lopt.weight_space.given_images import training_images
from lopt.weight_space.grading import GRADED, fit_grader, make_park_grader
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.park import make_park
from lopt.weight_space.park_readers import ParkMetanet, ParkReader, make_park_reader
from lopt.weight_space.parknets import ACTIVATIONS
from lopt.weight_space.ranks import tau_b

METHODS = (
    "activation",
    "statnn",
    "ng_gnn+64",
    "probes",
    "ng_gnn",
    "gmn",
    "deepsets",
    "ng_t",
    "ng_t+64",
    "gmn+64",
    "graded",
    "gmn+graded",
)
"""Not those that are for one chain of layers (nfn_np, nfn_hnp, dwsnet) or one shape (flat_mlp): nothing is padded."""
BUDGET = {"recipe": "wild-park", "networks": 1536, "passes": 16_000, "rate": 2e-3}
QUICK = {"recipe": "wild-park-digits", "networks": 128, "passes": 480, "rate": 2e-3}
DECAY = 0.05
FIRST = 2
"""Passes that a reader of functions has to itself, for each of the whole's."""


def run(method: str, budget: Record, seed: int, folder: Path, data: str | None) -> Record:
    """Train and test one reader with one seed."""
    park = _park(budget["recipe"], budget["networks"], folder, data)
    train, validation, test = (park.split(split) for split in ("train", "validation", "test"))
    known = train.columns["accuracy"]
    mean, std = known.mean(), known.std()

    options = FitOptions(passes=budget["passes"], lr=budget["rate"], weight_decay=DECAY, seed=seed)
    wanted = [(part.columns["accuracy"] - mean) / std for part in (train, validation)]

    def fitted(reader: ParkReader, times: int = 1) -> Fitted:
        own = options.but(passes=times * options.passes)
        return fit(reader, train, wanted[0], own, (validation, wanted[1]), desc=f"{method} {seed}")

    if method == "activation":
        return {**scores(test, _of_alike(train, test)), "ms": 0.0, "seconds": 0.0, "meta_parameters": 0}
    torch.manual_seed(seed)
    name, _, beside = method.partition("+")
    if GRADED in (name, beside):
        grader = make_park_grader(train, training_images(park, data), 1)
        before = fit_grader(grader, train, wanted[0], longer(options), (validation, wanted[1]), method)
        reader = grader if name == GRADED else make_park_reader(name, train, 1, functions=grader)
    else:
        reader = make_park_reader(name, train, 1, int(beside or 0))
        functions = reader.functions if isinstance(reader, ParkMetanet) else None
        before = None if functions is None else fitted(functions, FIRST)
    found = before if before and name == GRADED else fitted(reader)
    return {
        **scores(test, mean + std * predict(reader, test)[:, 0]),
        **vars(found),
        **both(before, found),
        "meta_parameters": sum(parameter.numel() for parameter in reader.parameters()),
    }


def scores(test: NetworkPark, predicted: Tensor) -> Record:
    """What predictions are worth."""
    truth, of = test.columns["accuracy"], test.architectures
    alike = activations_of(test) * (test.columns["step"].max() + 1) + test.columns["step"]
    return {
        "tau": tau_b(truth, predicted),
        "tau_architecture": tau_b(truth, predicted, of[:, None] == of),
        "tau_activation": tau_b(truth, predicted, alike[:, None] == alike),
        "r2": 1 - ((predicted - truth).square().mean() / truth.var(correction=0)).item(),
        "predicted": [round(value, 5) for value in predicted.tolist()],
        "truth": [round(value, 5) for value in truth.tolist()],
        "network": test.columns["network"].tolist(),
        "architecture": of.tolist(),
    }


def activations_of(park: NetworkPark) -> Tensor:
    """(N): the number of each network's activation."""
    names = list(ACTIVATIONS)
    numbers = torch.tensor([names.index(own.header["architecture"]["activation"]) for own in park.sets])
    return numbers[park.architectures]


def _of_alike(train: NetworkPark, test: NetworkPark) -> Tensor:
    """(N): the mean accuracy of training checkpoints with the same activation and step."""
    steps = train.columns["step"].unique()
    each = [
        torch.bucketize(part.columns["step"], steps) + len(steps) * activations_of(part)
        for part in (train, test)
    ]
    places = len(steps) * len(ACTIVATIONS)
    sums = torch.zeros(places).index_add(0, each[0], train.columns["accuracy"])
    counts = torch.bincount(each[0], minlength=places)
    # Where training has none, what it has in all.
    means = torch.where(counts > 0, sums / counts.clamp_min(1), train.columns["accuracy"].mean())
    return means[each[1]]


@cache
def _park(name: str, count: int, folder: Path, data: str | None) -> NetworkPark:
    park = make_park(name, count, folder / f"{name}.safetensors", data)
    return park.select(park.columns["network"] < count)
