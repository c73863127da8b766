"""Data sets of networks, made in order and saved on the way: they go on after a kill, or with a larger count."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from lopt.errors import ConfigError
from lopt.files import user_path
from lopt.numerics.defaults import torchs_defaults
from lopt.progress import progress
from lopt.runs.lock import held_file
from lopt.runs.provenance import provenance

TURNS = (0,) * 12 + (1,) + (2,) * 3
"""Split of each of sixteen networks, as an index in `SPLITS`."""


def splits_of(numbers: range) -> Tensor:
    """Of networks with these numbers: of every sixteen twelve for training, one for validation, three for testing."""
    return torch.tensor([TURNS[n % len(TURNS)] for n in numbers], dtype=torch.uint8)


class Growing(Protocol):
    """A data set that can be gone on with: a `NetworkSet` or a `NetworkPark`."""

    @property
    def columns(self) -> Mapping[str, Tensor]: ...

    @property
    def header(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def headed(self, header: Mapping[str, Any]) -> Self: ...

    def joined(self, other: Self) -> Self: ...

    def save(self, path: Path) -> None: ...


S = TypeVar("S", bound=Growing)


@torchs_defaults()
def grown(
    out: str | os.PathLike[str],
    header: Mapping[str, Any],
    count: int,
    made: Callable[[range], S],
    between_saves: int,
    load: Callable[[Path], S],
    figure: str = "psnr",
) -> S:
    """The networks with numbers below `count`, those at `out` and then what `made` makes of the numbers missing there.

    Written to `out` after every so many networks, and read by `load`; figure: the column whose median is shown.
    Raises `ConfigError` if those at `out` have another header, `RunFolderError` if another process goes on with them.
    """
    out = user_path(out)
    networks = _begun(out, header, load)
    if networks is not None and len(networks) >= count:
        return networks  # no lock, as the disk may be one that cannot be written
    with held_file(out):
        networks = _begun(out, header, load)  # again: another process may have added some
        shown = progress(count, header["name"], "network", initial=0 if networks is None else len(networks))
        try:
            while networks is None or len(networks) < count:
                start = 0 if networks is None else len(networks)
                turn = made(range(start, min(start + between_saves, count)))
                turn = turn.headed({**header, "provenance": provenance()})
                networks = turn if networks is None else networks.joined(turn)
                networks.save(out)
                shown.update(len(turn))
                shown.set_postfix(**{figure: turn.columns[figure].float().median().item()})
        finally:
            shown.close()
    return networks


def _begun(out: Path, header: Mapping[str, Any], load: Callable[[Path], S]) -> S | None:
    """What is there of a data set, if anything."""
    if not out.exists():
        return None
    networks = load(out)
    for key, expected in header.items():
        # Through JSON, tuples have become lists.
        found = networks.header.get(key)
        if found != _plain(expected):
            raise ConfigError(
                f"{out}: expected networks with {key} {expected}, found {found}; give another --out"
            )
    return networks


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
