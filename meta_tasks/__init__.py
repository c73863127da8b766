"""The task suite: small networks to be trained, on real and on generated data.

family = make_family("cnn", {"dataset": "digits", "widths": {"low": 8, "high": 32}})
task = family.build(family.sample_spec(generator))
"""

from meta_tasks.data import catalogue
from meta_tasks.families import make_family, make_task
from meta_tasks.family import FAMILIES, register_family
from meta_tasks.suites import SUITES, TASKS, named_task, suite_tasks

__all__ = [
    "FAMILIES",
    "SUITES",
    "TASKS",
    "catalogue",
    "make_family",
    "make_task",
    "named_task",
    "register_family",
    "suite_tasks",
]
