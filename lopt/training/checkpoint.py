"""Checkpoints of meta-training: every tensor and every counter, in one safetensors file written atomically.

A run resumed from one is the uninterrupted run, bit for bit on the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from lopt.files import read
from lopt.files import write as write_file

FORMAT = "lopt-checkpoint"
VERSION = 1


def write(path: Path, tree: dict[str, Any]) -> None:
    """Save nested dicts and lists of tensors and JSON-able values."""
    tensors: dict[str, Tensor] = {}
    skeleton = _strip(tree, "", tensors)
    write_file(path, tensors, FORMAT, {"version": VERSION, "tree": skeleton})


def load(path: Path) -> dict[str, Any]:
    """The inverse of `write`. Raises `RuleFileError` for a missing, damaged or foreign file."""
    tensors, header = read(path, FORMAT, VERSION)
    return _restore(header["tree"], tensors)


_TENSOR = "tensor:"


def _strip(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replace each tensor by its path, and put it under that name into `tensors`."""
    if isinstance(node, Tensor):
        # Copies: safetensors refuses tensors that share memory, as views of one flat vector do.
        tensors[path] = node.detach().cpu().contiguous().clone()
        return _TENSOR + path
    if isinstance(node, dict):
        return {key: _strip(value, f"{path}/{key}", tensors) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_strip(value, f"{path}/{index}", tensors) for index, value in enumerate(node)]
    return node


def _restore(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, str) and node.startswith(_TENSOR):
        return tensors[node.removeprefix(_TENSOR)]
    if isinstance(node, dict):
        return {key: _restore(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_restore(value, tensors) for value in node]
    return node
