"""The meta-training loop: cohorts take turns, each turn gives one meta-gradient; one outer step is one or more turns.

Everything that the future of a run depends on is in `Trainer.tree`: a resumed run is the uninterrupted one, and a
run on several processes is the run on one.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lopt.errors import LoptError, LostProcessError, RunFolderError
from lopt.inner.checks import check_task
from lopt.inner.evaluation import FINAL_STEPS
from lopt.inner.task import Task
from lopt.progress import progress
from lopt.rules import LearnedRule, save_rule
from lopt.rules.io import RULE
from lopt.runs.history import CHECKPOINT
from lopt.runs.pictures import draw_training
from lopt.runs.runlog import RunLog
from lopt.training import checkpoint
from lopt.training.config import MetaConfig
from lopt.training.gauges import peak_memory, step_gauges
from lopt.training.outer_optimizer import OuterOptimizer
from lopt.training.population import Population, Weighted
from lopt.training.ranks import Ranks
from lopt.training.turns import Turns
from lopt.training.validation import validation_curve

__all__ = ["CHECKPOINT", "RULE", "Trainer", "Weighted", "restore"]


class Trainer:
    """Meta-trains a learned rule on task families; writes its run folder as it goes.

    out: the run folder, which gets checkpoint.safetensors, rule.safetensors (the best by validation),
    metrics.jsonl, training.png and tensorboard/. `provenance` is written into the rule file. Several processes,
    each with a trainer of the same arguments but for `ranks`, share the cohorts; the leader writes.
    """

    def __init__(
        self, rule: LearnedRule, families: Sequence[Weighted], validation: Sequence[Task], config: MetaConfig,
        out: Path, seed: int = 0, provenance: dict[str, Any] | None = None, ranks: Ranks | None = None,
    ) -> None:  # fmt: skip
        self.rule, self.validation = rule, list(validation)
        self.config, self.out, self.provenance = config, Path(out), provenance or {}
        self.ranks = ranks or Ranks()
        self.ranks.check_shares(config.cohorts_per_step)
        self.population = Population(rule, families, config, seed, self.ranks)
        self.estimator = config.make_estimator()
        self.optimizer = OuterOptimizer(rule, config)
        self.step = 0
        self.saved: int | None = None
        """The outer step of the last checkpoint."""
        self.best: float | None = None
        self.counts = {"diverged": 0, "skipped": 0, "restarts": 0, "inner_steps": 0}
        """Over the whole run; `inner_steps` of networks, where those of an antithetic pair count once."""
        self._stop = False

    def run(self, hours: float = math.inf) -> None:
        """Train until `config.steps`; SIGTERM, SIGHUP and so many hours end it before, to be resumed.

        Raises `LostProcessError` if another process of the run is gone, `RunFolderError` if the folder cannot be
        written; the last checkpoint is whole in either case.
        """
        try:
            self._run(time.monotonic() + 3600 * hours)
        except LostProcessError as error:
            raise LostProcessError(f"{error}; {self._advice()}") from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What goes wrong here is the run folder's fault; what a task cannot read is not."""
        try:
            yield
        except LoptError:  # some are OSErrors too
            raise
        except OSError as error:
            raise RunFolderError(
                f"{self.out}: cannot be written: {error.strerror or error}; {self._advice()}"
            ) from None

    def _run(self, deadline: float) -> None:
        with self._writing():
            log = RunLog(self.out, self.step) if self.ranks.leads else None
        bar = progress(self.config.steps, "meta-training", initial=self.step)
        # A handler only leaves word: the checkpoint is written between outer steps, when all state belongs together.
        with terminable(self._request_stop):
            try:
                if self.step == 0:
                    for task in self.validation:
                        check_task(task, relative=self.config.outer_loss != "plain")
                    self._validate(log)  # the fresh rule is a candidate too
                while self.step < self.config.steps:
                    # One answer for all processes: one that left by its own clock would be waited for in vain.
                    if self.ranks.any(self._stop or time.monotonic() >= deadline):
                        break
                    scalars = self._outer_step()
                    self.step += 1
                    if log is not None:
                        with self._writing():
                            log.write(self.step, scalars)
                    bar.update()
                    bar.set_postfix(outer=f"{scalars['outer_loss']:.3f}", best=self.best)
                    if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
                        self._validate(log)
                    if self.step % self.config.checkpoint_every == 0:
                        self._save()
                self._save()
            finally:
                bar.close()
                if log is not None:
                    with self._writing():
                        log.close()

    def _request_stop(self, *_: Any) -> None:
        self._stop = True

    def _outer_step(self) -> dict[str, float]:
        """One truncation of the cohorts whose turn it is, and one step of the outer optimizer."""
        start = time.perf_counter()
        count = self.config.cohorts_per_step
        turns = Turns.blank(self.rule, count)
        for row in range(count):
            slot = (self.step * count + row) % self.config.cohorts
            if self.ranks.owns(slot):
                self._turn(slot, row, turns)
        turns.shared(self.ranks)
        gradient = turns.gradient(self.rule)
        norm = math.nan if gradient is None else self.optimizer.apply(gradient, self.step)
        for name in self.counts:
            self.counts[name] += int(turns.column(name).sum())
        seconds = time.perf_counter() - start
        return {
            **turns.scalars([weighted.family.name for weighted in self.population.families]),
            "gradient_norm": norm,
            "learning_rate": self.optimizer.learning_rate,
            "inner_steps_per_second": turns.column("inner_steps").sum().item() / seconds,
            "memory_mib": peak_memory(),
            **self.counts,
            **self.rule.gauges(),
        }

    def _turn(self, slot: int, row: int, turns: Turns) -> None:
        start = time.perf_counter()
        cohort = self.population.cohort(slot)
        family = self.population.family_of(slot)
        estimate = self.estimator(self.rule, cohort, self.population.generators[slot])
        gauges = step_gauges(cohort.task.graph, estimate.previous, estimate.networks.params)
        restarts = self.population.advance(slot, estimate)
        turns.fill(row, estimate, restarts, family, gauges, time.perf_counter() - start)

    def _validate(self, log: RunLog | None) -> None:
        """Score the averaged meta-parameters; keep them if they are the best so far, or if nothing can tell.

        Runs are judged by their end where the outer loss is the final one, else by the mean over them.
        """
        rule = copy.deepcopy(self.rule)
        rule.load_state_dict({**self.rule.state_dict(), **self.optimizer.average})
        curves = torch.zeros(len(self.validation), self.config.validation_steps, dtype=torch.float64)
        for index, task in enumerate(self.validation):
            if self.ranks.owns(index):
                curves[index] = validation_curve(rule, task, self.config)
        logs = self.ranks.sum(curves).log()
        # What is not lowered should not choose: the mean may rise while the end of a run falls.
        scores = (logs[:, -FINAL_STEPS:] if self.config.outer_loss == "final" else logs).mean(1)
        score = scores.mean().item() if len(scores) else 0.0
        # What is no number is lower than nothing: a rule that has a score follows one without.
        better = not self.validation or self.best is None or math.isnan(self.best) or score < self.best
        self.best = score if better else self.best
        if log is None:
            return
        named = zip(self.validation, scores.tolist(), strict=True)
        with self._writing():
            log.write(
                self.step,
                {"validation": score, **{f"validation/{task.name}": s for task, s in named}},
                {task.name: curve.tolist() for task, curve in zip(self.validation, curves, strict=True)},
            )
            draw_training(self.out)
            if better:
                provenance = {**self.provenance, "outer_steps": self.step, "validation": score}
                save_rule(rule, self.out / RULE, provenance)

    def _save(self) -> None:
        if self.saved == self.step:
            return
        tree = self.tree()  # by all processes: it gathers
        if self.ranks.leads:
            with self._writing():
                checkpoint.write(self.out / CHECKPOINT, tree)
        self.saved = self.step

    def _advice(self) -> str:
        if self.saved is None:
            return f"there is no checkpoint yet, start again from step 0 with `lopt resume {self.out}`"
        return f"the checkpoint of outer step {self.saved} is whole, continue with `lopt resume {self.out}`"

    def tree(self) -> dict[str, Any]:
        """All state of the run, as nested dicts of tensors and JSON-able values; complete on the leader.

        With several processes all must call it.
        """
        return {
            "step": self.step,
            "best": self.best,
            "counts": self.counts,
            "rule": self.rule.state_dict(),
            "optimizer": self.optimizer.tree(),
            "slots": self.population.tree(),
        }

    def load_tree(self, tree: dict[str, Any]) -> None:
        """Continue from what `tree` returned."""
        self.step, self.best, self.counts = tree["step"], tree["best"], dict(tree["counts"])
        self.saved = self.step
        self.rule.load_state_dict(tree["rule"])
        self.optimizer.load_tree(tree["optimizer"])
        self.population.load_tree(tree["slots"])


