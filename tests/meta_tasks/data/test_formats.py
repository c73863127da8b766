from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from lopt.errors import DataError
from meta_tasks.data.formats import read_cifar, read_idx, read_text

IMAGES = np.arange(2 * 3 * 4).reshape(2, 3, 4)
# Header by the format's definition: two zero bytes, 8 for unsigned bytes, 3 axes, then their sizes as big-endian int32.
IDX = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + IMAGES.astype(np.uint8).tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_values(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / ("images" + ".gz" * zipped)
    path.write_bytes(gzip.compress(IDX, mtime=0) if zipped else IDX)
    assert torch.equal(read_idx(path, 3), torch.from_numpy(IMAGES).to(torch.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x95\x00" + IDX[4:], r"expected an idx header 0 0 8 3, found \[128, 4, 149, 0\]"),
        (IDX[:-1], r"expected 24 bytes for its shape \(2, 3, 4\), found 23"),
        (IDX + b"\0", "found 25"),
        (IDX[:9], "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(IDX, mtime=0)[:-12], b"not gzip at all", gzip.compress(IDX, mtime=0)[:12] + b"xx"],
)
def test_damaged_gzip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected a whole gzip file"):
        read_idx(path, 3)


def test_cifar_planes(tmp_path: Path) -> None:
    # Label, then 1,024 bytes each of red, green and blue.
    record = bytes([7]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([3]) * 1024
    path = tmp_path / "batch.bin"
    path.write_bytes(record * 2)
    images, labels = read_cifar(path)
    assert labels.tolist() == [7, 7]
    assert images.shape == (2, 3, 32, 32)
    assert images[:, :, 5, 9].tolist() == [[1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "multiple of 3073 bytes, found 0"),
        (bytes(3072), "found 3072"),
        (bytes([10]) + bytes(3072), "labels"),
    ],
)
def test_damaged_cifar(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "batch.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_cifar(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_damaged_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        read_text(path)
