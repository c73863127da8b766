"""The dtype and device of new tensors for which none is named: a notebook may have set others than torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of this dtype unless theirs is named."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def torchs_defaults() -> Iterator[None]:
    """float32 on the CPU, as all that trains networks by itself takes for granted; most often as a decorator."""
    # Only where it is needed: a device as a context costs time in every call.
    elsewhere = torch.get_default_device().type != "cpu"
    with default_dtype(torch.float32), torch.device("cpu") if elsewhere else nullcontext():
        yield
