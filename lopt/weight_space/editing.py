"""Editing networks: a metanet changes the weights of a SIREN so that its image changes as wanted.

    editor = Editor(networks, "nfn_np")
    fit(editor, networks, dilated(images).flatten(2), EDITING, loss=rendered_error(grid(28, 28)))
    edited = editor(test.params)                                     # parameters of the edited networks
    editor.save("dilate.safetensors", "dilate")
    load_editor("dilate.safetensors").edit("mine.safetensors")

Editors look at a network once, or train it for a few learned steps (`lopt.weight_space.stepping`).
Shapes: B networks, K copies, C channels, M points, N neurons.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from lopt.errors import ConfigError
from lopt.files import user_path
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space import trained
from lopt.weight_space.architecture import architecture
from lopt.weight_space.editors import SirenEditor
from lopt.weight_space.features import FeatureOptions
from lopt.weight_space.fitting import FitOptions, Fitted, Loss, fit
from lopt.weight_space.listening import Listener, awaken
from lopt.weight_space.network_set import SPLITS, NetworkSet, Tensors
from lopt.weight_space.probes import probe_each
from lopt.weight_space.readers import PROBED, ProbeInputs, scales_of
from lopt.weight_space.sirens import SirenShape, grid
from lopt.weight_space.stepping import Stepper
from lopt.weight_space.symmetries import canonical
from lopt.weight_space.systems import METANET_READERS

FIRST_SCALE = 0.01
FIRST = 5
"""Passes in which a `Stepper` learns what to imagine, for each of its rule's: they cost a thirtieth."""
EDITING = FitOptions(batch=16, lr=8e-3)
"""Of a training: in as many passes more and longer steps teach an editor more, whose scales must grow tenfold."""


class Editor(Listener, SirenEditor):
    """theta' = theta + s rms out(theta), with s of its own for every tensor, .01 at first, and rms over a training set.

    theta is in its canonical form, which is the same function. copies: K edited networks, whose mean is meant: wider
    than what was edited, they can show what it could not (Dayan et al. 2026, arXiv 2602.01083).
    probes: learned points at which a metanet in `PROBED` is told what every neuron says.
    """

    usual = EDITING

    def __init__(self, networks: NetworkSet, name: str, copies: int = 1, probes: int = 0) -> None:
        if name not in METANET_READERS:
            raise ConfigError(f"editor: expected one of {', '.join(METANET_READERS)}, found {name!r}")
        if probes and name not in PROBED:
            raise ConfigError(
                f"editor {name}: expected no probes, found {probes}; {' and '.join(PROBED)} read them"
            )
        metanet, options = METANET_READERS[name]
        shape = SirenShape(**networks.header["architecture"])
        of = architecture(shape)
        graph, scales = of.graph, scales_of(canonical(shape, networks.params))
        super().__init__(
            metanet,
            copies,
            {**options(graph), **({"probes": probes} if probes else {})},
            FeatureOptions(frequencies=4, places=True, w0=shape.w0),
            {name: scales[name] for name in graph.parameters},
        )
        self.shape = shape
        self.made = {"reader": name, "copies": copies, "probes": probes}
        awaken(self.metanet)
        self.scale = nn.Parameter(torch.full((copies, len(scales)), FIRST_SCALE))
        self.probes = ProbeInputs(of.examples(probes), "learned") if probes else None

    def forward(self, params: Tensors) -> Tensors:
        """Parameters (B, *shape) of networks -> those of the edited ones, (B, K, *shape)."""
        params = canonical(self.shape, params)
        changes = self.graph.unflatten(self.heard(self.graph, params, self._neurons(params)).movedim(1, 0))
        edited = {}
        for name, scale in zip(self.graph.parameters, (self.scale * self.features.scales).T, strict=True):
            each = scale.reshape(-1, *[1] * (params[name].dim() - 1))
            edited[name] = params[name][:, None] + each * changes[name]
        return edited

    def _neurons(self, params: Tensors) -> Tensor | None:
        """(M, B, N): what neurons say at the probes, if there are any."""
        if self.probes is None:
            return None
        return probe_each(self.of.runnable, self.graph, self.probes(), params)


