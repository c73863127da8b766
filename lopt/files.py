"""Lopt's own files: tensors as safetensors, everything else as JSON in its header; written atomically.

Nothing in them can run.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lopt.errors import ConfigError, RuleFileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

DIGEST = "sha256"
PARTIAL = ".partial"
"""What a file is called until it is whole."""


LARGEST_HEADER, DEEPEST, LONGEST_NUMBER = 16_000_000, 64, 40
"""Bytes of a header, levels of nesting in its JSON, and digits of a whole number."""


def read(path: Path, format_name: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON header of one of lopt's own safetensors files, checked."""
    try:
        with open(path, "rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
        if size > LARGEST_HEADER:
            raise OSError(f"a header of {size} bytes")
        with safe_open(path, framework="pt") as file:
            header = _header(path, format_name, file.metadata() or {}, version)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise RuleFileError(
            f"{path}: expected a {format_name} file, found one that cannot be read: {error}"
        ) from None
    if DIGEST in header and header[DIGEST] != digest(tensors):
        raise RuleFileError(f"{path}: this {format_name} file is damaged: its tensors are not those written")
    return tensors, header


def is_of(path: Path, format_name: str) -> bool:
    """Whether it is one of lopt's own files of this format, as far as its header says; `read` checks the rest."""
    try:
        with safe_open(path, framework="pt") as file:
            return format_name in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _header(path: Path, format_name: str, metadata: Mapping[str, str], version: int) -> dict[str, Any]:
    if format_name not in metadata:
        raise RuleFileError(f"{path}: expected a {format_name} file, found another safetensors file")
    try:
        header = _parse(metadata[format_name])
    except ValueError as error:
        raise RuleFileError(f"{path}: the header of this {format_name} file is damaged: {error}") from None
    if not isinstance(header, dict):
        raise RuleFileError(f"{path}: the header of this {format_name} file is damaged: no mapping")
    found = header.get("version")
    if found != version:
        raise RuleFileError(
            f"{path}: expected {format_name} version {version}, found {found!r:.40}; use a matching lopt"
        )
    return header


def _parse(text: str) -> Any:
    """JSON whose depth and numbers are bounded: Python's parser recurses, and refuses numbers of 4,300 digits."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise ValueError(f"{deepest} levels of nesting")
    return json.loads(text, parse_int=_int)


def _int(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def write(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], format_name: str, header: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON header with its version as one of lopt's own files, atomically."""
    from safetensors.torch import save  # not at the top: the command line has paths, and no torch yet

    # All in one entry: safetensors writes several in any order, and equal files should be equal.
    metadata = {format_name: json.dumps({**header, DIGEST: digest(tensors)})}
    write_atomically(user_path(path), save(tensors, metadata))


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as its user means it: with `~` for a home folder. Raises `ConfigError` for one that cannot be."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ConfigError(
            f"{text}: expected a path, found a home folder that is not known: {error}"
        ) from None
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r}: expected a path, found a zero byte in it")
    return path


def output_path(text: str | os.PathLike[str], *read: str | os.PathLike[str]) -> Path:
    """Where the result of long work is to be written, tried before the work; none of what is read for it.

    Raises `ConfigError` or `OSError`.
    """
    path = user_path(text)
    for source in map(user_path, read):
        if path.exists() and source.exists() and path.samefile(source):
            raise ConfigError(
                f"{path}: expected another file than what is read, found the same, which would be lost; choose another"
            )
    if path.is_dir():
        raise ConfigError(f"{path}: expected a file to write, found a folder")
    make_folder(path.parent)
    if not _is_device(path) and not (partial := _partial(path)).exists():  # else another may be writing there
        with _alone(partial) as file:
            movable(file)
            partial.unlink(missing_ok=True)
    return path


def _is_device(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/null: nothing that another file may take the place of."""
    return path.exists() and not path.is_file()


def _partial(path: Path) -> Path:
    """Beside the file: a link is no file, and stays what it is."""
    return Path(os.path.realpath(path) + PARTIAL)


def make_folder(path: Path) -> None:
    """The folder, if it is not there. Raises `ConfigError` where a file is in its way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        found = next(place for place in (path, *path.parents) if os.path.lexists(place))
        what = "a file" if found.exists() else "a link to nothing"
        raise ConfigError(f"{found}: expected a folder, found {what}") from None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' names and bytes: safetensors notices a lost byte, but not a changed one."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        # A tensor of one element is contiguous with any stride, and torch views no bytes across a stride.
        flat = tensor.contiguous().as_strided((tensor.numel(),), (1,))
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write_picture(path: Path, figure: Figure, **options: Any) -> None:
    """Write a figure of matplotlib in the format of the path's suffix, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], **options)
    write_atomically(path, buffer.getvalue())


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target and rename: at any moment the old file or the new one is there, whole."""
    make_folder(path.parent)
    try:
        if _is_device(path):
            path.write_bytes(data)
        else:
            _replace(path, data)
    except OSError as error:  # what fails on the open file names none
        error.filename = str(path)
        raise


def _replace(path: Path, data: bytes) -> None:
    partial = _partial(path)
    with _alone(partial) as file:
        try:
            file.truncate(0)  # what a kill has left
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            movable(file)
            os.replace(partial, os.path.realpath(path))
        except BaseException:
            movable(file)
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def _alone(partial: Path) -> Iterator[IO[bytes]]:
    """The file, made if need be, while no other process writes to it: each waits for its turn."""
    while True:
        with open(partial, "ab") as file:
            with suppress(OSError):  # without locks two writers at once are not kept apart
                lock(file)
            if is_still_at(file, partial):
                yield file
                return


def lock(file: IO[Any], wait: bool = True) -> None:
    """The file for this process alone, until it is closed or the process ends, however that comes.

    Raises `BlockingIOError` if another process holds it and this one is not to wait, `OSError` where there are no
    locks, as on some network disks and on Windows.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has none that lopt knows")
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def movable(file: IO[Any]) -> None:
    """Close a file on Windows, which neither renames nor deletes what is open; elsewhere its lock would be lost."""
    if fcntl is None:
        file.close()


def is_still_at(file: IO[Any], path: Path) -> bool:
    """Whether an open file is the one at a path, where another process may have deleted or renamed it since."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
