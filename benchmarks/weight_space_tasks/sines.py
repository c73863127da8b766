"""Sines: amplitude, frequency and phase of the sine that a small SIREN was fitted to. The unit test of all readers.

r2 is the mean of the three: the share of their variance on test networks that is told.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.runner.log import Record
from lopt.weight_space.fitting import FitOptions, fit, predict
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.readers import PROBED, Reader
from lopt.weight_space.sines import SINES, make_sines, wanted
from lopt.weight_space.systems import NAMES, make_reader

METHODS = (*(name for name in NAMES if name != "pixels_cnn"), *(f"{name}+64" for name in PROBED))
BUDGET = {"recipe": "siren300", "networks": 2000, "passes": 16_000, "rate": 2e-3}
QUICK = {**BUDGET, "networks": 320, "passes": 640}


def run(method: str, budget: Record, seed: int, folder: Path, data: str | None) -> Record:
    """Train and test one reader with one seed."""
    networks = make_sines(budget["networks"], folder / "sines.safetensors")
    networks = networks.select(torch.arange(budget["networks"]))
    torch.manual_seed(seed)
    train, validation, test = (networks.split(name) for name in ("train", "validation", "test"))
    name, _, probes = method.partition("+")
    reader = make_reader(name, train, len(SINES), int(probes or 0))
    options = FitOptions(passes=budget["passes"], lr=budget["rate"], seed=seed)
    fitted = fit(
        reader, train, wanted(train), options, (validation, wanted(validation)), desc=f"{method} {seed}"
    )
    told = r2(reader, test)
    return {
        "r2": sum(told) / len(told),
        **{f"r2_{name}": value for name, value in zip(SINES, told, strict=True)},
        **vars(fitted),
        "meta_parameters": sum(parameter.numel() for parameter in reader.parameters()),
    }


def r2(reader: Reader, networks: NetworkSet) -> list[float]:
    """1 - mean squared error / variance, of each column of `SINES`."""
    targets = wanted(networks)
    errors = (predict(reader, networks.params) - targets).square().mean(0)
    return (1 - errors / targets.var(0, correction=0)).tolist()
