"""Runs on several processes: the same meta-parameters as on one, and a clear end when one is lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from lopt.errors import ConfigError, LostProcessError
from lopt.training import checkpoint
from lopt.training import ranks as processes
from lopt.training.ranks import Ranks, connected
from lopt.training.trainer import CHECKPOINT
from tests.training.tiny_run import metrics, tiny_trainer

ROOT = Path(__file__).parents[2]
SHARED = {"cohorts": 4, "cohorts_per_step": 4, "steps": 5, "checkpoint_every": 2}


def launch(
    world: int, folder: Path, options: Mapping[str, Any], kill: int | None = None
) -> list[tuple[int, str]]:
    """The exit code and what went to stderr of each process, started as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tests.training.rank_run",
        str(folder),
        json.dumps(options),
        json.dumps(kill),
    ]
    shared = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, **shared, "RANK": str(rank)}
        )
        for rank in range(world)
    ]  # fmt: skip
    errors = [process.communicate(timeout=240)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def assert_done(ended: list[tuple[int, str]]) -> None:
    assert not any(code for code, _ in ended), ended


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert_done(launch(1, folder, SHARED))
    return folder


def state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / CHECKPOINT)


def test_two_processes_give_the_rule_of_one(alone: Path, tmp_path: Path) -> None:
    """Bit for bit, every network and random stream with it; the log too."""
    assert_done(launch(2, tmp_path, SHARED))
    torch.testing.assert_close(state(tmp_path), state(alone), rtol=0, atol=0, equal_nan=True)
    assert metrics(tmp_path) == metrics(alone)


@pytest.mark.slow
def test_four_processes_too(alone: Path, tmp_path: Path) -> None:
    assert_done(launch(4, tmp_path, SHARED))
    torch.testing.assert_close(state(tmp_path), state(alone), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["es", "pes", "mixture"])
def test_evolution_is_shared_alike(estimator: str, tmp_path: Path) -> None:
    options = {**SHARED, "estimator": estimator}
    for world in (1, 2):
        assert_done(launch(world, tmp_path / str(world), options))
    torch.testing.assert_close(state(tmp_path / "1"), state(tmp_path / "2"), rtol=0, atol=0, equal_nan=True)


def test_a_killed_process_ends_the_run_and_one_process_finishes_it(alone: Path, tmp_path: Path) -> None:
    (code, error), (killed, _) = launch(2, tmp_path, SHARED, kill=3)
    assert killed == -9
    assert code == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: process 0 of 2 lost another one: ")
    assert "the checkpoint of outer step 2 is whole, continue with `lopt resume" in last
    assert "Traceback" not in error
    assert state(tmp_path)["step"] == 2
    assert_done(launch(1, tmp_path, SHARED))
    torch.testing.assert_close(state(tmp_path), state(alone), rtol=0, atol=0, equal_nan=True)


def test_every_process_needs_its_share(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"cohorts_per_step: expected a multiple of the 2 processes, found 1"
    ):
        tiny_trainer(tmp_path, ranks=Ranks(1, 2))


def test_one_process_needs_no_others() -> None:
    with connected() as ranks:
        assert ranks == Ranks(0, 1)
    values = torch.arange(3.0)
    assert ranks.sum(values) is values
    assert ranks.any(True)
    assert not ranks.any(False)
    assert ranks.merge({1: "a"}) == {1: "a"}


@pytest.mark.parametrize(
    ("world", "message"),
    [("x", "WORLD_SIZE: expected a number"), ("2", "what torchrun sets beside WORLD_SIZE=2")],
)
def test_what_only_looks_like_torchrun(world: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=message), connected():
        pass


def test_processes_do_not_wait_half_an_hour_for_one_that_died_before_it_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(processes, "MEETING", timedelta(seconds=1))
    with (
        pytest.raises(LostProcessError, match=r"the 2 processes of the run did not meet: .*") as caught,
        connected(),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_shares_are_disjoint_and_complete() -> None:
    owners = [[rank for rank in range(3) if Ranks(rank, 3).owns(slot)] for slot in range(9)]
    assert sorted(owners) == [[0]] * 3 + [[1]] * 3 + [[2]] * 3
