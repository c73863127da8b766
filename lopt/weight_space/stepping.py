"""Editing by learned steps: lopt's rule trains a SIREN, for a few steps, towards an image that it has imagined.

    editor = Stepper(networks, "nfn_np", steps=8, pixels=(28, 28))
    edited = editor(test.params)                                     # parameters of the edited networks (B, 1, *shape)

An editor that looks once has to guess what a change of weights does to the image. This one is told: gradients say it.
Shapes: B networks, C channels, M pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lopt.errors import ConfigError
from lopt.inner.step import Networks, each_its_own, with_own
from lopt.metanets import METANETS
from lopt.rules import LearnedRule, LearnedRuleConfig, State
from lopt.weight_space.editors import SirenEditor
from lopt.weight_space.fitting import FitOptions
from lopt.weight_space.network_set import NetworkSet, Tensors
from lopt.weight_space.sirens import SirenShape, grid, render
from lopt.weight_space.symmetries import canonical
from lopt.weight_space.systems import METANET_READERS, Options

ADAM = "adam"
STEPPERS: dict[str, tuple[str, Options]] = {
    **dict.fromkeys((ADAM, "mlp"), ("mlp", lambda graph: {})),
    **METANET_READERS,
}
"""The metanet of the rule, and its options. Of `ADAM`, which all of them are before training, the rate alone learns."""

FEW = LearnedRuleConfig(rate=3e-3, decays=(0.5, 0.8, 0.9), second_decay=0.9, max_step=2.0)
"""A rule that has only a few steps: short memories, and long steps if it wants them."""
STEPPING = FitOptions(batch=16, lr=4e-3)
"""Of a training: at twice the rate it is unsteady, and at half of it behind."""
WIDTH = 16
"""Channels of what imagines."""


class Stepper(SirenEditor):
    """theta <- theta + rule's step for mean (f_theta(x) - y)^2 over the pixels x, K times.

    y = f(x) + c(f(x), mean f): the image that is shown before, and what three convolutions c make of it and its mean.
    They learn first, by themselves; then the rule's meta-parameters, through all steps, from what is shown in the end.
    steps: K, the rule's horizon, too. pixels: height and width of the image.
    Raises `ConfigError` for another name than those of `STEPPERS`, or for networks of no image.
    """

    usual = STEPPING
    points: Tensor

    def __init__(self, networks: NetworkSet, name: str, steps: int, pixels: Sequence[int]) -> None:
        super().__init__()
        if name not in STEPPERS:
            raise ConfigError(f"editor with steps: expected one of {', '.join(STEPPERS)}, found {name!r}")
        self.shape = SirenShape(**networks.header["architecture"])
        if len(pixels) != 2 or self.shape.sizes[0] != 2:
            raise ConfigError(
                "editor with steps: expected a height and a width in pixels, and networks of images with two inputs,"
                f" found {tuple(pixels)} and {self.shape.sizes[0]}"
            )
        self.steps, self.pixels = steps, tuple(pixels)
        self.made = {"reader": name, "steps": steps, "pixels": self.pixels}
        metanet, options = STEPPERS[name]
        chosen = METANETS.choose({"name": metanet, **options(self.graph)})
        self.rule = LearnedRule(FEW.but(metanet=chosen))
        self.rule.metanet.requires_grad_(name != ADAM)
        channels = self.shape.sizes[-1]
        self.imagines = nn.Sequential(
            nn.Conv2d(2 * channels, WIDTH, 3, padding=1), nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(),
            nn.Conv2d(WIDTH, channels, 3, padding=1),
        )  # fmt: skip
        self.register_buffer("points", grid(*self.pixels), persistent=False)

    def forward(self, params: Tensors) -> Tensors:
        params = canonical(self.shape, params)
        wanted, rule = self.imagined(params).detach(), self.rule.on(self.graph)
        networks = Networks(params, torch.vmap(lambda one: rule.init(one, float(self.steps)))(params))
        own = each_its_own(rule, networks)

        def step(own: Tensors, params: Tensors, state: State, wanted: Tensor) -> tuple[Tensors, State]:
            return with_own(rule, own).update(torch.func.grad(self._error)(params, wanted), state, params)

        for _ in range(self.steps):
            networks = Networks(*torch.vmap(step)(own, *networks, wanted))
        return {name: value[:, None] for name, value in networks.params.items()}

    def imagined(self, params: Tensors) -> Tensor:
        """(B, C, M): what edited networks are to show."""
        shown = render(self.shape, params, self.points)
        told = torch.cat([shown, shown.mean(-1, keepdim=True).expand_as(shown)], 1)
        changes: Tensor = self.imagines(told.unflatten(-1, self.pixels))
        return shown + changes.flatten(2)

    def _error(self, params: Tensors, wanted: Tensor) -> Tensor:
        """Of one network, with (C, M)."""
        shown = render(self.shape, {name: value[None] for name, value in params.items()}, self.points)
        return (shown[0] - wanted).square().mean()
