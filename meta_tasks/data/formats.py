"""Readers of the published binary formats. Nothing here unpickles, and every size is checked."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lopt.errors import DataError

IDX_UNSIGNED_BYTE = 8
CIFAR_RECORD = 1 + 3 * 32 * 32
"""Bytes per CIFAR-10 example: its label, then the red, green and blue planes."""


def read_idx(path: Path, dims: int) -> Tensor:
    """An idx file of unsigned bytes, plain or gzipped -> uint8 tensor with `dims` axes.

    Format: two zero bytes, the type (8), the number of axes; each size as a big-endian int32; the data.
    Raises `DataError` if the header or the length is another.
    """
    content = _read(path)
    if content[:4] != bytes((0, 0, IDX_UNSIGNED_BYTE, dims)):
        raise _damaged(path, f"an idx header 0 0 8 {dims}", f"{list(content[:4])}")
    start = 4 + 4 * dims
    shape = tuple(np.frombuffer(content[4:start].ljust(4 * dims, b"\0"), dtype=">i4").tolist())
    expected = torch.Size(shape).numel()
    if min(shape) < 1 or len(content) - start != expected:
        raise _damaged(path, f"{expected} bytes for its shape {shape}", f"{len(content) - start}")
    return _uint8(content[start:]).reshape(shape)


def read_cifar(path: Path) -> tuple[Tensor, Tensor]:
    """One file of the binary version of CIFAR-10 -> images (N, 3, 32, 32) and labels (N), both uint8.

    Raises `DataError` if the length is no multiple of the record's, or a label is above 9.
    """
    content = _read(path)
    if not content or len(content) % CIFAR_RECORD:
        raise _damaged(path, f"a multiple of {CIFAR_RECORD} bytes", f"{len(content)}")
    records = _uint8(content).reshape(-1, CIFAR_RECORD)
    labels = records[:, 0].clone()
    check_labels(path, labels)
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def check_labels(path: Path, labels: Tensor) -> None:
    """Raise `DataError` unless all are of ten classes."""
    if int(labels.max()) > 9:
        raise _damaged(path, "labels from 0 to 9", f"{int(labels.max())}")


def read_text(path: Path) -> str:
    """A text file in UTF-8, plain or gzipped. Raises `DataError` if it is empty or no UTF-8."""
    try:
        text = _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, "UTF-8 text", f"byte {error.object[error.start]} at {error.start}") from error
    if not text:
        raise _damaged(path, "text", "an empty file")
    return text


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, "a whole gzip file", str(error)) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error


def _uint8(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _damaged(path: Path, expected: str, found: str) -> DataError:
    return DataError(f"{path} is damaged: expected {expected}, found {found}. Fetch it again.")
