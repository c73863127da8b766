"""Implicit networks fitted side by side: the gradient by hand, each as if alone, and symmetries that change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.weight_space.sirens import RECIPES, Recipe, SirenShape, fit, gradient, grid, initial, render
from lopt.weight_space.symmetries import Views, canonical, flipped
from tests.helpers import seeded

SHAPE = SirenShape(sizes=(2, 6, 5, 3), offset=0.5)
POINTS = grid(4, 5).double()


def networks(seeds: range = range(4), recipe: str = "siren300") -> dict[str, Tensor]:
    return {name: value.double() for name, value in initial(SHAPE, RECIPES[recipe], list(seeds)).items()}


def largest(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


def test_render_is_what_the_modules_put_out() -> None:
    params = networks()
    module = SHAPE.build().double()
    for index, image in enumerate(render(SHAPE, params, POINTS)):
        module.load_state_dict({name: value[index] for name, value in params.items()})
        torch.testing.assert_close(module(POINTS).T, image)


def test_the_gradient_equals_autograd() -> None:
    params, targets = networks(), torch.rand(4, 3, 20, generator=seeded(0)).double()
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    (render(SHAPE, leaves, POINTS) - targets).square().mean((1, 2)).sum().backward()
    for name, found in gradient(SHAPE, params, POINTS, targets).items():
        torch.testing.assert_close(found, leaves[name].grad)


def test_each_is_fitted_by_adam_as_if_alone() -> None:
    recipe = Recipe(steps=20, offset=0.5)
    targets = torch.rand(6, 3, 20, generator=seeded(0))
    together, psnr = fit(SHAPE, recipe, list(range(6)), POINTS.float(), targets)
    module = SHAPE.build()
    module.load_state_dict({name: value[0] for name, value in initial(SHAPE, recipe, [5]).items()})
    optimizer = torch.optim.Adam(module.parameters(), lr=recipe.lr)
    for _ in range(recipe.steps):
        loss = (module(POINTS.float()).T - targets[5]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in module.named_parameters():
        torch.testing.assert_close(together[name][5], value.detach(), rtol=1e-3, atol=1e-4)
    error = (module(POINTS.float()).T - targets[5]).square().mean().item()
    assert psnr[5].item() == pytest.approx(10 * math.log10(4 / error), abs=0.05)


def test_initial_weights_are_within_the_recipes_bounds_and_differ_by_seed() -> None:
    for recipe, first, last, bias in (("siren300", 1 / 2, math.sqrt(6 / 5) / 30, 1 / math.sqrt(2)),
                                      ("dws", math.sqrt(3) / 30, 1 / math.sqrt(5), 0.0)):  # fmt: skip
        params = networks(range(200), recipe)
        for name, bound in (("layers.0.weight", first), ("layers.2.weight", last), ("layers.0.bias", bias)):
            assert 0.97 * bound <= params[name].abs().max() <= bound
    again = networks(range(3, 5))
    torch.testing.assert_close(again["layers.1.weight"][0], networks()["layers.1.weight"][3])
    assert largest(again["layers.1.weight"][0], again["layers.1.weight"][1]) > 0.03


@pytest.mark.parametrize("change", [canonical, flipped])
def test_symmetries_leave_every_function_as_it_is(change: object) -> None:
    params = networks()
    params["layers.0.bias"] = params["layers.0.bias"] * 40  # many windings
    changed = change(SHAPE, params)  # type: ignore[operator]
    assert largest(render(SHAPE, changed, POINTS), render(SHAPE, params, POINTS)) < 1e-9
    assert largest(changed["layers.1.weight"], params["layers.1.weight"]) > 0.03
    broken = {**changed, "layers.1.weight": params["layers.1.weight"]}
    assert largest(render(SHAPE, broken, POINTS), render(SHAPE, params, POINTS)) > 1e-2


def test_one_function_has_one_canonical_form() -> None:
    params = networks()
    found = canonical(SHAPE, params)
    for layer in (0, 1):
        phase = SHAPE.w0 * found[f"layers.{layer}.bias"]
        assert phase.min() >= 0
        assert phase.max() <= math.pi / 2
    wound = flipped(SHAPE, params, seeded(1))
    wound["layers.0.bias"] = wound["layers.0.bias"] + 3 * math.pi / SHAPE.w0
    wound["layers.1.weight"] = -wound["layers.1.weight"]
    for name, value in canonical(SHAPE, wound).items():
        assert largest(value, found[name]) < 1e-9, name


def test_views_are_of_the_same_image_from_elsewhere() -> None:
    params = networks()
    turned = Views(degrees=0, stretch=0, shear=0, shift=0.2)(SHAPE, params, seeded(0))
    moved = (turned["layers.0.bias"] - params["layers.0.bias"])[0]
    shift = torch.linalg.lstsq(params["layers.0.weight"][0], moved[:, None]).solution[:, 0]
    assert shift.abs().max() <= 0.2
    one = {name: value[:1] for name, value in params.items()}
    seen = render(SHAPE, {name: value[:1] for name, value in turned.items()}, POINTS)
    torch.testing.assert_close(seen, render(SHAPE, one, POINTS + shift))
    still = Views(degrees=0, stretch=0, shear=0, shift=0)(SHAPE, params)
    torch.testing.assert_close(still["layers.0.weight"], params["layers.0.weight"])


def test_mirrored_views_show_the_image_left_to_right() -> None:
    params, flat = networks(range(16)), Views(degrees=0, stretch=0, shear=0, shift=0, mirror=True)
    images = render(SHAPE, params, POINTS).unflatten(-1, (4, 5))
    seen = render(SHAPE, flat(SHAPE, params, seeded(0)), POINTS).unflatten(-1, (4, 5))
    mirrored = (seen - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-12
    same = (seen - images).abs().amax((1, 2, 3)) < 1e-12
    assert torch.equal(mirrored, ~same)
    assert 3 < mirrored.sum() < 13


def test_seeds_and_targets_must_be_as_many() -> None:
    with pytest.raises(ConfigError, match="as many seeds as targets, found 2 and 3"):
        fit(SHAPE, Recipe(steps=1), [0, 1], POINTS.float(), torch.zeros(3, 3, 20))
