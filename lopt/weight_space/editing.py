"""Editing networks: a metanet changes the weights of a SIREN so that its image changes as wanted.

    editor = Editor(networks, "nfn_np")
    fit(editor, networks, dilated(images).flatten(2), EDITING, loss=rendered_error(grid(28, 28)))
    edited = editor(test.params)                                     # parameters of the edited networks
    editor.save("dilate.safetensors", "dilate")
    load_editor("dilate.safetensors").edit("mine.safetensors")

Shapes: B networks, K copies, C channels, M points, N neurons.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lopt.errors import ConfigError
from lopt.files import user_path
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space import trained
from lopt.weight_space.architecture import architecture
from lopt.weight_space.features import FeatureOptions
from lopt.weight_space.fitting import FitOptions, Fitted, Loss, fit
from lopt.weight_space.listening import Listener, awaken
from lopt.weight_space.network_set import SPLITS, Network, NetworkSet, Tensors
from lopt.weight_space.probes import probe_each
from lopt.weight_space.readers import PROBED, ProbeInputs, scales_of
from lopt.weight_space.sirens import SirenShape, grid, render
from lopt.weight_space.symmetries import canonical
from lopt.weight_space.systems import METANET_READERS

FIRST_SCALE = 0.01
EDITING = FitOptions(batch=16, lr=8e-3)
"""Of a training: in as many passes more and longer steps teach an editor more, whose scales must grow tenfold."""


class Editor(Listener):
    """theta' = theta + s rms out(theta), with s of its own for every tensor, .01 at first, and rms over a training set.

    theta is in its canonical form, which is the same function. copies: K edited networks, whose mean is meant: wider
    than what was edited, they can show what it could not (Dayan et al. 2026, arXiv 2602.01083).
    probes: learned points at which a metanet in `PROBED` is told what every neuron says.
    """

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
        self.name, self.shape, self.graph = name, shape, graph
        awaken(self.metanet)
        self.scale = nn.Parameter(torch.full((copies, len(scales)), FIRST_SCALE))
        self.probes = ProbeInputs(of.examples(probes), "learned") if probes else None

    def edit(self, network: Network) -> list[Tensors]:
        """The K edited networks of a model, a state dict or a file, as state dicts.

        Raises `ConfigError` for a network of another architecture.
        """
        state = self._described("").state_of(network)
        with torch.no_grad():
            edited = self({name: value[None] for name, value in state.items()})
        return [{name: value[0, k] for name, value in edited.items()} for k in range(len(self.scale))]

    def save(self, path: str | os.PathLike[str], target: str, card: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file, atomically. target: what the edit is called."""
        trained.write(path, self, self._described(target, card), None)

    def _described(self, target: str, card: Mapping[str, Any] | None = None) -> trained.Description:
        return trained.Description(
            kind="editor", target=target, reader=self.name, copies=len(self.scale), card=dict(card or {}),
            probes=0 if self.probes is None else self.probes.count,
            shapes={name: spec.shape for name, spec in self.graph.parameters.items()},
            architecture=self.shape.model_dump(mode="json"),
        )  # fmt: skip

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
        return probe_each(architecture(self.shape).runnable, self.graph, self.probes(), params)

    def rendered(self, params: Tensors, points: Tensor) -> Tensor:
        """(B, C, M): what the edited networks show, the mean over the copies."""
        edited = self(params)
        count, copies = next(iter(edited.values())).shape[:2]
        flat = {name: value.flatten(0, 1) for name, value in edited.items()}
        return render(self.shape, flat, points).unflatten(0, (count, copies)).mean(1)


@torchs_defaults()
def load_editor(path: str | os.PathLike[str]) -> Editor:
    """What `Editor.save` wrote. Raises `RuleFileError` if there is none, or if it is damaged or something else."""
    found = user_path(path)
    tensors, description, _ = trained.read(found, "editor")
    with torch.random.fork_rng(devices=[]):
        made = Editor(description.like(None), description.reader, description.copies, description.probes)
    return trained.filled(found, made, tensors)


def train_editor(
    networks: NetworkSet,
    images: Tensor,
    edit: str,
    name: str = "nfn_np",
    options: FitOptions | None = None,
    copies: int = 1,
    probes: int = 0,
) -> Editor:
    """Train an editor on networks and the images (N, C, H, W) that they are of, so that they show the edited ones.

    name, copies, probes: of the `Editor`. Raises `ConfigError` for an edit that is not among `EDITS`, an unknown name,
    or probes of a metanet that reads none.
    """
    return fit_editor(networks, images, edit, name, options, copies, probes)[0]


def fit_editor(
    networks: NetworkSet,
    images: Tensor,
    edit: str,
    name: str = "nfn_np",
    options: FitOptions | None = None,
    copies: int = 1,
    probes: int = 0,
) -> tuple[Editor, Fitted]:
    """`train_editor`, with what became of the training."""
    options = options or EDITING
    wanted = {split: edited_images(networks, images, edit, split) for split in ("train", "validation")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        editor = Editor(networks.split("train"), name, copies, probes)
        fitted = fit(
            editor, networks.split("train"), wanted["train"], options,
            (networks.split("validation"), wanted["validation"]),
            loss=error_of(networks, images), desc=f"{name}: {edit}",
        )  # fmt: skip
    return editor, fitted


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

    def error(editor: nn.Module, params: Tensors, wanted: Tensor) -> Tensor:
        shown = (cast(Editor, editor).rendered(params, points) - low) / (1 - low)
        return (shown - wanted).square().mean()

    return error


def dilated(images: Tensor) -> Tensor:
    """Images (N, C, H, W) whose every pixel is the brightest of the nine around it."""
    return nn.functional.max_pool2d(images, 3, stride=1, padding=1)


EDITS = {"dilate": dilated}
"""Of images; networks are edited to show what becomes of theirs."""
