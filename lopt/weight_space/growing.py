"""Data sets of networks, made in order and saved on the way: they go on after a kill, or with a larger count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.progress import progress
from lopt.runs.provenance import provenance
from lopt.weight_space.network_set import NetworkSet, load

TURNS = (0,) * 12 + (1,) + (2,) * 3
"""Split of each of sixteen networks, as an index in `SPLITS`."""


def splits_of(numbers: range) -> Tensor:
    """Of networks with these numbers: of every sixteen twelve for training, one for validation, three for testing."""
    return torch.tensor([TURNS[n % len(TURNS)] for n in numbers], dtype=torch.uint8)


def grown(
    out: Path,
    header: Mapping[str, Any],
    count: int,
    made: Callable[[range], NetworkSet],
    between_saves: int,
    figure: str = "psnr",
) -> NetworkSet:
    """The networks with numbers below `count`, those at `out` and then what `made` makes of the numbers missing there.

    Written to `out` after every so many networks; figure: the column whose median is shown on the way.
    Raises `ConfigError` if those at `out` have another header.
    """
    networks = _begun(out, header)
    shown = progress(count, header["name"], "network", initial=0 if networks is None else len(networks))
    try:
        while networks is None or len(networks) < count:
            start = 0 if networks is None else len(networks)
            turn = made(range(start, min(start + between_saves, count)))
            # In the order in which a file has them: readers that join tensors are drawn by it.
            params = dict(sorted(turn.params.items()))
            turn = NetworkSet(params, turn.columns, turn.splits, {**header, "provenance": provenance()})
            networks = turn if networks is None else networks.joined(turn)
            networks.save(out)
            shown.update(len(turn))
            shown.set_postfix(**{figure: turn.columns[figure].float().median().item()})
    finally:
        shown.close()
    return networks


def _begun(out: Path, header: Mapping[str, Any]) -> NetworkSet | None:
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
