"""What is known of steps that were skipped because of numbers that are not finite."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

IN_A_ROW = 10
"""Skipped steps in a row that are told of, as are ten times as many, and so on."""
POLL = 100
"""How many calls of `zero_grad` pass between two looks at a count on a device, as each stalls it."""


class Skips:
    """Counts skipped steps, where the gradients are; the object is shared by wrappers that copy an optimizer's dict."""

    def __init__(self) -> None:
        # On the CPU whatever the default device is.
        self.total, self.in_a_row = (torch.zeros((), dtype=torch.int64, device="cpu") for _ in range(2))
        self.unread = False
        """Whether steps have been counted that could not be looked at then: on a device, or compiled."""
        self._polled = 0

    def count(self, finite: Tensor | bool) -> None:
        """Take a step into account: whether it was made, as a value or, where nobody may ask for one, () bool."""
        if isinstance(finite, Tensor) and finite.is_meta:  # no values, nothing to count
            return
        self.unread = isinstance(finite, Tensor)
        if isinstance(finite, Tensor) and finite.device != self.total.device:
            self.total, self.in_a_row = self.total.to(finite.device), self.in_a_row.to(finite.device)
        if finite is True:
            self.in_a_row.zero_()
            return
        bad = (~finite).long() if isinstance(finite, Tensor) else 1
        # In place, as a CUDA graph replays on the memory that it was captured with.
        self.total.add_(bad)
        self.in_a_row.add_(bad).mul_(bad)

    def poll(self) -> int:
        """How many steps in a row were skipped, where the steps themselves could not ask; 0 between two looks."""
        if not self.unread:
            return 0
        self._polled += 1
        if self.in_a_row.device.type != "cpu" and self._polled % POLL:
            return 0
        return int(self.in_a_row)


def warn_of(in_a_row: int, names: Iterable[str]) -> None:
    """One warning for many skipped steps in a row."""
    listed = list(names)
    others = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
    which = (
        f"the gradient of {listed[0]!r}{others} is not finite"
        if listed
        else "what the rule makes is not finite"
    )
    warnings.warn(
        f"the last {in_a_row} steps were skipped and changed nothing: {which}; look for its origin with"
        " torch.autograd.set_detect_anomaly(True)",
        stacklevel=4,
    )


def is_told(in_a_row: int) -> bool:
    """10, 100, 1000..."""
    return in_a_row >= IN_A_ROW and in_a_row == 10 ** (len(str(in_a_row)) - 1)
