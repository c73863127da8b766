"""Readers: from the parameters of one network to a prediction. One interface for metanets and what they must beat.

Shapes: P scalars, M probes, C outputs of the networks that are read, Y predicted values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lopt.graph import ParameterGraph
from lopt.weight_space.features import FeatureOptions
from lopt.weight_space.listening import Listener, awaken
from lopt.weight_space.network_set import NetworkSet, Tensors, rows_of
from lopt.weight_space.probes import probe_each, run_each
from lopt.weight_space.readout import STATISTICS, pool_tensors
from lopt.weight_space.sirens import Siren, SirenShape
from lopt.weight_space.symmetries import canonical, unwound

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
PROBED = ("ng_gnn", "ng_t")
"""Metanets that can read probes."""
FINE = 30.0
"""One over the size from which on statistics are told by their logarithm."""
DROPOUT = 0.2
"""In heads that read classifiers, of which there are few, for numbers that chance is in."""


class Reader(nn.Module, ABC):
    """Parameters of B networks of one architecture (B, *shape), in any order -> predictions (B, Y)."""

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
        self.names = tuple(networks.params)
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor(list(scales_of(networks.params).values())))
        count = sum(value[0].numel() for value in networks.params.values())
        self.layers = Mlp((count, width, width, outputs))

    def forward(self, params: Tensors) -> Tensor:
        scales = self.scales.clamp_min(1e-12)  # a tensor may be zero in all of them
        scaled = [rows_of(params[name]) / scale for name, scale in zip(self.names, scales, strict=True)]
        return self.layers(torch.cat(scaled, -1))


class StatNn(Reader):
    """Mean, variance and quantiles of every tensor to an MLP (Unterthiner et al. 2020, arXiv 2002.11448)."""

    def __init__(self, networks: NetworkSet, outputs: int, width: int = 128) -> None:
        super().__init__()
        self.names = tuple(networks.params)
        found = statistics(networks.params)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", found.mean(0))
        self.register_buffer("std", found.std(0) + 1e-6)
        self.layers = Mlp((found.shape[1], width, width, outputs))

    def forward(self, params: Tensors) -> Tensor:
        found = statistics({name: params[name] for name in self.names})
        return self.layers((found - self.mean) / self.std)


class UnwoundReader(Reader):
    """A reader of scalars, each over the rms of its tensor in a training set; of SIRENs of what `unwound` leaves."""

    def __init__(self, graph: ParameterGraph, networks: NetworkSet, siren: SirenShape | None) -> None:
        super().__init__()
        self.graph, self.siren = graph, siren
        scales = scales_of(self._unwound(networks.params))
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor([scales[name] for name in graph.parameters]))

    def scalars(self, params: Tensors) -> Tensor:
        """(B, P), in the order of `graph.flatten`."""
        params = self._unwound(params)
        pairs = zip(self.graph.parameters, self.scales, strict=True)
        return torch.cat([rows_of(params[name]) / (scale + 1e-12) for name, scale in pairs], 1)

    def _unwound(self, params: Tensors) -> Tensors:
        return params if self.siren is None else unwound(self.siren, params)


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
        # A rate that moves weights hardly moves a whole image.
        self.stretch = 8.0 if kind == "learned" and points.dim() > 2 else 1.0
        if kind == "given":
            self.register_buffer("codes", points)
        elif kind == "learned":
            self.codes = nn.Parameter(points / self.stretch)
        else:
            self.codes = nn.Parameter(torch.randn(self.count, self.CODE))
            inputs = points[0].numel()
            self.layers = nn.Sequential(nn.Linear(self.CODE, self.CODE), nn.Linear(self.CODE, inputs))

    def forward(self) -> Tensor:
        found: Tensor = self.stretch * self.layers(self.codes)
        return found.view(self.shape)


class Head(nn.Sequential):
    """MLP(norm(x)), the norm over the batch: networks differ little beside what they have in common.

    What is normed moves with what is below: averages over a few batches, or they lag in short trainings.
    """

    def __init__(self, *sizes: int, dropout: float = 0.0) -> None:
        super().__init__(nn.BatchNorm1d(sizes[0], momentum=0.3), Mlp(sizes, dropout))


class ConvHead(nn.Sequential):
    """Three convolutions on values (B, size * size * C) at the points of a grid, row by row; then their mean."""

    def __init__(self, size: int, channels: int, outputs: int) -> None:
        widths = (channels, 32, 64, 128)
        layers: list[nn.Module] = []
        for stride, inputs, width in zip((1, 2, 2), widths, widths[1:], strict=False):
            convolution = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width, momentum=0.3), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], outputs))
        self.size = size

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = super().forward(
            values.view(len(values), self.size, self.size, -1).permute(0, 3, 1, 2)
        )
        return found


class ProbeReader(Reader):
    """A head on what networks put out for M inputs: functions alone, no weight is read.

    Of classifiers an MLP is told the shares of the classes, and logits by a logarithm, as scales differ by powers of
    ten. head: in its place, (B, M * reads) -> (B, outputs), told what networks put out.
    """

    def __init__(
        self, model: nn.Module, inputs: ProbeInputs, reads: int, outputs: int, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = [model]  # in a list: its parameters are not the reader's
        self.inputs, self.classifies = inputs, head is None and not isinstance(model, Siren)
        self.layers: nn.Module
        if head is not None:
            self.layers = head
        elif self.classifies:
            self.layers = Head(2 * inputs.count * reads, 64, 64, outputs, dropout=DROPOUT)
        else:
            self.layers = Head(inputs.count * reads, 256, 256, outputs)

    def forward(self, params: Tensors) -> Tensor:
        said = self.answers(params)
        found: Tensor = self.layers(by_logarithm(said, self.inputs.count) if self.classifies else said)
        return found

    def answers(self, params: Tensors) -> Tensor:
        """(B, M * reads): what networks put out."""
        (model,) = self.model
        return run_each(model, self.inputs(), params)

    def of_neurons(self, graph: ParameterGraph, params: Tensors) -> Tensor:
        """(M, B, N): what every neuron says to the inputs, behind its nonlinearity."""
        (model,) = self.model
        return probe_each(model, graph, self.inputs(), params)


class MetanetReader(Listener, Reader):
    """A metanet on the parameter graph, pooled over each tensor, with M probes of every neuron if wanted.

        y = head([pool_b of what the metanet says of each tensor b]) + functions(params)

    functions: a reader of functions alone, whose M inputs a metanet in `PROBED` is told every neuron's answers to.
    It can be trained first, at a thirtieth of the price: beside it the head starts at zero, so that the whole starts as
    good as it is.
    Without the norm in front of a head no metanet here came near to fitting its training set. SIRENs are read in
    their canonical form, with the phases of their neurons; of other networks the head is also told what `StatNn` is,
    where scales matter, all by a logarithm.
    """

    def __init__(
        self,
        graph: ParameterGraph,
        networks: NetworkSet,
        outputs: int,
        metanet: str,
        options: Mapping[str, Any] | None = None,
        functions: ProbeReader | None = None,
        siren: SirenShape | None = None,
        features: FeatureOptions | None = None,
        channels: int = 32,
        width: int = 64,
    ) -> None:
        scales = scales_of(networks.params if siren is None else canonical(siren, networks.params))
        hears = functions is not None and metanet in PROBED
        super().__init__(
            metanet,
            channels,
            {**(options or {}), **({"probes": functions.inputs.count} if functions and hears else {})},
            features or FeatureOptions(frequencies=4, places=True, w0=siren.w0 if siren else 0.0),
            {name: scales[name] for name in graph.parameters},
        )
        self.graph, self.functions, self.siren, self.hears = graph, functions, siren, hears
        self.names = tuple(networks.params)
        awaken(self.metanet)
        pooled = STATISTICS * channels * len(graph.parameters)
        if self.siren:
            self.head = Head(pooled, width, outputs)
        else:
            pooled += statistics(networks.select(torch.arange(1)).params).shape[1]
            self.head = Head(pooled, width, width, outputs, dropout=DROPOUT)
        if functions is not None:
            silence(self.head)

    def forward(self, params: Tensors) -> Tensor:
        read = self._canonical(params)
        probes = self.functions.of_neurons(self.graph, read) if self.functions and self.hears else None
        said = self.heard(self.graph, read, probes)
        pooled = pool_tensors(self.graph, said).movedim(1, 0).flatten(1)
        if self.siren is None:
            told = statistics({name: params[name] for name in self.names})
            pooled = torch.asinh(torch.cat([pooled, FINE * told], 1))
        found: Tensor = self.head(pooled)
        return found if self.functions is None else found + self.functions(params)

    def _canonical(self, params: Tensors) -> Tensors:
        return params if self.siren is None else canonical(self.siren, params)


def by_logarithm(answers: Tensor, count: int) -> Tensor:
    """Logits (B, count * C) of classifiers for so many inputs -> (B, count * 2 C): shares of classes, and asinh."""
    said = answers.unflatten(1, (count, -1))
    return torch.cat([said.softmax(-1), torch.asinh(said)], -1).flatten(1)


def statistics(params: Tensors) -> Tensor:
    """(B, 7 for each tensor): its mean, variance and quantiles."""
    columns = []
    for value in params.values():
        flat = rows_of(value)
        columns += [flat.mean(1), flat.var(1, correction=0)]
        columns += list(flat.quantile(flat.new_tensor(QUANTILES), dim=1))
    return torch.stack(columns, -1)


def silence(head: Head) -> None:
    """Set its last layer to zero, and with it all that it says until it has learned."""
    *_, last = head.modules()
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


def scales_of(params: Tensors) -> dict[str, float]:
    """The rms of every tensor over a set of networks. (One for each scalar would tell hidden neurons apart.)"""
    return {name: value.square().mean().sqrt().item() for name, value in params.items()}
