"""Numbers told from weights: exact round trips, no order of neurons, honest intervals, clear refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from lopt import files
from lopt.cli import main
from lopt.errors import ConfigError, DataError, RuleFileError
from lopt.weight_space import parknets
from lopt.weight_space.architecture import architecture_of
from lopt.weight_space.convnets import Adam, ConvShape, gradient, initial
from lopt.weight_space.fitting import FitOptions, fit, predict
from lopt.weight_space.given_images import images_in, training_images
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.network_set import NetworkSet, collect
from lopt.weight_space.park_collecting import collect_park
from lopt.weight_space.park_readers import ParkProbes
from lopt.weight_space.parknets import ParkShape
from lopt.weight_space.predictor import (
    Predictor,
    figures,
    load_predictor,
    shipped_predictors,
    train_predictor,
)
from lopt.weight_space.readers import ProbeReader
from lopt.weight_space.systems import make_reader
from lopt.weight_space.trained import FORMAT, VERSION
from lopt.weight_space.zoo import make_zoo
from meta_tasks.data.images import load_images
from tests.helpers import seeded

SHAPE = ConvShape(size=8, channels=3, classes=2)
SHAPES = [
    ParkShape(size=8, colours=colours, channels=channels, kernels=(3,) * len(channels), classes=2)
    for colours, channels in ((1, (3, 4)), (3, (4, 3)), (1, (4, 4, 4)), (3, (5, 4)))
]
FEW = FitOptions(passes=64, batch=16)


def zoo(count: int = 64, noise: float = 0.0) -> NetworkSet:
    """Networks whose "accuracy" is the logarithm of the size of their weights, and noise."""
    gains = 0.25 + 3 * torch.rand(count, generator=seeded(0))
    told = gains.log() + noise * torch.randn(count, generator=seeded(1))
    splits = (torch.arange(count) % 4).clamp_max(2).to(torch.uint8)
    header = {"name": "gains", "architecture": SHAPE.model_dump()}
    return NetworkSet(initial(SHAPE, range(count), gains), {"accuracy": told}, splits, header)


def one(networks: NetworkSet, number: int = 0) -> dict[str, Tensor]:
    return {name: value[number] for name, value in networks.params.items()}


@pytest.mark.parametrize("name", ["statnn", "flat_mlp", "nfn_np", "ng_gnn", "probes"])
def test_a_file_says_what_was_trained_says(name: str, tmp_path: Path) -> None:
    networks = zoo()
    before = torch.random.get_rng_state()
    predictor = train_predictor(networks, reader=name, probes=3 if name == "probes" else 0, options=FEW)
    assert torch.equal(torch.random.get_rng_state(), before)
    predictor.save(tmp_path / "reader.safetensors")
    loaded = load_predictor(tmp_path / "reader.safetensors")
    assert torch.equal(loaded.values(networks.params), predictor.values(networks.params))
    assert loaded.predict([one(networks)]) == predictor.predict([one(networks)])
    assert str(loaded) == str(predictor)
    assert loaded.description.card["test"]["networks"] == len(networks.split("test"))


def test_a_file_that_grades_brings_its_images(tmp_path: Path) -> None:
    """Of a zoo and of a park with networks of grey and of coloured images."""
    for number, (networks, inputs) in enumerate([(zoo(), (1, 8, 8)), (grown_park(), (3, 8, 8))]):
        images = torch.randn(6, *inputs, generator=seeded(2))
        predictor = train_predictor(networks, reader="graded", options=FEW, images=images)
        predictor.save(tmp_path / f"{number}.safetensors")
        loaded = load_predictor(tmp_path / f"{number}.safetensors")
        told = networks if isinstance(networks, NetworkPark) else [one(networks, n) for n in range(5)]
        assert loaded.predict(told) == predictor.predict(told)
        assert len({value for value, _, _ in loaded.predict(told)}) > 1
        inner = loaded.reader
        assert isinstance(inner, ProbeReader | ParkProbes)
        assert torch.equal(inner.inputs(), images)


def test_images_are_for_those_that_grade() -> None:
    images = torch.randn(6, 1, 8, 8, generator=seeded(2))
    for found, reader, given in (("none", "graded", None), ("some", "statnn", images)):
        with pytest.raises(ConfigError, match=f"expected images beside graded alone, found {found}"):
            train_predictor(zoo(), reader=reader, options=FEW, images=given)
    with pytest.raises(ConfigError, match="expected no probes beside its images, found 3"):
        train_predictor(zoo(), reader="graded", probes=3, options=FEW, images=images)
    with pytest.raises(
        ConfigError, match=r"expected one or more images \(M, 1, 8, 8\), found \(6, 3, 8, 8\)"
    ):
        train_predictor(zoo(), reader="graded", options=FEW, images=images.expand(-1, 3, -1, -1))


def test_networks_of_your_own_are_read_by_their_graph_and_from_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(30)]
    networks = collect(models, {"accuracy": [float(n % 7) for n in range(30)]}, example=(torch.zeros(2, 3),))
    predictor = train_predictor(networks, reader="nfn_np", options=FEW)
    predictor.save(tmp_path / "reader.safetensors")
    save_file(models[3].state_dict(), tmp_path / "model.safetensors")
    loaded = load_predictor(tmp_path / "reader.safetensors")
    given = [models[3], tmp_path / "model.safetensors", nn.DataParallel(models[3])]
    found = loaded.predict(given, coverage=0.5)
    assert found[0] == found[1] == found[2]
    assert loaded.predict(networks.select(torch.tensor([3])), coverage=0.5) == found[:1]
    assert found[0].low < found[0].value < found[0].high


def grown_park() -> NetworkPark:
    """Networks of four architectures, two of them of coloured images, whose "accuracy" is as in `zoo`."""
    sets = []
    for split, shape in zip((0, 0, 1, 2), SHAPES, strict=True):
        gains = 0.25 + 3 * torch.rand(12, generator=seeded(len(sets)))
        splits = torch.full((12,), split, dtype=torch.uint8)
        header = {"architecture": shape.model_dump()}
        params = parknets.initial(shape, range(12), gains)
        sets.append(NetworkSet(params, {"accuracy": gains.log()}, splits, header))
    return NetworkPark(tuple(sets), {"name": "gains"})


@pytest.mark.parametrize(("name", "probes"), [("statnn", 0), ("probes", 3), ("ng_gnn", 3), ("gmn", 0)])
def test_a_park_is_told_by_what_was_trained_on_one(name: str, probes: int, tmp_path: Path) -> None:
    park = grown_park()
    predictor = train_predictor(park, reader=name, probes=probes, options=FEW)
    predictor.save(tmp_path / "reader.safetensors")
    loaded = load_predictor(tmp_path / "reader.safetensors")
    assert torch.equal(loaded.values(park), predictor.values(park))
    assert loaded.predict(park) == predictor.predict(park)
    assert len(loaded.predict(park)) == len(park)
    assert str(loaded) == str(predictor)
    assert str(loaded).startswith(f"{name}: accuracy of networks of many architectures\n")
    assert loaded.description.card["test"]["networks"] == 12
    with pytest.raises(ConfigError, match="expected a park, which this predictor is for, found others"):
        loaded.predict([one(park.sets[0])])
    with pytest.raises(ConfigError, match="expected single ones, which this predictor is for, found a park"):
        train_predictor(zoo(), reader="statnn", options=FEW).predict(park)


def test_a_park_of_your_own_is_told_by_its_graphs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, n % 10 + 2), nn.ReLU(), nn.Linear(n % 10 + 2, 2)) for n in range(30)]
    park = collect_park(models, {"accuracy": [float(n % 7) for n in range(30)]}, example=(torch.zeros(2, 3),))
    predictor = train_predictor(park, reader="ng_gnn", options=FEW)
    predictor.save(tmp_path / "reader.safetensors")
    assert load_predictor(tmp_path / "reader.safetensors").predict(park, 0.5) == predictor.predict(park, 0.5)


def test_no_order_of_channels_changes_what_is_told() -> None:
    networks = zoo()
    predictor = train_predictor(networks, options=FEW).double()
    graph = architecture_of(networks).graph
    params = {name: value.double() for name, value in networks.params.items()}
    permutation = graph.random_permutation(seeded(1))
    moved = vmap(lambda state: graph.permute(state, permutation))(params)
    assert not torch.equal(moved["layers.1.weight"], params["layers.1.weight"])
    assert (predictor.values(moved) - predictor.values(params)).abs().max() < 1e-9
    half = {**params, "layers.0.weight": params["layers.0.weight"].flip(1)}
    assert (predictor.values(half) - predictor.values(params)).abs().max() > 1e-6


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_intervals_hold_as_many_networks_as_they_promise(coverage: float) -> None:
    networks = zoo(2000, noise=0.3)
    predictor = train_predictor(networks, reader="statnn", options=FitOptions(passes=6400))
    test = networks.split("test")
    found = predictor.predict([one(test, n) for n in range(len(test))], coverage)
    held = [
        low <= truth <= high for (_, low, high), truth in zip(found, test.columns["accuracy"], strict=True)
    ]
    # 500 held-out and 1,000 test networks: the share has a deviation of .027 at most.
    assert sum(held) / len(held) == pytest.approx(coverage, abs=0.07)
    assert figures(predictor, networks)["r2"] > 0.5, "and it tells something"
    assert figures(predictor, networks)["within_90%"] == pytest.approx(0.9, abs=0.05)


def test_an_interval_is_as_wide_as_a_rank_says() -> None:
    predictor = train_predictor(zoo(), reader="statnn", options=FEW)
    predictor.errors = torch.tensor([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0])
    assert [predictor.within(share) for share in (0.1, 0.5, 0.85, 0.9)] == [1, 5, 9, 9]
    for share in (0.95, math.nan):
        with pytest.raises(
            ConfigError, match=rf"at most 0\.900, as 9 held-out networks allow; found {share}"
        ):
            predictor.within(share)


def refusal(predictor: Predictor, state: dict[str, Tensor]) -> str:
    with pytest.raises(ConfigError) as caught:
        predictor.predict([state])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_networks_of_another_architecture_are_refused() -> None:
    networks = zoo()
    predictor, state = train_predictor(networks, reader="statnn", options=FEW), one(networks)
    wide = one(replace(networks, params=initial(ConvShape(channels=4, classes=2), range(1), torch.ones(1))))
    assert "expected layers.0.weight with the shape (3, 1, 3, 3)" in refusal(predictor, wide)
    assert "found (4, 1, 3, 3)" in refusal(predictor, wide)
    missing = {name: value for name, value in state.items() if name != "layers.3.bias"}
    assert "found none named layers.3.bias" in refusal(predictor, missing)
    assert "found extra beside them" in refusal(predictor, {**state, "extra": torch.zeros(1)})
    state["layers.1.bias"] = torch.tensor([0.0, torch.nan, 0.0])
    assert "expected finite numbers in layers.1.bias" in refusal(predictor, state)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["train", "validation", "test"])
def test_a_network_that_diverged_spoils_no_reader(number: int) -> None:
    networks = zoo()
    networks.columns["accuracy"][number] = math.nan
    with pytest.raises(DataError, match=rf"found 1 of 64 with others, first number {number}; leave them out"):
        train_predictor(networks, reader="statnn", options=FEW)
    networks = zoo()
    networks.params["layers.1.bias"][number] = math.inf
    with pytest.raises(DataError, match="expected finite weights and targets"):
        train_predictor(networks, reader="statnn", options=FEW)
    left = networks.select(networks.params["layers.1.bias"].isfinite().all(1))
    assert train_predictor(left, reader="statnn", options=FEW).within(0.5) < math.inf


def test_one_network_in_place_of_several_is_told() -> None:
    """A model is made of layers, a state dict of names, a path of letters: each was taken for several networks."""
    predictor = train_predictor(zoo(), reader="statnn", options=FEW)
    for network in (nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), one(zoo())):
        with pytest.raises(DataError, match="expected several, found one"):
            predictor.predict(network)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"x\.pt: expected a folder of networks, found none; write \[path\]"):
        predictor.predict("x.pt")
    assert predictor.predict([]) == []


def test_classes_that_a_reader_has_no_output_for_are_told() -> None:
    networks = zoo()
    reader = make_reader("statnn", networks, 2)
    with pytest.raises(ConfigError, match=r"fit: expected classes from 0 to 1, .* found \d+ to \d+"):
        fit(reader, networks, torch.arange(len(networks)), FEW)
    with pytest.raises(ConfigError, match=r"fit: expected classes from 0 to 1, .* found -1 to 0"):
        fit(reader, networks, torch.arange(len(networks)) % 2 - 1, FEW)


def test_targets_that_are_not_what_a_reader_says_are_told() -> None:
    """Of floats torch spread one class over all outputs, with a warning."""
    networks = zoo()
    reader = make_reader("statnn", networks, 3)
    with pytest.raises(
        ConfigError, match=r"expected targets \(16, 3\), .* found \(16, 1\); give classes as whole"
    ):
        fit(reader, networks, torch.ones(64), FEW)
    with pytest.raises(ConfigError, match=r"expected a tensor of targets, .* found list; make it one"):
        fit(reader, networks, [1.0] * 64, FEW)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="found Tensor of one number"):
        fit(reader, networks, torch.tensor(1.0), FEW)


def test_there_is_nothing_to_say_of_no_networks() -> None:
    networks = zoo()
    with pytest.raises(DataError, match="one or more, found none"):
        predict(make_reader("statnn", networks, 1), networks.select(networks.splits > 2))


def test_a_missing_column_and_split_are_named() -> None:
    with pytest.raises(DataError, match="psnr: expected a column of the networks, which are accuracy"):
        train_predictor(zoo(), "psnr")
    networks = zoo()
    with pytest.raises(DataError, match="validation"):
        train_predictor(networks.select(networks.splits != 1))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "reader.safetensors"
    with pytest.raises(RuleFileError, match="found no file"):
        load_predictor(path)
    train_predictor(zoo(), reader="statnn", options=FEW).save(path)
    tensors, header = files.read(path, FORMAT, VERSION)

    def rewritten(change: dict[str, object], **others: Tensor) -> None:
        described = {**header["described"], **change}
        files.write(path, {**tensors, **others}, FORMAT, {"version": VERSION, "described": described})

    rewritten({"kind": "editor"})
    with pytest.raises(RuleFileError, match="found one of the kind editor"):
        load_predictor(path)
    rewritten({"shapes": {"w": [10**6, 10**6]}})
    with pytest.raises(ConfigError, match="scalars in a network"):
        load_predictor(path)
    rewritten({"reader": 3})
    with pytest.raises(RuleFileError, match="describes nothing that can be built: reader"):
        load_predictor(path)
    rewritten({}, mean=torch.zeros(7))
    with pytest.raises(RuleFileError, match="its tensors are not those that it describes"):
        load_predictor(path)


def test_the_commands_train_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks, reader, model = (tmp_path / f"{name}.safetensors" for name in ("zoo", "reader", "model"))
    zoo().save(networks)
    save_file(one(zoo(), 5), model)
    command = ["weights", "train", str(networks), "--reader", "statnn", "--passes", "64"]
    command += ["--out", str(reader)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "statnn: accuracy of networks with " in said
    assert "layers.0.weight (3, 1, 3, 3)" in said
    assert main(["weights", "predict", str(model), "--reader", str(reader), "--coverage", "0.8"]) == 0
    value, low, high = load_predictor(reader).predict([model], 0.8)[0]
    said = capsys.readouterr().out
    assert f"model.safetensors: accuracy {value:.3f}, 80% within {low:.3f} to {high:.3f}" in said
    assert main(["weights", "predict", str(model), "--reader", str(reader), "--coverage", "0.795"]) == 0
    assert ", 79.5% within " in capsys.readouterr().out
    save_file({"w": torch.zeros(3)}, model)
    assert main(["weights", "predict", str(model), "--reader", str(reader)]) == 2
    assert "found none named layers.0.bias" in capsys.readouterr().err
    assert main(["weights", "predict", str(networks), "--reader", str(reader)]) == 2
    assert "expected the tensors of one network, which this predictor is for; found a file of many" in (
        capsys.readouterr().err
    )
    assert main([*command[:-1], str(networks)]) == 2
    assert "found the same, which would be lost" in capsys.readouterr().err
    assert main(["weights", "predict", str(networks), "--reader", str(networks)]) == 2
    assert "expected a lopt-reader file" in capsys.readouterr().err
    assert set(load_file(reader)) > {"mean", "std", "errors"}


def test_the_commands_train_and_predict_on_parks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks, reader = (str(tmp_path / f"{name}.safetensors") for name in ("park", "reader"))
    grown_park().save(networks)
    command = ["weights", "train", networks, "--reader", "statnn", "--passes", "64", "--out", reader]
    assert main(command) == 0
    assert "statnn: accuracy of networks of many architectures" in capsys.readouterr().out
    assert main(["weights", "predict", networks, "--reader", reader, "--coverage", "0.8"]) == 0
    *_, (value, low, high) = load_predictor(reader).predict(grown_park(), 0.8)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 48
    assert said[-1] == f"{networks}[47]: accuracy {value:.3f}, 80% within {low:.3f} to {high:.3f}"
    assert main([*command, "--edit", "dilate"]) == 2
    assert "expected a lopt-networks file" in capsys.readouterr().err


def test_images_come_from_either_kind_of_file(tmp_path: Path) -> None:
    images, path = torch.randn(5, 1, 8, 8, generator=seeded(2)), tmp_path / "images.pt"
    for saved in (images, images.double(), {"images": images}):
        torch.save(saved, path)
        assert torch.equal(images_in(path), images)
    for saved, found in (
        ((images * 99).byte(), "torch.uint8"),
        ([images], "list"),
        ({"a": images, "b": images}, "2 entries"),
    ):
        torch.save(saved, path)
        with pytest.raises(DataError, match=f"one floating-point tensor, .* found {found}"):
            images_in(path)
    for name, content in (("images.safetensors", b"x"), ("images.pt", b"x")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="found one that cannot be read so"):
            images_in(tmp_path / name)
    with pytest.raises(DataError, match="found No such file or directory"):
        images_in(tmp_path / "none.pt")


def test_the_command_trains_one_that_grades(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the images that a zoo of lopt's learned, or on those of a file."""
    networks, reader, images = (str(tmp_path / f"{name}.safetensors") for name in ("zoo", "reader", "images"))
    made = make_zoo("cnn-zoo-digits", 32, Path(networks))
    command = ["weights", "train", networks, "--reader", "graded", "--passes", "64", "--out", reader]
    assert main(command) == 0
    assert "graded: accuracy of networks with " in capsys.readouterr().out
    inner = load_predictor(reader).reader
    assert isinstance(inner, ProbeReader)
    assert torch.equal(inner.inputs(), training_images(made))
    own = torch.randn(5, 1, 8, 8, generator=seeded(2))
    save_file({"images": own}, images)
    assert main([*command, "--images", images]) == 0
    inner = load_predictor(reader).reader
    assert isinstance(inner, ProbeReader)
    assert torch.equal(inner.inputs(), own)
    zoo().save(networks)
    capsys.readouterr()
    for words, said in [
        (["--images", images, "--out", images], "expected another file than what is read, found the same"),
        ([], "expected a set or park of cnn-zoo, "),
        (["--images", networks], "expected a safetensors or torch file of one floating-point tensor, "),
        (["--images", images, "--reader", "statnn"], "--images: expected it beside --reader graded alone"),
        (["--images", images, "--edit", "dilate"], "--images: expected it beside --reader graded alone"),
    ]:
        assert main([*command, *words]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_predictors())
