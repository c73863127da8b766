"""Meta-training runs: they learn, they survive, and a resumed one is the uninterrupted one bit for bit."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lopt.errors import LoptError
from lopt.inner.task import Task
from lopt.rules import load_rule
from lopt.training import checkpoint
from lopt.training.estimators import Estimate
from lopt.training.population import Population
from lopt.training.trainer import CHECKPOINT, Weighted, restore
from tests.helpers import TinyFamily, TinyTask
from tests.training.tiny_run import CLOCK, CONFIG, MOMENTS, finish, metrics, outcome, tiny_rule, tiny_trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the runs."""
    monkeypatch.setattr("lopt.training.trainer.draw_training", lambda *_: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    finish(out)
    return out


def test_outer_loss_goes_down(tmp_path: Path) -> None:
    config = CONFIG.but(steps=30, cohorts=2, networks=8, truncation=4, cohort_turns=100, checkpoint_every=1000,
                     validate_every=1000, shortest_horizon=4, longest_horizon=4)  # fmt: skip
    trainer = tiny_trainer(tmp_path, config)
    before = trainer.rule.gauges()["base_rate"]
    trainer.run()
    losses = [row["outer_loss"] for row in metrics(tmp_path) if "outer_loss" in row]
    assert len(losses) == 30
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert trainer.rule.gauges()["base_rate"] > before
    assert trainer.counts["skipped"] == 0


def test_a_run_leaves_what_it_says(undisturbed: Path) -> None:
    rows = metrics(undisturbed)
    steps = [row["step"] for row in rows if "outer_loss" in row]
    assert len(steps) == CONFIG.steps
    assert steps == list(range(1, CONFIG.steps + 1))
    validations = [row for row in rows if "validation" in row]
    assert [row["step"] for row in validations] == [0, 4, 8, 10]
    for family in ("narrow", "wide"):
        assert any(f"outer_loss/{family}" in row for row in rows)
    assert any((undisturbed / "tensorboard").iterdir())
    assert not list(undisturbed.glob("*.partial"))
    load_rule(undisturbed)


def test_the_best_rule_by_validation_is_kept(undisturbed: Path) -> None:
    scores = {row["step"]: row["validation"] for row in metrics(undisturbed) if "validation" in row}
    kept = tiny_trainer(undisturbed)
    restore(kept)
    assert kept.best == min(scores.values())


def test_without_validation_tasks_the_last_rule_is_kept(tmp_path: Path) -> None:
    trainer = finish(tmp_path, validation=[])
    tree = checkpoint.load(tmp_path / CHECKPOINT)
    average = tree["optimizer"]["average"]
    assert trainer.step == CONFIG.steps
    for name, value in load_rule(tmp_path).state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=0, atol=0)


