"""Process-wide settings that meta-training wants and a user's own process should not have forced on it."""

from __future__ import annotations

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEEP = 1 << 30


def prepare_cpu() -> None:
    """Flush denormals, and keep freed memory for the next step instead of returning it to the system.

    Second moments decay into denormals, which slow the arithmetic five-fold. And with glibc's defaults every large
    temporary is mapped anew: its page faults are about half of a step's time.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for option in (M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD):
                libc.mallopt(option, KEEP if option != M_TOP_PAD else KEEP >> 3)
