"""What zoo and park have in common where a reader grades: its passes, and its place in a record."""

from __future__ import annotations

from benchmarks.runner.log import Record
from lopt.weight_space.fitting import FitOptions, Fitted

PASSES = 10
"""Of a reader that grades, for each of a metanet's."""


def longer(options: FitOptions) -> FitOptions:
    """Those of a reader that grades."""
    return options.but(passes=PASSES * options.passes)


def both(before: Fitted | None, found: Fitted) -> Record:
    """What a reader of functions that was trained first adds to the record of the whole."""
    if before is None or before is found:
        return {}
    return {"before": vars(before), "seconds": before.seconds + found.seconds}
