"""What zoo and park have in common where a reader grades: the images, its passes, and its place in a record."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.runner.log import Record
from lopt.weight_space.fitting import FitOptions, Fitted

GRADED = "graded"
IMAGES = 1024
PASSES = 10
"""Of a reader that grades, for each of a metanet's."""


def some_images(images: Tensor) -> Tensor:
    """Those of all images (N, C, H, H) that readers grade answers to: always the same."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:IMAGES]
    return images[chosen].contiguous()


def longer(options: FitOptions) -> FitOptions:
    """Those of a reader that grades."""
    return options.but(passes=PASSES * options.passes)


def both(before: Fitted | None, found: Fitted) -> Record:
    """What a reader of functions that was trained first adds to the record of the whole."""
    if before is None or before is found:
        return {}
    return {"before": vars(before), "seconds": before.seconds + found.seconds}
