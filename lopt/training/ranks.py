"""The processes of a run: alone, or one of several that `torchrun` started.

Only sums of small float64 matrices and gathered checkpoints pass between them, so gloo carries everything, on
machines with GPUs too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lopt.errors import ConfigError, LostProcessError

T = TypeVar("T")

MEETING = timedelta(minutes=5)
"""How long processes wait for each other in the beginning: one that died before it came is missed by none."""


@dataclass(frozen=True)
class Ranks:
    """This process's number among `world`; the leader writes the run folder."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether the share of work with this index is this process's."""
        return index % self.world == self.rank

    def check_shares(self, count: int) -> None:
        """Raise a `ConfigError` unless so many cohorts in each outer step give every process as much to do."""
        if count % self.world:
            raise ConfigError(
                f"meta.cohorts_per_step: expected a multiple of the {self.world} processes, found {count}"
            )

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes. Where all but one contribute zeros it is exact."""
        if self.world > 1:
            self._reached(lambda: dist.all_reduce(values))
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return bool(self.sum(torch.tensor([float(flag)])) > 0)

    def merge(self, mine: dict[int, Any]) -> dict[int, Any]:
        """On the leader the union of all processes' dicts; elsewhere `mine`."""
        if self.world == 1:
            return mine
        gathered: list[Any] | None = [None] * self.world if self.leads else None
        self._reached(lambda: dist.gather_object(mine, gathered))
        return (
            mine if gathered is None else {index: value for part in gathered for index, value in part.items()}
        )

    def _reached(self, exchange: Callable[[], T]) -> T:
        try:
            return exchange()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise LostProcessError(
                f"process {self.rank} of {self.world} lost another one: {reason}"
            ) from None


@contextmanager
def connected() -> Iterator[Ranks]:
    """The processes that `torchrun` started with this one; this one alone if it was started by hand."""
    told = os.environ.get("WORLD_SIZE", "1")
    if not told.isdecimal():
        raise ConfigError(
            f"the environment variable WORLD_SIZE: expected a number of processes, found {told!r}"
        )
    world = int(told)
    if world == 1:
        yield Ranks()
        return
    # Not at the top: a build of torch without them can still train in one process.
    from torch.distributed.distributed_c10d import _set_pg_timeout, default_pg_timeout

    try:
        dist.init_process_group("gloo", timeout=MEETING)
    except ValueError as error:  # a variable is missing or no number: nobody was there to meet
        raise ConfigError(
            f"expected what torchrun sets beside WORLD_SIZE={world}, found less: {error}; start it with torchrun, or"
            " unset WORLD_SIZE"
        ) from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise LostProcessError(f"the {world} processes of the run did not meet: {reason}") from None
    # Once they have met, a death closes the connection and is seen at once; being slow is none.
    _set_pg_timeout(default_pg_timeout)
    try:
        yield Ranks(dist.get_rank(), world)
    except LostProcessError:
        raise  # gloo may abort the process when it takes down a connection that broke: see `leave`
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End a process that was one of several without the destructors, which abort it at times (exit code -6)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
