"""Masks for networks that were never trained: from initial weights, which of them to keep.

    reader = make_masker("paths", train)
    fit(reader, train, flat_masks(train), loss=mask_loss)
    masks = by_layer(reader(test.params), counts_of(train))

A ticket is one of many masks that would do. What reads few networks for long is too sure of itself, so that its loss on
others rises; yet what it ranks highest goes together, as in pruning's masks, and is worth more after training.
Shapes: B networks, P scalars, W weights of all matrices, n_l neurons of layer l, E channels of a code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.metanets import METANETS
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space.features import CONTEXT, FeatureOptions, WeightFeatures
from lopt.weight_space.listening import awaken
from lopt.weight_space.network_set import NetworkSet, Tensors
from lopt.weight_space.perceptrons import PerceptronShape
from lopt.weight_space.readers import Mlp, scales_of
from lopt.weight_space.tickets import masks_of

CODE = 8
METANET_MASKERS: dict[str, tuple[str, dict[str, Any]]] = {
    "pointwise": ("mlp", {"width": 32, "layers": 3}),
    "deepsets": ("deepsets", {"width": 16, "layers": 3}),
    "nfn_np": ("nfn", {"width": 16, "layers": 3}),
    "ng_gnn": ("ng_gnn", {"width": 16, "layers": 2}),
    "gmn": ("gmn", {"width": 16, "layers": 2}),
}
"""The metanet and its options. "pointwise": no weight knows of another, as in the ablation of the NFN paper."""

MASKERS = (*METANET_MASKERS, "paths")


class MaskReader(nn.Module, ABC):
    """Initial parameters of B networks -> for each weight of a matrix (B, *shape) the logit of its being kept."""

    @abstractmethod
    def forward(self, params: Tensors) -> Tensors:
        """Equivariant to the order of hidden neurons. Differentiable."""


@torchs_defaults()
def make_masker(name: str, networks: NetworkSet) -> MaskReader:
    """A fresh one for perceptrons such as these, which set its scales. Raises `ConfigError` for an unknown name."""
    if name not in MASKERS:
        raise ConfigError(f"there is no reader {name!r} of masks; there are {', '.join(MASKERS)}")
    return PathMasker(networks) if name == "paths" else MetanetMasker(networks, name)


class MetanetMasker(MaskReader):
    """A metanet on the parameter graph, with learned codes of the neurons that stay in place.

    (A pixel at the border is never lit; what weights read it tells more of a mask than they do.)
    """

    def __init__(self, networks: NetworkSet, name: str) -> None:
        super().__init__()
        shape = PerceptronShape(**networks.header["architecture"])
        self.graph = ParameterGraph.trace(shape.build(), (torch.zeros(2, shape.sizes[0]),))
        scales = scales_of(networks.params)
        options = FeatureOptions(frequencies=4)
        self.features = WeightFeatures(options, {name: scales[name] for name in self.graph.parameters})
        self.codes = PlaceCodes(self.graph)
        metanet, given = METANET_MASKERS[name]
        if metanet == "nfn":
            given = {**given, "depth": len(shape.weights)}
        self.metanet = METANETS.make(
            METANETS.options(metanet)(**given), features=options.count + CODE, context=CONTEXT, outputs=1
        )
        awaken(self.metanet)
        self.base = nn.ParameterList(usual_logits(networks))
        self.weights = shape.weights

    def forward(self, params: Tensors) -> Tensors:
        codes = self.codes()
        said = torch.vmap(lambda one: self._said(one, codes))(params)
        return {name: said[name] + base for name, base in zip(self.weights, self.base, strict=True)}

    def _said(self, params: Tensors, codes: Tensor) -> Tensors:
        features, context = self.features(self.graph, params)
        said, _ = self.metanet(self.graph, torch.cat([features, codes]), context)
        return self.graph.unflatten(said[0])


class PlaceCodes(nn.Module):
    """(E, P): the learned codes of the fixed neurons that a scalar touches, their sum; else zeros."""

    def __init__(self, graph: ParameterGraph) -> None:
        super().__init__()
        self.graph = graph
        self.codes = nn.ParameterDict(
            {str(g.id): 0.3 * torch.randn(CODE, g.size) for g in graph.groups if not g.permutable}
        )

    def forward(self) -> Tensor:
        like = next(iter(self.codes.values()))
        whole = {spec.name: like.new_zeros(CODE, *spec.shape) for spec in self.graph.parameters.values()}
        for block in self.graph.blocks:
            part = (slice(None), *block.slices)
            for axis, group in enumerate(block.groups):
                if str(group) in self.codes:
                    ones = [1] * len(block.shape)
                    code = self.codes[str(group)].reshape(CODE, *ones[:axis], -1, *ones[axis + 1 :])
                    spread = code.expand(CODE, *block.shape)
                    whole[block.parameter][part] += spread.reshape(whole[block.parameter][part].shape)
        return torch.cat([value.flatten(1) for value in whole.values()], -1)


class PathMasker(MaskReader):
    """Of a hidden neuron what it hears of each input and tells each output, were the network linear; then of a weight
    what the two neurons are that it joins.

        n_j = MLP([W_l ... W_1]_j, [W_L ... W_(l+1)]_j and its absolute values, sizes of what comes in and goes out)
        logit_kj = sum_f x_f(w_kj) <p_f(n_k), q_f(n_j)>,   x = (1, w, |w|)

    Inputs and outputs have learned codes n, and p and q are linear maps of each layer's own. Products of matrices cost
    a network with P weights far less than channels for each of them do.
    """

    def __init__(self, networks: NetworkSet, width: int = 64, code: int = 32) -> None:
        super().__init__()
        self.shape = PerceptronShape(**networks.header["architecture"])
        inputs, *hidden, outputs = self.shape.sizes
        self.scales = scales_of(networks.params)
        self.rms = [
            [part.square().mean().sqrt().item() for part in parts] for parts in self._paths(networks.params)
        ]
        told = inputs + 2 * outputs + 3
        self.neurons = nn.ModuleList(Mlp((told, 128, 128, width)) for _ in hidden)
        self.inputs, self.outputs = (
            nn.Parameter(torch.randn(count, width) * width**-0.5) for count in (inputs, outputs)
        )
        self.fed, self.feeding = (
            nn.ModuleList(nn.Linear(width, VALUES * code) for _ in self.shape.weights) for _ in range(2)
        )
        self.base = nn.ParameterList(usual_logits(networks))

    def forward(self, params: Tensors) -> Tensors:
        count = len(params[self.shape.weights[0]])
        layers = [self.inputs.expand(count, -1, -1)]
        for neurons, parts, rms in zip(self.neurons, self._paths(params), self.rms, strict=True):
            hears, tells, sizes = (part / scale for part, scale in zip(parts, rms, strict=True))
            layers.append(neurons(torch.cat([hears, tells, tells.abs(), sizes], -1)))
        layers.append(self.outputs.expand(count, -1, -1))
        logits = {}
        for number, name in enumerate(self.shape.weights):
            fed = self.fed[number](layers[number + 1]).unflatten(-1, (VALUES, -1)).transpose(1, 2)
            feeding = self.feeding[number](layers[number]).unflatten(-1, (VALUES, -1)).transpose(1, 2)
            w = params[name] / self.scales[name]
            values = torch.stack([torch.ones_like(w), w, w.abs()], 1)
            joined = (values * (fed @ feeding.mT)).sum(1)
            logits[name] = joined * fed.shape[-1] ** -0.5 + self.base[number]
        return logits

    def _paths(self, params: Tensors) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each hidden layer (B, n_l, inputs), (B, n_l, outputs), and (B, n_l, 3): sizes of what is in, out, bias."""
        weights = [params[name] for name in self.shape.weights]
        hears, tells = [weights[0]], [weights[-1].mT]
        for weight in weights[1:-1]:
            hears.append(weight @ hears[-1])
        for weight in reversed(weights[1:-1]):
            tells.insert(0, weight.mT @ tells[0])
        sizes = [
            torch.stack([w.square().mean(2), behind.square().mean(1), params[bias].square()], -1).sqrt()
            for w, behind, bias in zip(weights, weights[1:], self.shape.biases, strict=False)
        ]
        return list(zip(hears, tells, sizes, strict=True))


VALUES = 3
"""Functions x_f of a weight."""


def usual_logits(networks: NetworkSet) -> list[Tensor]:
    """Of each matrix, for the share of its weights that IMP keeps."""
    # Away from 0 and 1: a small matrix may be kept whole.
    return [torch.logit(mask.float().mean(), eps=1e-3) for mask in masks_of(networks).values()]


def flat_masks(networks: NetworkSet) -> Tensor:
    """(N, W) of IMP: what a reader is to say."""
    return torch.cat([mask.flatten(1) for mask in masks_of(networks).values()], 1)


def mask_loss(reader: nn.Module, params: Tensors, wanted: Tensor) -> Tensor:
    """For `fit`: the cross-entropy of each weight's being kept, their mean."""
    said = cast(MaskReader, reader)(params)
    logits = torch.cat([value.flatten(1) for value in said.values()], 1)
    return F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype))
