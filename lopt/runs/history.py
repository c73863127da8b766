"""What a run has logged so far, read back from its metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file; a line that a kill cut short is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record


@dataclass(frozen=True)
class History:
    """The records of a run, in order."""

    records: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> History:
        return cls(list(records(folder / METRICS)))

    @property
    def steps(self) -> int:
        """Outer steps that the log holds."""
        return next((r["step"] for r in reversed(self.records) if "outer_loss" in r), 0)

    def names(self, prefix: str) -> list[str]:
        """Names of all that was logged that start so, in order of appearance."""
        return list(dict.fromkeys(n for record in self.records for n in record if n.startswith(prefix)))

    def series(self, name: str) -> list[tuple[int, Any]]:
        """(step, value) wherever something of that name was logged, most often a number."""
        return [(record["step"], record[name]) for record in self.records if name in record]

    def last(self, name: str) -> Any:
        """The latest value; None if there is none."""
        found = self.series(name)
        return found[-1][1] if found else None
