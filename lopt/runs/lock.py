"""One process at a time trains into a run folder."""

from __future__ import annotations

import fcntl
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lopt.errors import RunFolderError
from lopt.files import make_folder

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone. Raises `RunFolderError` if another one is at it."""
    make_folder(folder)
    # Not emptied on opening: it may be another's. And never deleted: whoever opened it before would hold a lock on
    # a file that nobody else sees any more.
    with open(folder / LOCK, "a+", encoding="utf-8", errors="replace") as file:
        try:
            # The system lets go of it when the process ends, however that comes: no lock outlives its owner.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunFolderError(
                f"{folder}: expected a folder that no other process trains into, found {file.read().strip()} at it;"
                " let it end, or choose another --out"
            ) from None
        except OSError as error:  # some network disks
            warnings.warn(
                f"{folder}: this disk keeps no locks ({error.strerror}); see that no other process trains into it",
                stacklevel=2,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()}")
        file.flush()
        yield
