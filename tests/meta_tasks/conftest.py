"""A data folder with small fabricated files in the published formats; no test reads a real data set."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

TRAIN, TEST, CIFAR_RECORDS = 120, 40, 30


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOPT_DATA", raising=False)
    torch.set_num_threads(1)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(folder: Path, random: np.random.RandomState, zipped: bool) -> None:
    folder.mkdir(parents=True)
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        files = {
            f"{prefix}-images-idx3-ubyte": random.randint(0, 256, (count, 28, 28)),
            f"{prefix}-labels-idx1-ubyte": random.randint(0, 10, count),
        }
        for name, array in files.items():
            content = idx_bytes(array)
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture(scope="session")
def fabricated(tmp_path_factory: pytest.TempPathFactory) -> str:
    root, random = tmp_path_factory.mktemp("data"), np.random.RandomState(0)
    write_idx_set(root / "MNIST" / "raw", random, zipped=False)
    write_idx_set(root / "FashionMNIST" / "raw", random, zipped=True)
    (root / "cifar-10-batches-bin").mkdir()
    for name in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        records = random.randint(0, 256, (CIFAR_RECORDS, 3073)).astype(np.uint8)
        records[:, 0] %= 10
        (root / "cifar-10-batches-bin" / name).write_bytes(records.tobytes())
    (root / "tinyshakespeare").mkdir()
    (root / "tinyshakespeare" / "input.txt").write_text("To be, or not to be: that is the question.\n" * 400)
    return str(root)
