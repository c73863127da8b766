"""One process at a time trains into a run folder, or goes on with a file."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lopt.errors import RunFolderError
from lopt.files import is_still_at, lock, make_folder, movable

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone. Raises `RunFolderError` if another one is at it."""
    make_folder(folder)
    # Never deleted: whoever opened it before would hold a lock on a file that nobody else sees any more.
    with _opened(folder / LOCK) as file:
        _lock(file, folder, "a folder that no other process trains into")
        yield


@contextmanager
def held_file(path: Path) -> Iterator[None]:
    """The file, which need not be there yet, for this process alone. Raises `RunFolderError` if another is at it.

    The lock beside it goes with the process, but for one that is killed: such a one holds nobody up.
    """
    make_folder(path.parent)
    place = Path(os.path.realpath(path) + LOCK)
    while True:
        file = _opened(place)
        with file:
            _lock(file, path, "a file that no other process goes on with")
            # Deleted by its last holder between opening and locking: a lock on it would be nobody's hindrance.
            if not is_still_at(file, place):
                continue
            try:
                yield
            finally:
                movable(file)
                place.unlink(missing_ok=True)
            return


def _opened(place: Path) -> IO[str]:
    """Not emptied on opening: it may be another's."""
    return open(place, "a+", encoding="utf-8", errors="replace")


def _lock(file: IO[str], what: Path, expected: str) -> None:
    try:
        lock(file, wait=False)
    except BlockingIOError:
        file.seek(0)
        raise RunFolderError(
            f"{what}: expected {expected}, found {file.read().strip()} at it; let it end, or choose another --out"
        ) from None
    except OSError as error:
        warnings.warn(
            f"{what}: this disk keeps no locks ({error.strerror}); see that no other process is at it",
            stacklevel=4,
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} of {platform.node()}")
    file.flush()