def test_checkpoint_round_trip(undisturbed: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.load_tree(checkpoint.load(undisturbed / CHECKPOINT))
    checkpoint.write(tmp_path / CHECKPOINT, trainer.tree())
    assert (tmp_path / CHECKPOINT).read_bytes() == (undisturbed / CHECKPOINT).read_bytes()


def test_equal_runs_are_equal_and_another_seed_is_another(undisturbed: Path, tmp_path: Path) -> None:
    finish(tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)
    trainer = tiny_trainer(tmp_path / "other")
    other = type(trainer)(tiny_rule(), trainer.population.families, [], CONFIG, tmp_path / "other", seed=4)
    other.run()
    assert outcome(tmp_path / "other")[0] != outcome(undisturbed)[0]


def test_kill_at_any_moment_and_resume(undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL between any two steps of writing files, within a step, and at times on the clock."""
    codes = killed_and_resumed(tmp_path, outcome(undisturbed))
    assert len(codes) == len(MOMENTS) + CLOCK
    assert all(first == -signal.SIGKILL for name, (first, _) in codes.items() if name in MOMENTS)
    assert any(first == -signal.SIGKILL for name, (first, _) in codes.items() if name not in MOMENTS)


@pytest.mark.slow
def test_kill_at_twenty_random_moments_and_resume(undisturbed: Path, tmp_path: Path) -> None:
    """The same meta-parameters, networks, random streams and log in the end, each time."""
    codes = killed_and_resumed(tmp_path, outcome(undisturbed), random_kills=20)
    assert len(codes) == 20
    assert all(first == -signal.SIGKILL for first, _ in codes.values())


def killed_and_resumed(
    folder: Path, expected: tuple[bytes, bytes, str], random_kills: int = 0
) -> dict[str, tuple[int, int]]:
    """The exit codes of runs that were killed, and of those that finished them with the expected outcome."""
    program = [sys.executable, "-m", "tests.training.tiny_run", str(folder), str(random_kills)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    codes: dict[str, tuple[int, int]] = json.loads(done.stdout.splitlines()[-1])
    for name, (_, second) in codes.items():
        assert second == 0, (name, done.stderr)
        assert outcome(folder / name) == expected, name
    return codes


def test_a_torn_line_of_metrics_is_dropped(undisturbed: Path, tmp_path: Path) -> None:
    tiny_trainer(tmp_path, validation=[Terminates(4 * CONFIG.validation_networks + 1)]).run()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "outer_lo')
    finish(tmp_path)
    assert outcome(tmp_path)[2] == outcome(undisturbed)[2]


class Terminates(TinyTask):
    """Sends a signal to its own process at the n-th batch."""

    def __init__(self, calls: int, number: int = signal.SIGTERM) -> None:
        super().__init__(4)
        self.left, self.signal = calls, number

    def sample(self, split: str, count: int, generator: Generator) -> Tensor:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.signal)
        return super().sample(split, count, generator)


class Terminating(TinyFamily):
    """A family whose tasks are the given one, and otherwise like another's."""

    def __init__(self, family: TinyFamily, number: int) -> None:
        super().__init__(family.name, family.widths)
        self.left = number

    def build(self, spec: Mapping[str, Any]) -> Task:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().build(spec)


@pytest.mark.parametrize("number", [1, 3])
def test_sigterm_ends_the_run_with_a_checkpoint(undisturbed: Path, tmp_path: Path, number: int) -> None:
    """While the first cohorts are made, and within a step."""
    handler = signal.getsignal(signal.SIGTERM)
    families = (FAMILY_NARROW, Weighted(Terminating(TinyFamily("wide", (5, 6)), number), 2.0))
    trainer = tiny_trainer(tmp_path, families=families)
    trainer.run()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert trainer.step < CONFIG.steps
    assert checkpoint.load(tmp_path / CHECKPOINT)["step"] == trainer.step
    finish(tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="terminals of this system send no signal")
@pytest.mark.parametrize("handling", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_closed_terminal_ends_the_run_with_a_checkpoint_unless_nohup(
    tmp_path: Path, handling: signal.Handlers
) -> None:
    before = signal.signal(signal.SIGHUP, handling)
    try:
        trainer = tiny_trainer(tmp_path, validation=[Terminates(CONFIG.validation_networks, signal.SIGHUP)])
        trainer.run()
        assert signal.getsignal(signal.SIGHUP) is handling
    finally:
        signal.signal(signal.SIGHUP, before)
    assert trainer.step == (0 if handling is signal.SIG_DFL else CONFIG.steps)
    assert checkpoint.load(tmp_path / CHECKPOINT)["step"] == trainer.step


def test_a_run_in_pieces_of_no_time_is_the_run(undisturbed: Path, tmp_path: Path) -> None:
    """With the time over at once there is no outer step, and the checkpoint that there is is kept."""
    first = tiny_trainer(tmp_path)
    first.run(hours=1e-9)
    assert first.step == 0
    assert checkpoint.load(tmp_path / CHECKPOINT)["step"] == 0
    second = restore(tiny_trainer(tmp_path))
    second.run(hours=1e-9)
    assert second.step == 0
    assert finish(tmp_path).step == CONFIG.steps
    assert outcome(tmp_path) == outcome(undisturbed)


def test_families_are_held_to_few_architectures(tmp_path: Path) -> None:
    """The same ones for the whole run, resumed or not; a task that comes again is the one that was compiled."""
    config = CONFIG.but(architectures=1)
    families = (Weighted(TinyFamily("tiny", tuple(range(2, 60)))),)
    one, two = (tiny_trainer(tmp_path / name, config, families) for name in ("a", "b"))
    tasks = [one.population.new_cohort(slot).task for slot in (0, 1, 2, 0)]
    assert all(task is tasks[0] for task in tasks)
    assert two.population.new_cohort(1).task.name == tasks[0].name
    whole = finish(tmp_path / "whole", config=config, families=families)
    pieces = tmp_path / "pieces"
    tiny_trainer(pieces, config, families).run(hours=1e-9)
    assert finish(pieces, config=config, families=families).step == whole.step == config.steps
    assert outcome(pieces) == outcome(tmp_path / "whole")


FAMILY_NARROW = Weighted(TinyFamily("narrow", (2, 3)))


def test_sigterm_in_a_validation(undisturbed: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, validation=[Terminates(4 * CONFIG.validation_networks + 1)])
    trainer.run()
    assert trainer.step == 4
    assert checkpoint.load(tmp_path / CHECKPOINT)["step"] == 4
    finish(tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.parametrize("writes", [3, 4, 5])
def test_a_full_disk_loses_no_earlier_checkpoint(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    real, left = os.fsync, [writes]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LoptError, match="space"):
            finish(tmp_path)
    assert checkpoint.load(tmp_path / CHECKPOINT)["step"] in (3, 6)
    assert not list(tmp_path.glob("*.partial"))
    finish(tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


def test_what_a_task_cannot_read_is_not_the_run_folders_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> Tensor:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "rows.csv")

    monkeypatch.setattr(TinyTask, "sample", missing)
    with pytest.raises(FileNotFoundError, match=r"rows\.csv"):
        finish(tmp_path)


def test_a_rule_without_a_score_gives_way_to_one_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nan is not above anything, so that the first rule would have stayed the best for good."""
    scores = iter([math.nan, 0.5, 0.7])
    monkeypatch.setattr(
        "lopt.training.trainer.validation_curve",
        lambda _, __, config: torch.full((config.validation_steps,), next(scores, 0.7)),
    )
    trainer = tiny_trainer(tmp_path)
    bests = []
    for _ in range(3):
        trainer._validate(None)
        bests.append(trainer.best)
    assert math.isnan(bests[0])
    assert bests[1:] == [pytest.approx(math.log(0.5))] * 2


class Exploding(TinyTask):
    """Its loss becomes huge, infinite or nan in a tenth of the batches."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__(width)
        self.factor = factor

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return super().loss(params, batch) * torch.where(batch[0, 0] > 1.28, self.factor, 1.0)


class ExplodingFamily(TinyFamily):
    def __init__(self, factor: float) -> None:
        super().__init__("exploding", (3,))
        self.factor = factor

    def build(self, spec: Mapping[str, Any]) -> Task:
        return Exploding(spec["width"], self.factor)


@pytest.mark.parametrize("factor", [1e4, math.inf, math.nan])
def test_diverged_networks_are_restarted_and_counted(tmp_path: Path, factor: float) -> None:
    config = CONFIG.but(steps=8, cohort_turns=100, longest_horizon=1000, shortest_horizon=1000)
    trainer = finish(tmp_path, config=config, families=[Weighted(ExplodingFamily(factor))])
    assert trainer.counts["diverged"] > 0
    assert trainer.counts["restarts"] >= trainer.counts["diverged"]
    assert all(torch.isfinite(p).all() for p in trainer.rule.parameters())
    for cohort in trainer.population.cohorts.values():
        assert all(torch.isfinite(p).all() for p in cohort.networks.params.values())
    rows = [row for row in metrics(tmp_path) if "outer_loss" in row]
    assert all(math.isfinite(row["outer_loss"]) for row in rows)
    # What was left out of the meta-gradients is what diverged.
    dropped = sum(row["dropped_share"] for row in rows) * config.networks
    assert dropped == pytest.approx(trainer.counts["diverged"])


def test_the_share_of_clipped_networks_is_logged(tmp_path: Path) -> None:
    """All are above a limit of next to nothing, and none are above one of 1e6."""
    for limit, share in ((1e-9, 1.0), (1e6, 0.0)):
        finish(tmp_path / str(share), config=CONFIG.but(steps=3, estimator={"network_clip": limit}))
        rows = [row for row in metrics(tmp_path / str(share)) if "outer_loss" in row]
        assert [row["clipped_share"] for row in rows] == [share] * 3


class Unsmooth(TinyTask):
    """A loss with value and gradient, but a second derivative of inf * 0."""

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        rough = (params["w"] - params["w"].detach()).abs().pow(1.5).sum()
        return super().loss(params, batch) + rough


class UnsmoothFamily(TinyFamily):
    def build(self, spec: Mapping[str, Any]) -> Task:
        return Unsmooth(spec["width"])


def test_meta_gradients_that_are_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    trainer = finish(tmp_path, families=[Weighted(UnsmoothFamily())])
    assert trainer.counts["skipped"] == CONFIG.steps
    for name, p in tiny_rule().named_parameters():
        assert torch.equal(dict(trainer.rule.named_parameters())[name], p)


def test_restarts_are_staggered(tmp_path: Path) -> None:
    """Eight networks that live for ten truncations begin at different points of their lives."""
    config = CONFIG.but(
        steps=20, cohorts=1, networks=8, cohort_turns=100, shortest_horizon=20, longest_horizon=20
    )
    finish(tmp_path, config=config)
    restarts = [0, *(row["restarts"] for row in metrics(tmp_path) if "restarts" in row)]
    each = [after - before for before, after in zip(restarts, restarts[1:], strict=False)]
    assert sum(each) >= 16
    assert max(each) <= 5
    assert sum(count > 0 for count in each) >= 8


@pytest.mark.parametrize("estimator", ["nres", "lives"])
def test_a_run_over_whole_lives_resumes_bit_for_bit(tmp_path: Path, estimator: str) -> None:
    config = CONFIG.but(
        estimator={"name": estimator, "fitness": "rank"}, outer_loss="final", outer_data="validation", steps=6,
        cohort_turns=1 if estimator == "lives" else 4,
    )  # fmt: skip
    whole = finish(tmp_path / "whole", config=config)
    halves = tiny_trainer(tmp_path / "halves", config)
    halves.config = config.but(steps=3)
    halves.run()
    finish(tmp_path / "halves", config=config)
    assert outcome(tmp_path / "halves")[0] == outcome(tmp_path / "whole")[0]
    assert whole.counts["restarts"] > 0
    # Nothing is left of a life that is over: a checkpoint is the rule, its optimizer and the random streams.
    assert bool(whole.population.cohorts) == (estimator == "nres")


def test_every_life_is_as_long_as_the_horizon_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rule's own counts of steps at the end of lives of 2 to 8 steps."""
    config, lived = CONFIG.but(estimator="lives", known_horizon=1.0, steps=12), []
    advance = Population.advance

    def seen(self: Population, slot: int, estimate: Estimate) -> int:
        state = estimate.networks.state["w"]
        lived.append((state["step"].tolist(), state["total_steps"].tolist()))
        return advance(self, slot, estimate)

    monkeypatch.setattr(Population, "advance", seen)
    finish(tmp_path, config=config)
    assert len(lived) == 12
    assert all(taken == told for taken, told in lived)
    assert len({taken[0] for taken, _ in lived}) > 1
