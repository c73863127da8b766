"""Readers: from the parameters of one network to a prediction. One interface for metanets and what they must beat.

Shapes: P scalars, M probes, C outputs of the networks that are read, Y predicted values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lopt.graph import ParameterGraph
from lopt.metanets import METANETS
from lopt.metanets.plan import plan_of
from lopt.weight_space.features import CONTEXT, FeatureOptions, WeightFeatures
from lopt.weight_space.network_set import NetworkSet, Tensors
from lopt.weight_space.probes import probe
from lopt.weight_space.readout import STATISTICS, pool_tensors
from lopt.weight_space.sirens import Siren
from lopt.weight_space.symmetries import canonical

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Reader(nn.Module, ABC):
    """Parameters of B networks of one architecture (B, *shape) -> predictions (B, Y)."""

    @abstractmethod
    def forward(self, params: Tensors) -> Tensor:
        """Logits of classes, or numbers. Differentiable."""


class Mlp(nn.Sequential):
    """relu layers, the last linear; dropout before the last."""

    def __init__(self, sizes: Sequence[int], dropout: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers, nn.Dropout(dropout), nn.Linear(sizes[-2], sizes[-1]))


class FlatMlp(Reader):
    """An MLP on the flat weights, each over its tensor's rms in a training set: it knows no symmetry at all."""

    def __init__(self, networks: NetworkSet, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor(list(scales_of(networks.params).values())))
        count = sum(value[0].numel() for value in networks.params.values())
        self.layers = Mlp((count, width, width, outputs))

    def forward(self, params: Tensors) -> Tensor:
        scales = self.scales.clamp_min(1e-12)  # a tensor may be zero in all of them
        scaled = [p.flatten(1) / scale for p, scale in zip(params.values(), scales, strict=True)]
        return self.layers(torch.cat(scaled, -1))


class StatNn(Reader):
    """Mean, variance and quantiles of every tensor to an MLP (Unterthiner et al. 2020, arXiv 2002.11448)."""

    def __init__(self, networks: NetworkSet, outputs: int, width: int = 128) -> None:
        super().__init__()
        found = statistics(networks.params)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", found.mean(0))
        self.register_buffer("std", found.std(0) + 1e-6)
        self.layers = Mlp((found.shape[1], width, width, outputs))

    def forward(self, params: Tensors) -> Tensor:
        return self.layers((statistics(params) - self.mean) / self.std)


class ProbeInputs(nn.Module):
    """M inputs (M, ...) for networks: given ones, learned ones, or generated ones.

    learned: free to move from where they are given. generated: from learned codes through a deep linear network
    (ProbeGen, Kahana et al. 2025), which keeps them from fitting the training set one by one.
    """

    CODE = 32

    def __init__(self, points: Tensor, kind: Literal["given", "learned", "generated"] = "learned") -> None:
        super().__init__()
        self.count, self.shape = len(points), points.shape
        self.layers: nn.Module = nn.Identity()
        self.codes: Tensor
        if kind == "given":
            self.register_buffer("codes", points)
        elif kind == "learned":
            self.codes = nn.Parameter(points.clone())
        else:
            self.codes = nn.Parameter(torch.randn(self.count, self.CODE))
            inputs = points[0].numel()
            self.layers = nn.Sequential(nn.Linear(self.CODE, self.CODE), nn.Linear(self.CODE, inputs))

    def forward(self) -> Tensor:
        found: Tensor = self.layers(self.codes)
        return found.view(self.shape)


class ProbeReader(Reader):
    """An MLP on what networks put out for M inputs: functions alone, no weight is read."""

    def __init__(
        self, model: nn.Module, inputs: ProbeInputs, reads: int, outputs: int, width: int = 128
    ) -> None:
        super().__init__()
        self.model = [model]  # in a list: its parameters are not the reader's
        self.inputs = inputs
        self.layers = Mlp((inputs.count * reads, width, width, outputs))

    def forward(self, params: Tensors) -> Tensor:
        points, (model,) = self.inputs(), self.model
        said = torch.vmap(lambda one: functional_call(model, one, (points,)))(params)
        found: Tensor = self.layers(said.flatten(1))
        return found


