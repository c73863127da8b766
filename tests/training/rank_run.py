"""A program for torchrun: a tiny meta-training run shared by its processes. Arguments: folder, options as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from lopt.errors import LostProcessError
from lopt.training.ranks import connected, leave
from lopt.training.trainer import CHECKPOINT, restore
from tests.training.tiny_run import CONFIG, tiny_trainer


def main(folder: Path, options: dict[str, object], kill: int | None) -> None:
    """Train; the last process kills itself at outer step `kill`."""
    torch.set_num_threads(1)
    with connected() as ranks:
        trainer = tiny_trainer(folder, CONFIG.but(**options), ranks=ranks)  # type: ignore[arg-type]
        if (folder / CHECKPOINT).exists():
            restore(trainer)
        if kill is not None and ranks.rank == ranks.world - 1:
            step = trainer._outer_step

            def deadly() -> dict[str, float]:
                if trainer.step == kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step()

            trainer._outer_step = deadly  # type: ignore[method-assign]
        trainer.run()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
    except LostProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        leave(1)
    leave(0)
