"""Editors: equivariant, near the network at first, better than no edit after training, copies averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lopt.cli import main
from lopt.errors import ConfigError
from lopt.weight_space.editing import (
    Editor,
    contrasted,
    dilated,
    edited_images,
    error_of,
    fit_editor,
    load_editor,
    make_editor,
    rendered_error,
    train_editor,
)  # fmt: skip
from lopt.weight_space.fitting import FitOptions, fit, mean_loss
from lopt.weight_space.making import images_of, make
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.sirens import RECIPES, Recipe, SirenShape, grid, initial, render
from lopt.weight_space.sirens import fit as fit_sirens
from lopt.weight_space.systems import METANET_READERS
from tests.helpers import seeded

SHAPE = SirenShape(sizes=(2, 5, 5, 1))
POINTS = grid(6, 6)


def networks(params: dict[str, Tensor]) -> NetworkSet:
    return NetworkSet(
        params, {}, torch.zeros(len(params["layers.0.bias"])), {"architecture": SHAPE.model_dump()}
    )


def fresh(count: int = 4) -> dict[str, Tensor]:
    return {name: value.double() for name, value in initial(SHAPE, RECIPES["siren300"], range(count)).items()}


@pytest.mark.parametrize(
    ("name", "probes"), [*((name, 0) for name in METANET_READERS), ("ng_gnn", 3), ("ng_t", 3)]
)
def test_edits_of_permuted_networks_are_permuted_edits(name: str, probes: int) -> None:
    torch.manual_seed(0)
    params = fresh()
    editor = Editor(networks(params), name, copies=2, probes=probes).double()
    graph = editor.graph
    permutation = graph.random_permutation(seeded(1))

    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        count = len(next(iter(tensors.values())))
        each = [graph.permute({n: p[i] for n, p in tensors.items()}, permutation) for i in range(count)]
        return {n: torch.stack([one[n] for one in each]) for n in tensors}

    edited, of_moved = editor(params), editor(moved(params))
    for copy in range(2):
        expected = moved({n: p[:, copy] for n, p in edited.items()})
        for parameter, value in expected.items():
            assert (of_moved[parameter][:, copy] - value).abs().max() < 1e-9
    assert (of_moved["layers.1.weight"] - edited["layers.1.weight"]).abs().max() > 1e-3
    assert (edited["layers.1.weight"][:, 0] - edited["layers.1.weight"][:, 1]).abs().max() > 1e-6, (
        "copies differ"
    )


def test_without_a_change_it_shows_what_the_network_shows() -> None:
    params = fresh()
    editor = Editor(networks(params), "nfn_np", copies=3).double()
    torch.nn.init.zeros_(editor.scale)
    shown = editor.rendered(params, POINTS.double())
    torch.testing.assert_close(shown, render(SHAPE, params, POINTS.double()))


def test_probes_move_in_training_and_are_heard() -> None:
    torch.manual_seed(0)
    params = {name: value.float() for name, value in fresh().items()}
    editor = Editor(networks(params), "ng_t", probes=3)
    assert editor.probes is not None
    editor.rendered(params, POINTS).square().sum().backward()  # type: ignore[no-untyped-call]
    moved = editor.probes.codes.grad
    assert moved is not None
    assert moved.abs().min() > 0


def test_dilation_by_hand() -> None:
    image = torch.zeros(1, 1, 4, 5)
    image[0, 0, 0, 1] = 0.5
    expected = torch.zeros(4, 5)
    expected[:2, :3] = 0.5
    assert torch.equal(dilated(image)[0, 0], expected)


def test_contrast_by_hand() -> None:
    image = torch.tensor([0.1, 0.4, 0.6, 0.9]).reshape(1, 1, 2, 2)
    expected = torch.tensor([0.0, 0.35, 0.65, 1.0]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(contrasted(image), expected)


def test_an_editor_learns_to_change_what_is_shown() -> None:
    torch.manual_seed(0)
    images = torch.rand(32, 1, 36, generator=seeded(0))
    params, _ = fit_sirens(SHAPE, Recipe(steps=60), list(range(32)), POINTS, 2 * images - 1)
    data, wanted = networks(params), 0.5 * images
    error = rendered_error(POINTS)
    editor = Editor(data, "nfn_np")
    with torch.no_grad():
        torch.testing.assert_close(
            error(editor, params, (editor.rendered(params, POINTS) + 1) / 2), torch.tensor(0.0)
        )
    unedited = ((render(SHAPE, params, POINTS) + 1) / 2 - wanted).square().mean().item()
    fit(editor, data, wanted, FitOptions(passes=32 * 40, batch=32, lr=1e-2), loss=error)
    assert mean_loss(editor, data, wanted, error) < 0.7 * unedited


@pytest.mark.parametrize(("name", "steps"), [("deepsets", 0), ("mlp", 2)])
def test_a_trained_editor_is_what_its_training_came_to(
    name: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "siren300", Recipe(steps=2))
    made = make("inr-digits", "siren300", 32, tmp_path / "sirens.safetensors")
    images, options = images_of(made), FitOptions(passes=96, batch=12, lr=8e-3, checks=2)
    torch.manual_seed(options.seed)
    editor = make_editor(made.split("train"), name, steps=steps, pixels=images.shape[2:])
    fitted = fit_editor(editor, made, images, "dilate", options)
    held_out, wanted = made.split("validation"), edited_images(made, images, "dilate", "validation")
    assert len(fitted.validation) == 2
    assert fitted.start is not None
    assert fitted.start > min(fitted.validation)
    assert mean_loss(editor, held_out, wanted, error_of(made, images)) == pytest.approx(
        min(fitted.validation)
    )
    again = train_editor(made, images, "dilate", name, options, steps=steps)
    for key, value in again.state_dict().items():
        assert torch.equal(value, editor.state_dict()[key])


def test_a_trained_editor_is_one_file_that_edits_any_network_of_its_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "siren300", Recipe(steps=2))
    siren, editor, model, out = (tmp_path / f"{n}.safetensors" for n in ("sirens", "editor", "model", "out"))
    made = make("inr-digits", "siren300", 16, siren)
    command = ["weights", "train", str(siren), "--edit", "dilate", "--passes", "24", "--out", str(editor)]
    assert main([*command, "--probes", "4"]) == 2
    assert "editor nfn_np: expected no probes, found 4; ng_gnn and ng_t read them" in capsys.readouterr().err
    assert main(command) == 0
    state = {name: value[3].clone() for name, value in made.params.items()}
    save_file(state, model)
    assert main(["weights", "edit", str(model), "--editor", str(editor), "--out", str(out)]) == 0
    assert "edited: " in capsys.readouterr().out
    loaded = load_editor(editor)
    (expected,) = loaded.edit(state)
    assert expected.keys() == load_file(out).keys()
    for name, value in load_file(out).items():
        assert torch.equal(value, expected[name])
    (named,) = load_editor(str(editor)).edit(str(model))
    assert all(torch.equal(value, expected[name]) for name, value in named.items())
    assert any(not torch.equal(expected[name], state[name]) for name in state)
    for copies in (Editor(made, "deepsets", copies=2), Editor(made, "ng_t", copies=2, probes=4)):
        copies.save(tmp_path / "copies.safetensors", "dilate")
        again = load_editor(tmp_path / "copies.safetensors")
        for one, other in zip(copies.edit(state), again.edit(state), strict=True):
            assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert main([*command, "--reader", "ng_t", "--probes", "4"]) == 0
    assert (load_editor(editor).edit(state)[0]["layers.0.bias"] != state["layers.0.bias"]).any()
    with pytest.raises(ConfigError, match=r"found none named layers\.0\.bias"):
        again.edit({name: value for name, value in state.items() if name != "layers.0.bias"})
    with pytest.raises(ConfigError, match="edit: expected one of dilate, contrast, found 'blur'"):
        train_editor(made, torch.zeros(16, 1, 8, 8), "blur")
