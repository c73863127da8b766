"""Readers of networks of any architecture, those that they never saw included.

    reader = make_park_reader("ng_gnn", park.split("train"), outputs=1, probes=64)
    reader(park.batch(torch.arange(16)))

A batch is read architecture by architecture, each network on its own graph, and nothing is padded: what is said of a
tensor's scalars is pooled over them, what is said of tensors over these, and the norms are over the whole mixed batch.
Shapes: B networks of a batch, b of one architecture, T tensors of these, V values told of each, M probes, Y outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.spec import PARAMETER_KINDS
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space.architecture import Architecture, architecture_of
from lopt.weight_space.features import ACTIVATIONS, CONTEXT, FeatureOptions, fed_activations, tensor_context
from lopt.weight_space.listening import Listener, awaken
from lopt.weight_space.network_park import Mixed, NetworkPark, Part
from lopt.weight_space.probes import probe_each, run_each
from lopt.weight_space.readers import (
    DROPOUT,
    FINE,
    PROBED,
    QUANTILES,
    Head,
    Mlp,
    ProbeInputs,
    by_logarithm,
    silence,
    statistics,
)
from lopt.weight_space.readout import STATISTICS, pool_tensors
from lopt.weight_space.systems import METANET_READERS
from lopt.weight_space.zoo import LUMA

CHANNELS, WIDTH = 32, 64
OF_TENSOR = 2 * (2 + len(QUANTILES)) + CONTEXT + len(PARAMETER_KINDS) + len(ACTIVATIONS)
"""V of what is told of a tensor without a metanet."""


class ParkReader(nn.Module, ABC):
    """B networks of several architectures -> predictions (B, Y)."""

    @abstractmethod
    def forward(self, batch: Mixed) -> Tensor:
        """Logits of classes, or numbers. Differentiable."""


class TensorPool(nn.Module):
    """y = head([mean, max over tensors t of f(norm(v_t))]), norms and f over all tensors of a mixed batch."""

    def __init__(self, values: int, outputs: int) -> None:
        super().__init__()
        self.norm, self.each = nn.BatchNorm1d(values, momentum=0.3), Mlp((values, WIDTH, WIDTH))
        self.head = Head(2 * WIDTH, WIDTH, outputs, dropout=DROPOUT)

    def forward(self, batch: Mixed, parts: list[Tensor]) -> Tensor:
        """(b, T, V) of each part -> (B, Y)."""
        rows = torch.cat([values.flatten(0, 1) for values in parts])
        said = self.each(self.norm(rows)).split([values.shape[0] * values.shape[1] for values in parts])
        pooled = []
        for values, own in zip(parts, said, strict=True):
            tensors = own.unflatten(0, values.shape[:2])
            pooled.append(torch.cat([tensors.mean(1), tensors.amax(1)], -1))
        found: Tensor = self.head(batch.placed(pooled))
        return found


class ParkStatNn(ParkReader):
    """Mean, variance and quantiles of every tensor, with what its graph says of it, to a `TensorPool`."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.pool = TensorPool(OF_TENSOR, outputs)

    def forward(self, batch: Mixed) -> Tensor:
        found: Tensor = self.pool(batch, [of_tensors(part) for part in batch.parts])
        return found


