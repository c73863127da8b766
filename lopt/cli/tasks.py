"""Tasks by the names that the command line takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lopt.inner.task import Task

FIRST_TEST_SEED = 101
"""Seeds from here on are for testing; training and tuning use others."""

HELP = "a task such as digits-mlp, or all of a suite's: SUITE/validation or SUITE/test, such as digits/test"


def find_tasks(names: Sequence[str], data: str | None) -> dict[str, Task]:
    """Tasks by name, suites spelt out. Raises `ConfigError` for an unknown name, `DataError` for missing data."""
    from meta_tasks import named_task, suite_tasks

    tasks: dict[str, Task] = {}
    for name in names:
        suite, slash, part = name.partition("/")
        tasks |= suite_tasks(suite, part, data) if slash else {name: named_task(name, data)}
    return tasks


def fresh_seeds(count: int) -> range:
    """`count` seeds of test runs."""
    return range(FIRST_TEST_SEED, FIRST_TEST_SEED + count)
