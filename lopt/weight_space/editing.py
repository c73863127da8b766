"""Editing networks: a metanet changes the weights of a SIREN so that its image changes as wanted.

    editor = Editor(networks, "nfn_np")
    fit(editor, networks, dilated(images).flatten(2), loss=rendered_error(grid(28, 28)))
    edited = editor(test.params)                                     # parameters of the edited networks

Shapes: B networks, K copies, C channels, M points.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lopt.metanets import METANETS
from lopt.weight_space.architecture import architecture
from lopt.weight_space.features import CONTEXT, FeatureOptions, WeightFeatures
from lopt.weight_space.fitting import Loss
from lopt.weight_space.network_set import NetworkSet, Tensors
from lopt.weight_space.readers import awaken, scales_of
from lopt.weight_space.sirens import SirenShape, render
from lopt.weight_space.symmetries import canonical
from lopt.weight_space.systems import METANET_READERS

FIRST_SCALE = 0.01


class Editor(nn.Module):
    """theta' = theta + s rms out(theta), with s of its own for every tensor, .01 at first, and rms over a training set.

    theta is in its canonical form, which is the same function. copies: K edited networks, whose mean is meant: wider
    than what was edited, they can show what it could not (Dayan et al. 2026, arXiv 2602.01083).
    """

    def __init__(self, networks: NetworkSet, name: str, copies: int = 1) -> None:
        super().__init__()
        self.shape = SirenShape(**networks.header["architecture"])
        self.graph = architecture(self.shape).graph
        scales = scales_of(canonical(self.shape, networks.params))
        self.rms = {parameter: scales[parameter] for parameter in self.graph.parameters}
        options = FeatureOptions(frequencies=4, places=True, w0=self.shape.w0)
        self.features = WeightFeatures(options, self.rms)
        metanet, of = METANET_READERS[name]
        self.metanet = METANETS.make(
            METANETS.options(metanet)(**of(self.graph)),
            features=options.count,
            context=CONTEXT,
            outputs=copies,
        )
        awaken(self.metanet)
        self.scale = nn.Parameter(torch.full((copies, len(self.rms)), FIRST_SCALE))

    def forward(self, params: Tensors) -> Tensors:
        """Parameters (B, *shape) of networks -> those of the edited ones, (B, K, *shape)."""
        params = canonical(self.shape, params)
        changes = torch.vmap(self._changes)(params)
        edited = {}
        for index, (name, rms) in enumerate(self.rms.items()):
            scale = self.scale[:, index].reshape(-1, *[1] * (params[name].dim() - 1))
            edited[name] = params[name][:, None] + scale * rms * changes[name]
        return edited

    def _changes(self, params: Tensors) -> Tensors:
        said, _ = self.metanet(self.graph, *self.features(self.graph, params))
        return self.graph.unflatten(said)

    def rendered(self, params: Tensors, points: Tensor) -> Tensor:
        """(B, C, M): what the edited networks show, the mean over the copies."""
        edited = self(params)
        count, copies = next(iter(edited.values())).shape[:2]
        flat = {name: value.flatten(0, 1) for name, value in edited.items()}
        return render(self.shape, flat, points).unflatten(0, (count, copies)).mean(1)


def rendered_error(points: Tensor, low: float = -1.0) -> Loss:
    """For `fit`: the mean squared error of what is rendered to images (B, C, M) of pixels from 0 to 1.

    low: what black is to the networks; white is 1.
    """

    def error(editor: nn.Module, params: Tensors, wanted: Tensor) -> Tensor:
        shown = (cast(Editor, editor).rendered(params, points) - low) / (1 - low)
        return (shown - wanted).square().mean()

    return error


def dilated(images: Tensor) -> Tensor:
    """Images (N, C, H, W) whose every pixel is the brightest of the nine around it."""
    return nn.functional.max_pool2d(images, 3, stride=1, padding=1)
