from __future__ import annotations

import pytest
import torch

from meta_tasks import make_task
from meta_tasks.classification import ClassificationTask
from meta_tasks.data import load_images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(root: str | None = None, **spec: object) -> ClassificationTask:
    task = make_task("mlp", {"evaluation_examples": 100_000, **spec}, root)
    assert isinstance(task, ClassificationTask)
    return task


def evaluation(task: ClassificationTask, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*task.evaluation(split), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_the_plain_task_is_the_normalised_data_set(name: str, fabricated: str) -> None:
    data = load_images(name, root=fabricated)
    images, labels = evaluation(classifier(fabricated, dataset=name), "test")
    mean, std = (moment[:, None, None] for moment in (data.mean, data.std))
    torch.testing.assert_close(images, (data.images["test"].float() - mean) / std)
    assert torch.equal(labels, data.labels["test"].long())


def test_batches_come_from_their_split(fabricated: str) -> None:
    task = classifier(fabricated, dataset="mnist", batch_size=50)
    for split in ("train", "validation", "test"):
        images, labels = task.sample(split, 3, generator())
        known = {_key(x, y) for x, y in zip(*evaluation(task, split), strict=True)}
        assert images.shape == (3, 50, 1, 28, 28)
        assert {_key(x, y) for x, y in zip(images.flatten(0, 1), labels.flatten(), strict=True)} <= known


def _key(image: torch.Tensor, label: torch.Tensor) -> tuple[float, int]:
    return round(float(image.double().sum()), 3), int(label)


def test_noise_is_in_the_training_batches_only(fabricated: str) -> None:
    plain, noisy = (classifier(fabricated, dataset="mnist", noise=sigma) for sigma in (0.0, 1.5))
    for split in ("train", "validation", "test"):
        torch.testing.assert_close(evaluation(plain, split), evaluation(noisy, split))
        difference = noisy.sample(split, 4, generator())[0] - plain.sample(split, 4, generator())[0]
        assert float(difference.std()) == pytest.approx(1.5 if split == "train" else 0.0, rel=0.02)


def test_label_noise_changes_the_stated_share_once_and_for_all() -> None:
    plain, noisy = (classifier(label_noise=share, seed=5, batch_size=4000) for share in (0.0, 0.5))
    images, labels = plain.sample("train", 1, generator())
    _, corrupted = noisy.sample("train", 1, generator())
    # A random label is the old one with probability 1/10: 45 % change; 1,248 labels, standard error 1.4 %.
    assert float((labels != corrupted).float().mean()) == pytest.approx(0.45, abs=0.05)
    seen: dict[tuple[float, ...], int] = {}
    for image, label in zip(images[0].flatten(1), corrupted[0], strict=True):
        assert seen.setdefault(tuple(image.tolist()), int(label)) == int(label)
    for split in ("train", "validation", "test"):
        assert torch.equal(evaluation(plain, split)[1], evaluation(noisy, split)[1])
    assert torch.equal(plain.sample("test", 1, generator())[1], noisy.sample("test", 1, generator())[1])


def test_data_fraction_shrinks_train_only() -> None:
    whole, part = (classifier(data_fraction=fraction) for fraction in (1.0, 0.25))
    assert len(evaluation(whole, "train")[0]) == 1248
    assert len(evaluation(part, "train")[0]) == 312
    assert len(evaluation(part, "test")[0]) == len(evaluation(whole, "test")[0])
    tiny = classifier(data_fraction=0.001).sample("train", 1, generator())[0]
    assert len(tiny[0].flatten(1).unique(dim=0)) == 1


def test_class_subset_is_renumbered() -> None:
    task = classifier(classes=3, seed=1)
    images, labels = evaluation(task, "test")
    data = load_images("digits")
    assert set(labels.tolist()) == {0, 1, 2}
    assert task.module.get_parameter("head.weight").shape[0] == 3
    pixels = ((data.images["test"].float() - data.mean) / data.std).flatten(1)
    original = [
        int(data.labels["test"][(pixels - image).abs().sum(1).argmin()]) for image in images.flatten(1)
    ]
    assert len(set(zip(labels.tolist(), original, strict=True))) == 3


@pytest.mark.parametrize(("name", "channels"), [("digits", 1), ("digits", 3), ("cifar10", 1), ("cifar10", 3)])
def test_colour_mixing(name: str, channels: int, fabricated: str) -> None:
    published = evaluation(classifier(fabricated, dataset=name), "train")[0]
    first, second = (classifier(fabricated, dataset=name, channels=channels, seed=seed) for seed in (1, 2))
    mixed = evaluation(first, "train")[0]
    assert mixed.shape[1] == channels
    # A linear map of the published channels, the same in every split and batch, another for another seed.
    source, target = (images.double().transpose(0, 1).flatten(1).T for images in (published, mixed))
    mix = torch.linalg.lstsq(source, target).solution
    torch.testing.assert_close(source @ mix, target, atol=1e-5, rtol=1e-5)
    assert float(mix.norm()) == pytest.approx(channels**0.5, rel=1e-4)
    if max(mix.shape) > 1:
        assert not torch.allclose(mixed, evaluation(second, "train")[0])


def test_evaluation_is_evenly_spaced_and_limited() -> None:
    task = classifier(evaluation_examples=100)
    everything, some = evaluation(classifier(), "test")[0], evaluation(task, "test")[0]
    assert torch.equal(some, everything[torch.arange(100) * 368 // 100])