@contextmanager
def terminable(handler: Any) -> Iterator[None]:
    """Call the handler at SIGTERM and, where there is one, at SIGHUP (the terminal has been closed).

    Where that can be arranged: signals reach a process's main thread only, and what `nohup` ignores stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    caught = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    previous = [signal.signal(number, handler) for number in caught]
    try:
        yield
    finally:
        for number, handling in zip(caught, previous, strict=True):
            signal.signal(number, handling)


def restore(trainer: Trainer) -> Trainer:
    """Load the checkpoint of the trainer's run folder into it.

    Raises `RunFolderError` if it is that of another rule, or of another number of cohorts or networks.
    """
    path = trainer.out / CHECKPOINT
    tree = checkpoint.load(path)
    config, slots = trainer.config, tree["slots"]
    networks = [len(slot["cohort"]["ages"]) for slot in slots if slot["cohort"] is not None]
    sizes = {
        "cohorts": (len(slots), config.cohorts),
        "networks": (networks[0] if networks else config.networks, config.networks),
    }
    for name, (found, wanted) in sizes.items():
        if found != wanted:
            raise RunFolderError(
                f"{path}: expected a checkpoint of meta.{name} = {wanted}, as in the run's config, found one of"
                f" {found}; set it back, or start a new run"
            )
    try:
        trainer.load_tree(tree)
    except RuntimeError as error:
        raise RunFolderError(
            f"{path}: expected the rule that the run's config describes, found another; undo what was changed"
            f" under `rule`, or start a new run ({error})"
        ) from None
    return trainer
