"""Editors that take learned steps: equivariant, the rule's own steps, learned through, one file, clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lopt.cli import main
from lopt.errors import ConfigError
from lopt.weight_space.editing import fit_editor, imagined_error, load_editor, make_editor, rendered_error
from lopt.weight_space.fitting import FitOptions, fit, mean_loss
from lopt.weight_space.making import images_of, make
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.sirens import RECIPES, Recipe, SirenShape, grid, initial, render
from lopt.weight_space.sirens import fit as fit_sirens
from lopt.weight_space.stepping import STEPPERS, Stepper
from lopt.weight_space.symmetries import canonical
from tests.helpers import seeded

SHAPE = SirenShape(sizes=(2, 5, 5, 1))
PIXELS = (6, 7)


def networks(params: dict[str, Tensor], shape: SirenShape = SHAPE) -> NetworkSet:
    return NetworkSet(
        params, {}, torch.zeros(len(params["layers.0.bias"])), {"architecture": shape.model_dump()}
    )


def fresh(count: int = 3) -> dict[str, Tensor]:
    return {name: value.double() for name, value in initial(SHAPE, RECIPES["siren300"], range(count)).items()}


def learned(name: str, steps: int = 3) -> Stepper:
    """One whose meta-parameters have all moved from where they begin."""
    torch.manual_seed(0)
    stepper = Stepper(networks(fresh()), name, steps, PIXELS).double()
    with torch.no_grad():
        for parameter in stepper.rule.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=seeded(1)).double()
    return stepper


@pytest.mark.parametrize("name", STEPPERS)
def test_steps_of_permuted_networks_are_permuted_steps(name: str) -> None:
    stepper, params = learned(name), fresh()
    graph = stepper.graph
    permutation = graph.random_permutation(seeded(1))

    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        each = [graph.permute({n: p[i] for n, p in tensors.items()}, permutation) for i in range(3)]
        return {n: torch.stack([one[n] for one in each]) for n in tensors}

    edited, of_moved = stepper(params), stepper(moved(params))
    for parameter, value in moved({n: p[:, 0] for n, p in edited.items()}).items():
        assert (of_moved[parameter][:, 0] - value).abs().max() < 1e-9
    assert (of_moved["layers.1.weight"] - edited["layers.1.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["adam", "nfn_np"])
def test_they_are_what_the_rule_does_to_each_network_by_itself(name: str) -> None:
    stepper, params = learned(name), canonical(SHAPE, fresh())
    wanted, bound = stepper.imagined(params), stepper.rule.on(stepper.graph)
    edited, model = stepper(params), SHAPE.build().double()
    for number in range(3):
        one = {n: p[number].clone().requires_grad_() for n, p in params.items()}
        state = bound.init(one, 3.0)
        for _ in range(3):
            error = (
                (functional_call(model, one, (grid(*PIXELS).double(),)).T - wanted[number]).square().mean()
            )
            grads = dict(zip(one, torch.autograd.grad(error, list(one.values())), strict=True))
            with torch.no_grad():
                one, state = bound.update(grads, state, one)
            one = {n: p.detach().requires_grad_() for n, p in one.items()}
        for n, p in one.items():
            torch.testing.assert_close(edited[n][number, 0], p.detach(), rtol=1e-9, atol=1e-9)


def test_it_learns_through_all_steps() -> None:
    stepper, params = learned("mlp"), fresh()
    wanted, points = torch.rand(3, 1, 42, generator=seeded(2)).double(), grid(*PIXELS).double()

    def loss() -> Tensor:
        return (stepper.rendered(params, points) - wanted).square().mean()

    loss().backward()  # type: ignore[no-untyped-call]
    assert stepper.imagines[4].bias.grad is None, "that learns first, from what is wanted"
    for parameter in (stepper.rule.log_rate, stepper.rule.metanet.head.bias):
        assert isinstance(parameter, Tensor)
        assert parameter.grad is not None
        slope, step = parameter.grad.flatten()[0].item(), 1e-6
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[0] += sign * step
                sides.append(loss().item())
                parameter.view(-1)[0] -= sign * step
        assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-4)
        assert slope != 0


def test_only_a_rate_is_learned_of_adam() -> None:
    stepper = Stepper(networks(fresh()), "adam", 2, PIXELS)
    moving = {name for name, parameter in stepper.rule.named_parameters() if parameter.requires_grad}
    assert "log_rate" in moving
    assert not [name for name in moving if name.startswith("metanet")]


def test_more_steps_show_more_of_what_was_meant() -> None:
    images = torch.rand(32, 1, 42, generator=seeded(0))
    params, _ = fit_sirens(SHAPE, Recipe(steps=60), list(range(32)), grid(*PIXELS), 2 * images - 1)
    data, wanted = networks(params), 0.5 * images
    error, found = rendered_error(grid(*PIXELS)), []
    unedited = ((render(SHAPE, params, grid(*PIXELS)) + 1) / 2 - wanted).square().mean().item()
    for steps in (1, 4):
        torch.manual_seed(0)
        stepper = make_editor(data, "mlp", steps=steps, pixels=PIXELS)
        options = FitOptions(passes=32 * 40, batch=32, lr=4e-3)
        imagined = fit(stepper, data, wanted, options.but(lr=1e-2), loss=imagined_error())
        assert imagined.losses[-1] < 0.3 * imagined.losses[0]
        fit(stepper, data, wanted, options, loss=error)
        found.append(mean_loss(stepper, data, wanted, error))
    assert found[1] < 0.7 * found[0] < 0.7 * unedited


def test_one_is_a_file_that_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "siren300", Recipe(steps=2))
    siren, editor = tmp_path / "sirens.safetensors", tmp_path / "editor.safetensors"
    made = make("inr-digits", "siren300", 16, siren)
    command = ["weights", "train", str(siren), "--passes", "24", "--out", str(editor), "--steps", "2"]
    assert main(command) == 2
    assert "--steps: expected it beside --edit alone, found 2" in capsys.readouterr().err
    assert main([*command, "--edit", "contrast", "--reader", "ng_t", "--probes", "4"]) == 2
    assert "with 2 steps: expected one copy and no probes, found 1 and 4" in capsys.readouterr().err
    assert main([*command, "--edit", "contrast", "--reader", "statnn"]) == 2
    assert "editor with steps: expected one of adam, mlp, ng_gnn" in capsys.readouterr().err
    assert main([*command, "--edit", "contrast", "--reader", "mlp"]) == 0
    state = {name: value[3].clone() for name, value in made.params.items()}
    loaded = load_editor(editor)
    assert isinstance(loaded, Stepper)
    assert fit_editor(loaded, made, images_of(made), "contrast", loaded.usual.but(passes=16)).ms > 0
    (edited,) = loaded.edit(state)
    assert any(not torch.equal(edited[name], state[name]) for name in state)
    loaded.save(tmp_path / "again.safetensors", "contrast")
    (again,) = load_editor(tmp_path / "again.safetensors").edit(state)
    assert all(torch.equal(value, again[name]) for name, value in edited.items())


def test_networks_of_no_image_are_refused() -> None:
    line = SirenShape(sizes=(1, 5, 1))
    params = initial(line, RECIPES["siren300"], range(2))
    with pytest.raises(
        ConfigError, match=r"expected a height and a width in pixels, .* found \(6, 7\) and 1"
    ):
        Stepper(networks(params, line), "mlp", 2, PIXELS)
