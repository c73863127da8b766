"""Progress of long work: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20.0


class Progress(Protocol):
    """The part of tqdm's interface that both kinds have."""

    def update(self, n: int = 1) -> Any: ...

    def set_postfix(self, **figures: Any) -> Any: ...

    def close(self) -> Any: ...


def progress(total: int, desc: str, unit: str = "step", initial: int = 0, leave: bool = True) -> Progress:
    """A progress display on stderr; a bar stays there at the end if `leave`. Close it, also after an error."""
    if sys.stderr.isatty():
        return tqdm(total=total, initial=initial, desc=desc, unit=unit, leave=leave)
    return PlainProgress(total, desc, unit, initial)


def tracked(steps: range, desc: str, unit: str = "step") -> Iterator[int]:
    """The steps one by one while their progress is shown, for as long as they last; all is quiet without `desc`."""
    if not desc:
        yield from steps
        return
    shown = progress(len(steps), desc, unit, leave=False)
    try:
        for step in steps:
            yield step
            shown.update()
    finally:
        shown.close()


class PlainProgress:
    """Prints a line when work begins to take long, then every 20 seconds, and a last one."""

    def __init__(self, total: int, desc: str, unit: str = "step", initial: int = 0) -> None:
        self.total, self.desc, self.unit = total, desc, unit
        self.initial = self.done = initial
        self.figures = ""
        self.start = self.printed = time.monotonic()
        self.said = initial

    def update(self, n: int = 1) -> None:
        self.done += n
        if time.monotonic() - self.printed >= SECONDS_BETWEEN_LINES:
            self._print()

    def set_postfix(self, **figures: Any) -> None:
        self.figures = "".join(f", {name} {_short(value)}" for name, value in figures.items())

    def close(self) -> None:
        if self.said not in (self.initial, self.done):
            self._print()

    def _print(self) -> None:
        self.printed, self.said = time.monotonic(), self.done
        elapsed = self.printed - self.start
        left = elapsed * (self.total - self.done) / max(self.done - self.initial, 1)
        line = f"{self.desc}: {self.done} of {self.total} {self.unit}s, {elapsed:.0f} s"
        print(f"{line}, about {left:.0f} s left{self.figures}", file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