class MetanetReader(Reader):
    """A metanet on the parameter graph, pooled over each tensor, with M probes of every neuron if wanted.

        y = MLP(norm([pool_b of what the metanet says of each tensor b, answers of the outputs to probes]))

    Networks differ little in such means beside what they have in common; the norm, over the batch, takes that away.
    Without it no metanet here came near to fitting its training set. SIRENs are read in their canonical form, with
    the phases of their neurons; of other networks the head is also told what `StatNn` is, where scales matter.
    """

    def __init__(
        self,
        model: nn.Module | None,
        graph: ParameterGraph,
        networks: NetworkSet,
        outputs: int,
        metanet: str,
        options: Mapping[str, Any] | None = None,
        features: FeatureOptions | None = None,
        channels: int = 32,
        width: int = 64,
        inputs: ProbeInputs | None = None,
    ) -> None:
        super().__init__()
        self.model, self.graph, self.inputs = [model], graph, inputs
        self.siren = model.shape if isinstance(model, Siren) else None
        scales = scales_of(self._canonical(networks.params))
        features = features or FeatureOptions(
            frequencies=4, places=True, w0=self.siren.w0 if self.siren else 0.0
        )
        self.features = WeightFeatures(features, {name: scales[name] for name in graph.parameters})
        options = {**(options or {}), **({} if inputs is None else {"probes": inputs.count})}
        self.metanet = METANETS.make(
            METANETS.options(metanet)(**options), features=features.count, context=CONTEXT, outputs=channels
        )
        awaken(self.metanet)
        starts = plan_of(graph).group_starts
        self.answering = [
            n for g in graph.groups if g.kind == "output" for n in range(starts[g.id], starts[g.id] + g.size)
        ]
        pooled = STATISTICS * channels * len(graph.parameters)
        pooled += 0 if inputs is None else inputs.count * len(self.answering)
        pooled += 0 if self.siren else statistics(networks.select(torch.arange(1)).params).shape[1]
        # What is normed moves with the metanet below: averages over a few batches, or they lag in short trainings.
        self.head = nn.Sequential(nn.BatchNorm1d(pooled, momentum=0.3), Mlp((pooled, width, outputs)))

    def forward(self, params: Tensors) -> Tensor:
        points = None if self.inputs is None else self.inputs()
        pooled = torch.vmap(lambda one: self._pooled(one, points))(self._canonical(params))
        found: Tensor = self.head(pooled if self.siren else torch.cat([pooled, statistics(params)], 1))
        return found

    def _canonical(self, params: Tensors) -> Tensors:
        return params if self.siren is None else canonical(self.siren, params)

    def _pooled(self, params: Tensors, points: Tensor | None) -> Tensor:
        (model,) = self.model
        told = self.features(self.graph, params)
        if points is None:
            return pool_tensors(self.graph, self.metanet(self.graph, *told)[0]).flatten()
        assert model is not None, "no inputs without a model"
        probes = probe(model, self.graph, points, params, behind=True)
        said, _ = self.metanet(self.graph, *told, probes=probes)
        return torch.cat([pool_tensors(self.graph, said).flatten(), probes[:, self.answering].flatten()])


def statistics(params: Tensors) -> Tensor:
    """(B, 7 for each tensor): its mean, variance and quantiles."""
    columns = []
    for value in params.values():
        flat = value.flatten(1)
        columns += [flat.mean(1), flat.var(1, correction=0)]
        columns += list(flat.quantile(torch.tensor(QUANTILES).to(flat), dim=1))
    return torch.stack(columns, -1)


def awaken(metanet: nn.Module) -> None:
    """Draw the output layers, which start at zero so that a fresh rule is its base: a reader has no base."""
    for parameter in metanet.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


def scales_of(params: Tensors) -> dict[str, float]:
    """The rms of every tensor over a set of networks. (One for each scalar would tell hidden neurons apart.)"""
    return {name: value.square().mean().sqrt().item() for name, value in params.items()}
