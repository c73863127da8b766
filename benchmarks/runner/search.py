"""Tuning a baseline as a pure function of the trials so far, so that a search goes on where it was stopped.

Nine learning rates half a decade apart around the baseline's usual one, with a cosine schedule; further ones beyond
an end of the grid while the best lies there, two at most; then the constant and the one-cycle schedule at the best
rate and its two neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lopt.comparison.tuning import Baseline, Trial, beyond, find_baseline, grid

Setting = tuple[float, str]
"""A learning rate and a schedule."""


@dataclass(frozen=True)
class Search:
    """What is tried."""

    centre: float
    rates: int = 9
    first: str = "cosine"
    """The schedule that the whole grid is tried with."""
    then: tuple[str, ...] = ("constant", "one_cycle")
    """The schedules of the best rate and its neighbours."""
    extend: int = 2

    def next(self, trials: Sequence[Trial]) -> list[Setting]:
        """The settings to try next; none once the search is over."""
        tried = {(trial.lr, trial.schedule) for trial in trials}
        start = grid(self.centre, self.rates)
        if missing := [(lr, self.first) for lr in start if (lr, self.first) not in tried]:
            return missing
        of_first = [trial for trial in trials if trial.schedule == self.first]
        further = beyond(of_first)
        if further is not None and len(of_first) - self.rates < self.extend:
            return [(further, self.first)]
        wanted = [(lr, schedule) for schedule in self.then for lr in neighbourhood(of_first)]
        return [setting for setting in wanted if setting not in tried]


def neighbourhood(trials: Sequence[Trial]) -> list[float]:
    """The best learning rate and those next to it."""
    rates = sorted(trial.lr for trial in trials)
    place = rates.index(min(trials, key=lambda trial: trial.score).lr)
    return rates[max(place - 1, 0) : place + 2]


def search_of(name: str, rates: int = 9) -> Search:
    """The search for a baseline; schedule-free AdamW has no schedule to search."""
    baseline: Baseline = find_baseline(name)
    if name.startswith("schedule_free"):
        return Search(baseline.centre, rates, first="constant", then=())
    return Search(baseline.centre, rates)
