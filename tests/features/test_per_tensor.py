"""Context of tensors, and the sums and repeats that it is made with."""

from __future__ import annotations

import math

import torch

from lopt.features.per_tensor import TIME_SCALES, count, noise_features, static_features, time_features
from lopt.numerics.segments import means_of, segment_expand, segment_mean, segment_sums
from tests.helpers import hand_graph, seeded

SIZES = [3, 0, 1, 4]


def test_time_features_by_hand() -> None:
    steps, horizon = (
        torch.tensor([0.0, 50.0, 100.0, 300.0, 7.0]),
        torch.tensor([100.0, 100.0, 100.0, 100.0, 0.0]),
    )
    rows = time_features(steps, horizon)
    assert rows.shape == (len(TIME_SCALES) + 3, 5)
    for scale, row in zip(TIME_SCALES, rows, strict=False):
        torch.testing.assert_close(row, torch.tensor([math.tanh(t / scale) for t in steps.tolist()]))
    known, fraction, late = rows[-3:]
    assert known.tolist() == [1, 1, 1, 1, 0]
    torch.testing.assert_close(fraction, torch.tensor([0.0, 0.5, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(
        late, torch.tensor([0.0, 1 - math.sqrt(0.5), 1.0, 1.0, 0.0]), rtol=0, atol=2e-3
    )


def test_noise_features_say_how_well_gradients_agree() -> None:
    one = torch.ones(3)
    rows = noise_features(
        torch.stack([0.1 * one, one]), one, torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, -1.0])
    )
    assert rows.shape == (1 + 4, 3)
    assert torch.isfinite(rows).all()
    torch.testing.assert_close(rows[0], torch.full((3,), 0.25 * math.log(0.1)), rtol=1e-3, atol=0)
    assert rows[2, 1] > rows[2, 0] > rows[2, 2], "the share of the network's gradient"
    assert rows[4].tolist() == [1, 0, -1]


def test_shares_do_not_depend_on_the_loss_scale() -> None:
    one, grads = torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    small, large = (noise_features(torch.stack([one, one]), one, c * grads, one) for c in (1e-2, 1e2))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)


def test_static_features_by_hand() -> None:
    graph = hand_graph({"a": 4, "b": 6}, {"w": "weight out:a in:b", "s": "other", "v": "bias out:b"})
    rows = static_features(graph, torch.empty(0, dtype=torch.float64))
    sizes = [(24, 4, 6), (1, 1, 1), (6, 6, 1)]
    expected = [[*(math.log(n) / 8 for n in size), index / 3] for index, size in enumerate(sizes)]
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64).T)


def test_count_adds_up() -> None:
    decays, one = 3, torch.ones(2)
    graph = hand_graph({"a": 2}, {"v": "bias out:a", "w": "scale out:a"})
    parts = [
        time_features(one, one),
        noise_features(torch.ones(decays + 1, 2), one, one, one),
        static_features(graph, one),
    ]
    assert count(decays) == sum(len(part) for part in parts)


def test_segments_against_a_loop() -> None:
    flat = torch.randn(2, sum(SIZES), generator=seeded(0))
    means = segment_mean(flat, SIZES)
    torch.testing.assert_close(means_of(segment_sums(iter(flat), SIZES), SIZES), means)
    starts = [0, 3, 3, 4]
    for index, (start, size) in enumerate(zip(starts, SIZES, strict=True)):
        expected = flat[:, start : start + size].mean(1) if size else torch.zeros(2)
        torch.testing.assert_close(means[:, index], expected)
    back = segment_expand(means, SIZES)
    assert back.shape == flat.shape
    for index, (start, size) in enumerate(zip(starts, SIZES, strict=True)):
        assert torch.equal(back[:, start : start + size], means[:, index : index + 1].expand(2, size))
