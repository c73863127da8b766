"""Meta-training: from a config to a rule."""

from lopt.training.run import Run, train

__all__ = ["Run", "train"]
