"""What a run has logged so far, read back from its metrics.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lopt.errors import ConfigError
from lopt.files import user_path

CONFIG_FILE, METRICS, CHECKPOINT = "config.yaml", "metrics.jsonl", "checkpoint.safetensors"


def run_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a run that has begun. Raises `ConfigError` if there is none."""
    folder = user_path(path)
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{folder}: expected a run folder with {CONFIG_FILE}, found none; start it with `lopt train`"
        )
    return folder


def files_of(folder: str | os.PathLike[str]) -> list[Path]:
    """What a run has written that nothing can make again, as far as it is there; pages and pictures can be."""
    from lopt.rules.io import RULE  # not at the top: the command line has run folders, and no torch yet

    return [user_path(folder) / name for name in (CONFIG_FILE, METRICS, CHECKPOINT, RULE)]


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file; what a kill, a power cut, a full disk or an editor made of others is left out."""
    return ({key: v for key, v in record.items() if _is_logged(key, v)} for _, record in lines(path))


def _is_logged(key: str, value: object) -> bool:
    """Whether a run may have logged it: numbers, and curves for pictures."""
    if key != "curves":
        return _is_number(value)
    losses = value.get("losses") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(losses, dict):
        return False
    rows = [value.get("steps"), *losses.values()]
    lengths = {len(row) if isinstance(row, list) and all(map(_is_number, row)) else -1 for row in rows}
    return len(lengths) == 1 and -1 not in lengths


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a metrics file that hold a record, and the records."""
    if not path.exists():
        return
    with open(path, "rb") as file:  # bytes: a damaged line need not be text
        for line in file:
            with suppress(ValueError, RecursionError):
                record = json.loads(line.decode())
                step = record.get("step") if isinstance(record, dict) else None
                if type(step) is int and 0 <= step < 2**63:
                    yield line.rstrip(b"\r\n"), record


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

    def values(self, name: str) -> list[Any]:
        """All values of that name, in order."""
        return [record[name] for record in self.records if name in record]

    def last(self, name: str) -> Any:
        """The latest value; None if there is none."""
        return next((record[name] for record in reversed(self.records) if name in record), None)