def test_those_that_ship_are_small_and_have_a_card(name: str) -> None:
    files = [
        resources.files("lopt.weight_space.pretrained").joinpath(f"{name}{end}")
        for end in (".safetensors", ".md")
    ]
    assert len(files[0].read_bytes()) < 1_000_000
    assert files[1].read_text().startswith(f"# {name}\n")
    assert load_predictor(name).description.card["test"]["r2"] > 0.9


def test_the_shipped_reader_tells_networks_that_learned_from_those_that_did_not() -> None:
    """Networks of the zoo's own kind, fresh and after 120 steps on digits: not its data, but they are told apart."""
    shape, generator = ConvShape(), seeded(0)
    params = initial(shape, range(8), torch.ones(8))
    fresh = load_predictor("cnn-zoo").values(params)
    digits = load_images("digits")
    images = F.interpolate(digits.images["train"].float(), 16)[:, 0].permute(1, 2, 0)
    images, labels = (images - images.mean()) / images.std(), digits.labels["train"].long()
    optimizer = Adam(params, torch.full((8,), 5e-3), torch.zeros(8))
    for _ in range(120):
        chosen = torch.randint(len(labels), (32,), generator=generator)
        optimizer.update(gradient(shape, params, images[..., chosen], labels[chosen]))
    learned = load_predictor("cnn-zoo").values(params)
    assert (learned > fresh).all()
    assert learned.mean() > fresh.mean() + 0.05
