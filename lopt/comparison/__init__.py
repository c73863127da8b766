"""Rules beside tuned baselines."""

from lopt.comparison.comparison import Comparison
from lopt.comparison.protocol import Evaluation, compare, evaluate
from lopt.comparison.results import Entry, TaskComparison
from lopt.comparison.tuning import Budget

__all__ = ["Budget", "Comparison", "Entry", "Evaluation", "TaskComparison", "compare", "evaluate"]
