"""The log of a benchmark: one JSON line for each run, only ever added to, so that no run is done twice.

Lines are appended in single writes, so that several processes can share out a benchmark's work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""A run with what came of it, as it stands in a line of the log."""


@dataclass(frozen=True)
class Run:
    """What is trained: fresh networks of one task with one optimizer, one for each seed."""

    task: str
    spec: tuple[str, Mapping[str, Any]]
    """Family and spec of the task: a task that is redefined is run anew under its old name."""
    optimizer: str
    digest: str | None
    """Of a learned rule's file: a rule that is trained anew is run anew under its old name."""
    lr: float
    schedule: str
    seeds: tuple[int, ...]
    purpose: str
    """"tune": measured on validation data; "test": on test data; "time": no training, what a step costs."""
    steps: int

    @property
    def key(self) -> str:
        """The same for equal runs, whether they come from Python or from the log."""
        return canonical(asdict(self))


def canonical(value: Any) -> str:
    """As JSON; the same for values that differ in order of keys, or in tuple or list."""
    return json.dumps(value, sort_keys=True)


FIELDS = tuple(Run.__dataclass_fields__)


class Log:
    """The lines of log.jsonl in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "log.jsonl"

    def records(self) -> list[Record]:
        """All runs, oldest first. A line that a kill cut short is no run."""
        return sorted(read_lines(self.path), key=lambda record: str(record["provenance"]["time"]))

    def by_key(self) -> dict[str, Record]:
        """The runs by `Run.key`; the newest of equal ones."""
        return {key_of(record): record for record in self.records()}

    def add(self, record: Record) -> None:
        append(self.path, record)


def key_of(record: Mapping[str, Any]) -> str:
    """The key of the run that a record tells of."""
    return Run(**{name: record[name] for name in FIELDS}).key


def append(path: Path, record: Record) -> None:
    """One line more, in a single write: another process may be appending to the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False) + "\n"
    with open(path, "ab") as file:
        file.write((("" if _ends_with_newline(path) else "\n") + line).encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[Record]:
    """The records of a file of lines, as far as they are whole: a kill or a power cut may have spoilt one."""
    found = map(_parsed, path.read_bytes().split(b"\n")) if path.exists() else ()
    return [record for record in found if record]


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read() in (b"", b"\n")


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line.decode())
    except ValueError:  # no JSON, or no text
        return None
    return record if isinstance(record, dict) else None
