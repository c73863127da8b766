"""NFN: permutation equivariant neural functionals (Zhou et al. 2023, arXiv 2302.14040).

Shapes: n_l neurons in set l of the chain, K taps of a kernel, D width, F features, C context values, R raw outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import relu

from lopt.config import Pair
from lopt.errors import ConfigError, GraphError
from lopt.graph import ParameterGraph
from lopt.metanets.base import Layers, LayersOrZero, Metanet, Size
from lopt.metanets.layers import ChannelNorm, Pointwise, ScalarNet
from lopt.metanets.published.chain import EquivariantLinear, Link, SharedLinear, chain_of, chain_slots
from lopt.metanets.published.positions import position_codes
from lopt.metanets.published.wiring import SLOTS, WireEncoder, WireHead, Wiring, copied, wiring_of

Depth = Annotated[int, Field(ge=1, le=16)]
"""Layers of the networks that it reads; the coefficients are as many as the square of it."""


class Nfn(Metanet):
    """Layers of all equivariant linear maps between the weights w_l and biases v_l of a chain, with relu between:

        w_l'[j, k] = a w_l[j, k] + mean terms over j, over k and over both of w_l
                     + terms of w_(l+1)[., j], w_(l-1)[k, .], v_l[j], v_(l-1)[k] and of every tensor's mean
        v_l'[j]    = a v_l[j] + terms of w_l[j, .], w_(l+1)[., j] and of every tensor's mean

    symmetry "np" lets inputs and outputs permute like all neurons ("neuron permutation"); "hnp" keeps them in
    place ("hidden neuron permutation"): they become channels, so that the weights are for n_0 inputs and n_L
    outputs alone, as many as the square of `ends` = (n_0, n_L).

    depth: the number L of layers. Each has coefficients of its own then, as in the paper. Without it (np only) all
    layers share theirs, and a chain of any depth will do. taps: the most kernel taps (or positions behind a
    flatten); they are channels of the first and last map.

    positions: whether a weight is told where its input and its output are, and a bias where its neuron is: inputs and
    outputs of the network one by one, hidden neurons by layer. scalar_layers: hidden layers of a network for each
    scalar that reads its own features beside what its weight w_l' or bias v_l' has become, the same for all taps
    (`ScalarNet`), as Neural Graphs' optimizers have it; 0: raw outputs are linear in that.

    norms: whether each relu takes the layer norm over the channels of every weight and bias, as the authors' code can
    have it. Means tell everybody of what all scalars share, and without norms the answer has no bound: an optimizer
    that lengthens its steps where gradients are small next to their past does so the more the more neurons fall
    silent, which longer steps are what makes them.

    Raises `GraphError` on a network that is no chain of linear or convolution layers, or of another depth or ends.
    """

    def __init__(
        self,
        features: int,
        context: int,
        outputs: int,
        width: Size = 16,
        layers: Layers = 2,
        symmetry: Literal["np", "hnp"] = "np",
        depth: Depth | None = None,
        ends: Pair[Size] | None = None,
        taps: Size = SLOTS,
        positions: bool = False,
        scalar_layers: LayersOrZero = 0,
        norms: bool = False,
    ) -> None:
        super().__init__()
        _check_symmetry(symmetry, depth, ends, norms)
        self.depth, self.ends, self.taps = depth, None if ends is None else (ends[0], ends[1]), taps
        self.encode = nn.ModuleList(WireEncoder(features, context, width, slots) for slots in (taps, 1))
        self.layers = nn.ModuleList(
            SharedLinear(width)
            if depth is None
            else EquivariantLinear(chain_slots(depth, width, width, self.ends))
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(layers * norms))
        self.width = width
        self.codes = nn.ModuleList(Pointwise(width, width, bias=False) for _ in range(3 * positions))
        self.heads = nn.ModuleList(
            WireHead(width, outputs, slots) for slots in ((taps, 1) if not scalar_layers else ())
        )
        self.scalars = ScalarNet(features, width, width, scalar_layers, outputs) if scalar_layers else None

    def prepare(self, graph: ParameterGraph) -> None:
        self._check(chain_of(graph, self.taps))
        if self.codes:
            position_codes(wiring_of(graph, self.taps), self.width)

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        links = chain_of(graph, self.taps)
        self._check(links)
        wiring = wiring_of(graph, self.taps)
        values = self._encoded(links, wiring.parts(features), context)
        if self.codes:
            values = self._placed(wiring, links, values)
        shapes = [value.shape for value in values]
        values = values if self.ends is None else [fold(v, i, len(links)) for i, v in enumerate(values)]
        for index, layer in enumerate(self.layers):
            values = layer(values)
            values = [relu(self.norms[index](value) if self.norms else value) for value in values]
        if self.ends is not None:
            values = [unfold(v, i, shape) for i, (v, shape) in enumerate(zip(values, shapes, strict=True))]
        if self.scalars is None:
            return wiring.join(self._decoded(links, values)), None
        read: dict[int, Tensor] = {}
        for link, weight, bias in zip(links, values[::2], values[1::2], strict=True):
            read |= copied([link.weight], self.scalars.read(weight.flatten(1)))
            read |= copied([link.bias], self.scalars.read(bias)) if link.bias else {}
        return self.scalars(features, wiring.join(read)), None

    def _check(self, links: tuple[Link, ...]) -> None:
        if self.depth is not None and len(links) != self.depth:
            raise GraphError(f"this metanet is for chains of {self.depth} layers, found one of {len(links)}")
        ends = (links[0].weight.grid[1], links[-1].weight.grid[0])
        if self.ends is not None and ends != self.ends:
            raise GraphError(f"this metanet is for {self.ends} inputs and outputs, found {ends}")

    def _encoded(self, links: tuple[Link, ...], parts: Sequence[Tensor], context: Tensor) -> list[Tensor]:
        """(D, n_(l+1), n_l) and (D, n_(l+1)) of each layer; zeros for a bias that is not there."""
        values = []
        for link in links:
            targets, sources, _ = link.weight.grid
            weight = self.encode[0]([link.weight], parts, context).reshape(-1, targets, sources)
            bias = weight.new_zeros(weight.shape[:2])
            values += [weight, bias if link.bias is None else self.encode[1]([link.bias], parts, context)]
        return values

    def _placed(self, wiring: Wiring, links: tuple[Link, ...], values: list[Tensor]) -> list[Tensor]:
        """Values with codes of where they are."""
        codes = position_codes(wiring, self.width).to(values[0])
        of_targets, of_sources, of_neurons = (layer(codes) for layer in self.codes)
        placed = []
        for link, weight, bias in zip(links, values[::2], values[1::2], strict=True):
            target, source = link.weight.target, link.weight.source
            placed.append(weight + of_targets[:, target, None] + of_sources[:, None, source])
            placed.append(bias + of_neurons[:, target])
        return placed

    def _decoded(self, links: tuple[Link, ...], values: list[Tensor]) -> dict[int, Tensor]:
        raw: dict[int, Tensor] = {}
        for index, link in enumerate(links):
            raw.update(self.heads[0]([link.weight], values[2 * index].flatten(1)))
            if link.bias is not None:
                raw.update(self.heads[1]([link.bias], values[2 * index + 1]))
        return raw


def _check_symmetry(symmetry: str, depth: int | None, ends: tuple[int, int] | None, norms: bool) -> None:
    if norms and symmetry == "hnp":
        raise ConfigError(
            "metanet: norms belong to symmetry np, found them with hnp, where ends are channels, too"
        )
    if symmetry == "np" and ends is not None:
        raise ConfigError(f"metanet: ends belong to symmetry hnp, found {ends!r} with np")
    if symmetry == "hnp" and (depth is None or depth < 2 or ends is None):
        found = f"depth {depth!r} and ends {ends!r}"
        raise ConfigError(
            f"metanet: hnp needs a depth of at least 2, and ends (inputs, outputs), found {found}"
        )


def fold(value: Tensor, index: int, depth: int) -> Tensor:
    """A weight or bias of the chain with the inputs and outputs moved into the channels."""
    if index == 0:
        return value.permute(0, 2, 1).flatten(0, 1)
    return value.flatten(0, 1) if index >= 2 * depth - 2 else value


def unfold(value: Tensor, index: int, shape: torch.Size) -> Tensor:
    """The inverse of `fold`."""
    if index == 0:
        return value.reshape(shape[0], shape[2], shape[1]).permute(0, 2, 1)
    return value.reshape(shape)
