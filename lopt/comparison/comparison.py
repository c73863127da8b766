"""The results of a comparison over all its tasks: as text, as a picture, as JSON and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from lopt import config as configs
from lopt.comparison.report import curves_figure, table, write_results
from lopt.comparison.results import HORIZONS, TaskComparison
from lopt.errors import ConfigError
from lopt.files import user_path


@dataclass(frozen=True)
class Comparison:
    """Rules and baselines on one or several tasks. Prints as tables."""

    tasks: tuple[TaskComparison, ...]
    provenance: dict[str, Any]

    def __str__(self) -> str:
        return "\n\n".join(table(task, horizon) for task in self.tasks for horizon in HORIZONS)

    def plot(self) -> Figure:
        """Training loss over steps: a row for each task, a panel for each horizon."""
        return curves_figure(self.tasks)

    def record(self) -> dict[str, Any]:
        """JSON-able: that of the task if there is one, else a summary over the tasks and each of them."""
        records = [task.record() for task in self.tasks]
        if len(records) == 1:
            return {**records[0], "provenance": self.provenance}
        total = {"summary": averaged([record["summary"] for record in records])}
        return {**total, "tasks": records, "provenance": self.provenance}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Comparison:
        """The inverse of `record`; also of older files, in which each task has a provenance of its own.

        Raises `ConfigError` for the record of anything else.
        """
        try:
            records: Sequence[Mapping[str, Any]] = record.get("tasks", [record])
            provenance = record.get("provenance", records[0].get("provenance", {}))
            found = cls(tuple(map(TaskComparison.read, records)), provenance)
            configs.check(found)
            found.record()
        except (AttributeError, LookupError, TypeError, ValueError, StopIteration) as error:
            what = (
                f"nothing under {error}"
                if isinstance(error, KeyError)
                else f"another ({error or 'no entries'})"
            )
            raise ConfigError(
                f"expected the record of a comparison, found {what}; `Comparison.write` and `lopt compare` write one"
            ) from None
        return found

    def write(self, path: str | os.PathLike[str]) -> None:
        """As JSON, atomically."""
        write_results(self.record(), user_path(path))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Comparison:
        """What `write` wrote. Raises `ConfigError` for any other file."""
        file = user_path(path)
        try:
            return cls.from_record(json.loads(file.read_text(encoding="utf-8")))
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{file}: expected the JSON of a comparison, found a file that is damaged or another: {error};"
                " compare anew, or fetch it again"
            ) from None


def averaged(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary out of several of the same form: means of numbers, "or" of flags, other values joined."""
    return {key: _averaged([summary[key] for summary in summaries]) for key in summaries[0]}


def _averaged(values: Sequence[Any]) -> Any:
    if any(value is None for value in values):
        return None
    if isinstance(values[0], Mapping):
        return averaged(values)
    if isinstance(values[0], bool):
        return any(values)
    if isinstance(values[0], (int, float)):
        return sum(values) / len(values)
    return ", ".join(dict.fromkeys(values))
