"""Data sets of networks: the same after a kill, a beginning of a longer one, images in one split each, audited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lopt.cli import main
from lopt.errors import ConfigError, DataError, RunFolderError
from lopt.runs.lock import held_file
from lopt.weight_space import making
from lopt.weight_space.making import make, pixels, places
from lopt.weight_space.network_set import SPLITS, NetworkSet, load
from lopt.weight_space.sirens import RECIPES, Recipe
from meta_tasks.data.images import load_images


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "siren300", Recipe(steps=3))
    monkeypatch.setattr(making, "BETWEEN_SAVES", 8)


def equal(left: NetworkSet, right: NetworkSet) -> bool:
    pairs = [(left.params, right.params), (left.columns, right.columns)]
    return torch.equal(left.splits, right.splits) and all(
        torch.equal(value, b[name]) for a, b in pairs for name, value in a.items()
    )


def test_a_longer_set_begins_with_a_shorter_one_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = make("inr-digits", "siren300", 20, tmp_path / "whole.safetensors")
    assert len(whole) == 20
    assert whole.params["layers.0.weight"].shape == (20, 32, 2)

    killed = tmp_path / "killed.safetensors"
    make("inr-digits", "siren300", 8, killed)
    # What a kill leaves beside the file is in nobody's way.
    killed.with_name(killed.name + ".partial").write_bytes(b"half")
    again = make("inr-digits", "siren300", 20, killed)
    assert equal(again, whole)
    assert equal(load(killed), whole)
    assert equal(make("inr-digits", "siren300", 12, killed), whole), (
        "one that is there already is left as it is"
    )


def test_one_process_at_a_time_goes_on_with_a_file(tmp_path: Path) -> None:
    """Two would make the same networks, and each overwrite what the other had made beyond."""
    out = tmp_path / "n.safetensors"
    make("inr-digits", "siren300", 2, out)
    lock = tmp_path / "n.safetensors.lock"
    lock.write_text("process of a machine that is off")  # what a kill leaves beside the file
    with held_file(out):
        with pytest.raises(RunFolderError, match=r"n\.safetensors: expected a file that no other process"):
            make("inr-digits", "siren300", 4, out)
        assert len(make("inr-digits", "siren300", 2, out)) == 2, "those that are there are for all"
    assert len(make("inr-digits", "siren300", 4, out)) == 4
    assert not lock.exists()


def test_every_image_is_in_one_split_and_has_its_own_label(tmp_path: Path) -> None:
    images = load_images("digits")
    networks = make("inr-digits", "siren300", 32, tmp_path / "n.safetensors")
    splits, chosen = places(images, range(32))
    assert torch.equal(networks.splits, splits)
    assert [int((splits == s).sum()) for s in range(3)] == [24, 2, 6]
    for split, image, label in zip(
        splits.tolist(), chosen.tolist(), networks.columns["label"].tolist(), strict=True
    ):
        assert images.labels[SPLITS[split]][image] == label
    count = len(images.labels["validation"])
    many = places(images, range(16 * (count + 2)))[1][12::16]
    assert len(many[:count].unique()) == count, "all images before any comes again"
    assert torch.equal(many[count:], many[:2])
    assert torch.equal(
        pixels(images, splits[:1], chosen[:1])[0], images.images["train"][chosen[0]].float() / 255
    )


def test_mistakes_are_named(tmp_path: Path) -> None:
    out = tmp_path / "n.safetensors"
    with pytest.raises(ConfigError, match="no data set 'x' of networks; there are inr-mnist"):
        make("x", "siren300", 2, out)
    with pytest.raises(ConfigError, match="no recipe 'x' of networks; there are siren300"):
        make("inr-digits", "x", 2, out)
    with pytest.raises(DataError, match="expected a file of networks, found none"):
        load(out)
    make("inr-digits", "siren300", 2, out)
    with pytest.raises(
        ConfigError, match=r"expected networks with recipe .*'siren1000'.* found .*'siren300'"
    ):
        make("inr-digits", "siren1000", 4, out)
    with pytest.raises(DataError, match="some of the split 'test', found none among 2"):
        load(out).split("test")


def test_the_command_makes_and_audits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "digits.safetensors"
    assert main(["weights", "make", "inr-digits", "--count", "48", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "relative distance" in said
    assert "psnr" in said.lower()
    assert len(load(out)) == 48
    assert main(["weights", "make", "inr-digits", "--recipe", "dws", "--out", str(out)]) == 2
    assert "expected networks with recipe" in capsys.readouterr().err