@torchs_defaults()
def make_editor(
    networks: NetworkSet,
    name: str,
    copies: int = 1,
    probes: int = 0,
    steps: int = 0,
    pixels: Sequence[int] = (),
) -> SirenEditor:
    """A fresh `Editor` of networks such as these, or with steps a `Stepper`.

    Raises `ConfigError` for names that they do not know, and for copies or probes beside steps.
    """
    if not steps:
        return Editor(networks, name, copies, probes)
    if copies > 1 or probes:
        raise ConfigError(
            f"editor {name} with {steps} steps: expected one copy and no probes, found {copies} and {probes}; its"
            " steps are told what the network shows at every pixel"
        )
    return Stepper(networks, name, steps, pixels)


@torchs_defaults()
def load_editor(path: str | os.PathLike[str]) -> SirenEditor:
    """What `SirenEditor.save` wrote. Raises `RuleFileError` if there is none, or if it is damaged or something else."""
    found = user_path(path)
    tensors, of, _ = trained.read(found, "editor")
    with torch.random.fork_rng(devices=[]):
        made = make_editor(of.like(None), of.reader, of.copies, of.probes, of.steps, of.pixels)
    return trained.filled(found, made, tensors)


def train_editor(
    networks: NetworkSet,
    images: Tensor,
    edit: str,
    name: str = "nfn_np",
    options: FitOptions | None = None,
    copies: int = 1,
    probes: int = 0,
    steps: int = 0,
) -> SirenEditor:
    """Train an editor on networks and the images (N, C, H, W) that they are of, so that they show the edited ones.

    name, copies, probes, steps: as `make_editor` has them. Raises `ConfigError` for an edit that is not among `EDITS`,
    and what `make_editor` does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed if options else 0)
        editor = make_editor(networks.split("train"), name, copies, probes, steps, images.shape[2:])
        fit_editor(editor, networks, images, edit, options)
    return editor


@torchs_defaults()
def fit_editor(
    editor: SirenEditor, networks: NetworkSet, images: Tensor, edit: str, options: FitOptions | None = None
) -> Fitted:
    """Train an editor, by default as its `usual` options say, and tell what became of it; else as `train_editor`."""
    options = options or editor.usual
    train, held_out = (
        (networks.split(split), edited_images(networks, images, edit, split))
        for split in ("train", "validation")
    )
    name, before = f"{editor.made['reader']}: {edit}", 0.0
    if isinstance(editor, Stepper):
        first = options.but(passes=FIRST * options.passes)
        loss = imagined_error(networks.header["recipe"]["low"])
        before = fit(editor, *train, first, held_out, loss=loss, desc=f"{name}, imagined").seconds
    found = fit(editor, *train, options, held_out, loss=error_of(networks, images), desc=name)
    return replace(found, seconds=before + found.seconds)


def edited_images(networks: NetworkSet, images: Tensor, edit: str, split: str) -> Tensor:
    """(B, C, M): what the networks of a split are to show. Raises `ConfigError` for an edit not among `EDITS`."""
    if edit not in EDITS:
        raise ConfigError(f"edit: expected one of {', '.join(EDITS)}, found {edit!r}")
    return EDITS[edit](images)[networks.splits == SPLITS.index(split)].flatten(2)


def error_of(networks: NetworkSet, images: Tensor) -> Loss:
    """`rendered_error` for networks of `make` and the images (N, C, H, W) that they are of."""
    return rendered_error(grid(*images.shape[2:]), networks.header["recipe"]["low"])


def rendered_error(points: Tensor, low: float = -1.0) -> Loss:
    """For `fit`: the mean squared error of what is rendered to images (B, C, M) of pixels from 0 to 1.

    low: what black is to the networks; white is 1.
    """
    return _error(lambda editor, params: cast(SirenEditor, editor).rendered(params, points), low)


def imagined_error(low: float = -1.0) -> Loss:
    """For `fit`, of a `Stepper`: that of what it imagines; else as `rendered_error`."""
    return _error(lambda editor, params: cast(Stepper, editor).imagined(params), low)


def _error(shown: Callable[[nn.Module, Tensors], Tensor], low: float) -> Loss:
    return lambda editor, params, wanted: ((shown(editor, params) - low) / (1 - low) - wanted).square().mean()


def dilated(images: Tensor) -> Tensor:
    """Images (N, C, H, W) whose every pixel is the brightest of the nine around it."""
    return nn.functional.max_pool2d(images, 3, stride=1, padding=1)


def contrasted(images: Tensor) -> Tensor:
    """Images (N, C, H, W) whose every value is half as far again from the image's mean, within 0 and 1."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + 1.5 * (images - mean)).clamp(0, 1)


EDITS = {"dilate": dilated, "contrast": contrasted}
"""Of images; networks are edited to show what becomes of theirs."""
