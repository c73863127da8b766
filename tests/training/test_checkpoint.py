"""Checkpoints: any tree comes back exactly, or not at all."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt.errors import RuleFileError
from lopt.training import checkpoint


def example() -> dict[str, Any]:
    flat = torch.arange(6.0)
    return {
        "step": 3, "best": None, "score": 0.1 + 0.2, "limit": math.inf, "name": "ümlaut/slash", "flags": [True, False],
        "empty": {}, "none": [], "views": [flat[:3], flat[3:], flat.view(2, 3).T], "nothing": torch.empty(0, 4),
        "deep": {"a": {"b": [{"c": torch.tensor(7)}]}}, "bytes": torch.arange(5, dtype=torch.uint8),
        "odd": torch.tensor([-0.0, math.nan, math.inf, 1e-40], dtype=torch.float64), "half": torch.ones(2).bfloat16(),
    }  # fmt: skip


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in (found, expected)]
        assert torch.equal(*raw)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def test_round_trip_is_exact(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "c", example())
    assert_same(checkpoint.load(tmp_path / "c"), example())


def test_same_tree_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        checkpoint.write(tmp_path / name, example())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_was_saved_does_not_change_with_its_source(tmp_path: Path) -> None:
    tree = {"x": torch.zeros(3)}
    checkpoint.write(tmp_path / "c", tree)
    tree["x"].fill_(1)
    loaded = checkpoint.load(tmp_path / "c")
    checkpoint.write(tmp_path / "c", tree)
    assert (loaded["x"] == 0).all(), "nor with a later file of that name"


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_cut_file_is_refused(tmp_path: Path, cut: int) -> None:
    checkpoint.write(tmp_path / "c", example())
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:cut])
    with pytest.raises(RuleFileError, match="expected a lopt-checkpoint file"):
        checkpoint.load(tmp_path / "c")


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "c", example())
    data = bytearray((tmp_path / "c").read_bytes())
    data[-10] ^= 1
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(RuleFileError, match="damaged"):
        checkpoint.load(tmp_path / "c")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(RuleFileError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    checkpoint.write(tmp_path / "c", {"step": 1})

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(tmp_path / "c", {"step": 2})
    assert checkpoint.load(tmp_path / "c") == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]
