from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lopt.errors import ConfigError, DataError
from meta_tasks.data import ImageSet, load_images
from meta_tasks.data.images import carve_validation
from tests.meta_tasks.conftest import write_idx_set

SHAPES = {
    "digits": (1, 8, 8),
    "photos": (3, 32, 32),
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_types(name: str, fabricated: str) -> None:
    data = load_images(name, root=fabricated)
    assert data.shape == SHAPES[name]
    for split in ("train", "validation", "test"):
        assert data.images[split].dtype == data.labels[split].dtype == torch.uint8
        assert len(data.images[split]) == len(data.labels[split]) > 0


def test_labels_of_other_sets_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx_set(folder, np.random.RandomState(0), zipped=False)
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([77]))
    with pytest.raises(
        DataError, match="train-labels-idx1-ubyte is damaged: expected labels from 0 to 9, found 77"
    ):
        load_images("mnist", root=tmp_path)


def test_published_sizes_are_kept(fabricated: str) -> None:
    data = load_images("cifar10", root=fabricated)
    assert {split: len(labels) for split, labels in data.labels.items()} == {
        "train": 135,
        "validation": 15,
        "test": 30,
    }


@pytest.mark.parametrize("name", ["mnist", "photos", "cifar10"])
def test_splits_share_no_image(name: str, fabricated: str) -> None:
    hashes = {split: _hashes(images) for split, images in load_images(name, root=fabricated).images.items()}
    assert not hashes["train"] & hashes["validation"]
    assert not (hashes["train"] | hashes["validation"]) & hashes["test"]


def _hashes(images: torch.Tensor) -> set[str]:
    return {hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images}


def test_validation_is_a_fixed_tenth_of_train() -> None:
    images, labels = torch.arange(50).to(torch.uint8).reshape(50, 1, 1, 1), torch.arange(50).to(torch.uint8)
    test = (images[:3], labels[:3])
    splits = carve_validation((images, labels), test)
    train, validation = splits["train"][1].tolist(), splits["validation"][1].tolist()
    assert sorted(train + validation) == list(range(50))
    assert len(validation) == 5
    assert splits["test"] is test
    assert torch.equal(carve_validation((images, labels), test)["validation"][0], splits["validation"][0])


def test_digits_are_stratified_and_complete() -> None:
    from sklearn.datasets import load_digits

    data = load_images("digits")
    assert sum(len(labels) for labels in data.labels.values()) == 1797
    whole = torch.bincount(torch.from_numpy(load_digits().target), minlength=10)
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        counts = torch.bincount(data.labels[split].long(), minlength=10)
        # n mod 10 examples of a class are dealt to test, validation and train in turn: 3 * 0.7 at worst.
        assert (counts - share * whole).abs().max() < 2.2


@pytest.mark.parametrize("size", [8, 14])
def test_pooling_averages(size: int, fabricated: str) -> None:
    full, small = (load_images("cifar10", s, fabricated) for s in (0, size))
    assert small.shape == (3, size, size)
    means = [data.images["test"].float().mean((2, 3)) for data in (full, small)]
    # 14 does not divide 32, so that the windows overlap and the means agree only roughly.
    torch.testing.assert_close(*means, atol=0.5 if 32 % size == 0 else 4.0, rtol=0.0)


def test_a_pooled_pixel_is_the_mean_of_its_window(fabricated: str) -> None:
    full, small = (load_images("mnist", size, fabricated).images["test"].float() for size in (0, 14))
    assert small[5, 0, 3, 7] == full[5, 0, 6:8, 14:16].mean().round()


def test_moments_match_the_pixels(fabricated: str) -> None:
    data = load_images("cifar10", root=fabricated)
    pixels = data.images["train"].double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(data.mean, pixels.mean(1).float())
    torch.testing.assert_close(data.std, pixels.std(1, correction=0).float())


def test_size_above_the_published_one(fabricated: str) -> None:
    with pytest.raises(ConfigError, match="size = 32: expected at most 28"):
        load_images("mnist", 32, fabricated)


def test_loaded_once(fabricated: str) -> None:
    first: ImageSet = load_images("mnist", root=fabricated)
    assert load_images("mnist", 28, fabricated).images["train"] is first.images["train"]
