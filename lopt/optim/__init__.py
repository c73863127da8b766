"""The `torch.optim` face of a rule."""

from lopt.optim.learned_optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer"]