class ParkProbes(ParkReader):
    """A head on what networks say to M images, which those of grey images see in grey: functions alone.

    head: in the place of an MLP, (B, M * reads) -> (B, outputs), told logits as they are.
    """

    def __init__(self, inputs: ProbeInputs, reads: int, outputs: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.inputs, self.own = inputs, head is None
        self.layers = head or Head(2 * inputs.count * reads, WIDTH, WIDTH, outputs, dropout=DROPOUT)

    def forward(self, batch: Mixed) -> Tensor:
        said = self.answers(batch)
        found: Tensor = self.layers(by_logarithm(said, self.inputs.count) if self.own else said)
        return found

    def answers(self, batch: Mixed) -> Tensor:
        """(B, M * reads): what networks put out."""
        return batch.placed(
            [run_each(part.of.runnable, self.points(part.of), part.params) for part in batch.parts]
        )

    def points(self, of: Architecture) -> Tensor:
        """(M, *inputs) for networks of an architecture."""
        points: Tensor = self.inputs()
        if of.inputs[0] == points.shape[1]:
            return points
        luma = torch.tensor(LUMA).to(points)[:, None, None]
        return (points * luma).sum(1, keepdim=True)

    def of_neurons(self, part: Part) -> Tensor:
        """(M, b, N): what every neuron says to the images, behind its nonlinearity."""
        return probe_each(part.of.runnable, part.of.graph, self.points(part.of), part.params)


class ParkMetanet(Listener, ParkReader):
    """A metanet on each network's own graph, told what its neurons' activations are; pooled, with M probes if wanted.

        y = pool([pool_t of what the metanet says of tensor t, what `ParkStatNn` is told of it]) + functions(networks)

    functions: a reader of functions alone, whose M images a metanet in `PROBED` is told every neuron's answers to.
    Beside it the rest starts at zero: the whole is as good as it is, which may be trained first.
    """

    def __init__(
        self, metanet: str, options: Mapping[str, Any], outputs: int, functions: ParkProbes | None = None
    ) -> None:
        hears = functions is not None and metanet in PROBED
        super().__init__(
            metanet,
            CHANNELS,
            {**options, **({"probes": functions.inputs.count} if functions and hears else {})},
            FeatureOptions(frequencies=4, places=True, activations=True),
        )
        self.functions, self.hears = functions, hears
        awaken(self.metanet)
        self.pool = TensorPool(STATISTICS * CHANNELS + OF_TENSOR, outputs)
        if functions is not None:
            silence(self.pool.head)

    def forward(self, batch: Mixed) -> Tensor:
        found: Tensor = self.pool(batch, [self._of_tensors(part) for part in batch.parts])
        return found if self.functions is None else found + self.functions(batch)

    def _of_tensors(self, part: Part) -> Tensor:
        probes = self.functions.of_neurons(part) if self.functions and self.hears else None
        said = self.heard(part.of.graph, part.params, probes)
        pooled = torch.asinh(pool_tensors(part.of.graph, said).permute(1, 2, 0))
        return torch.cat([pooled, of_tensors(part)], -1)


def of_tensors(part: Part) -> Tensor:
    """(b, T, V): statistics of each tensor, plain and beside what fresh weights would have, and what its graph says."""
    graph, params = part.of.graph, {name: part.params[name] for name in part.of.graph.parameters}
    each = statistics(params).unflatten(1, (len(params), -1))
    fresh = torch.tensor([spec.numel / max(spec.shape[0], 1) for spec in graph.parameters.values()]).to(each)
    context = torch.vmap(lambda one: tensor_context(graph, one), out_dims=0)(params).mT
    known = torch.cat([context, _kinds(graph).to(each).expand(len(each), -1, -1)], -1)
    # Of the plain ones the logarithm, as tensors differ by powers of ten.
    return torch.cat([torch.asinh(FINE * each), each * fresh.sqrt()[:, None], known], -1)


@made_once
def _kinds(graph: ParameterGraph) -> Tensor:
    """(T, ...): one-hot codes of what each tensor is, and of the activation of the neurons that it feeds."""
    rows = []
    for spec in graph.parameters.values():
        fed = fed_activations(graph, spec)
        rows.append([spec.kind == kind for kind in PARAMETER_KINDS] + [name in fed for name in ACTIVATIONS])
    return torch.tensor(rows).float()


PARK_METANETS = ("ng_gnn", "ng_t", "gmn", "deepsets")
"""Those of `METANET_READERS` that are not for one chain of layers."""
PARK_NAMES = (*PARK_METANETS, "statnn", "probes")


@torchs_defaults()
def make_park_reader(
    name: str, park: NetworkPark, outputs: int, probes: int = 0, functions: ParkProbes | None = None
) -> ParkReader:
    """A fresh reader of networks such as these, and of others.

    probes: learned images whose answers it reads, 64 for "probes" if it isn't said, of networks that lopt has the code
    of; functions: a reader of functions in their place beside a metanet. Raises `ConfigError` for an unknown name, one
    that is for networks of one architecture, probes without code, or functions where there is no place for them.
    """
    if name not in PARK_NAMES:
        raise ConfigError(
            f"there is no reader {name!r} of networks of many architectures; there are {', '.join(PARK_NAMES)}"
        )
    if functions is not None and (probes or name not in PARK_METANETS):
        raise ConfigError(f"reader {name}: expected no functions, found some; metanets read them, or probes")
    if name == "statnn":
        if probes:
            raise ConfigError(f"reader {name}: expected no probes, found {probes}; metanets read them")
        return ParkStatNn(outputs)
    if functions is None and (probes or name == "probes"):
        functions = _functions(park, probes or 64, outputs)
    if name not in PARK_METANETS:
        assert functions is not None, "made above"
        return functions
    metanet, options = METANET_READERS[name]
    return ParkMetanet(metanet, options(architecture_of(park.sets[0]).graph), outputs, functions)


def _functions(park: NetworkPark, probes: int, outputs: int) -> ParkProbes:
    for own in park.sets:
        _ = architecture_of(own).runnable  # or it says that there is none
    # In as many colours as any of them sees.
    most = architecture_of(park.widest)
    return ParkProbes(ProbeInputs(most.examples(probes)), most.reads, outputs)
