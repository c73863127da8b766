"""The meta-training loop: cohorts take turns, each turn gives one meta-gradient and one outer step.

Everything that the future of a run depends on is in `Trainer.tree`: a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from lopt.meta import checkpoint
from lopt.meta.cohort import Cohort, Horizons
from lopt.meta.config import MetaConfig
from lopt.meta.estimators import Estimate, TruncatedBackprop
from lopt.meta.outer import LIMIT
from lopt.meta.runlog import RunLog
from lopt.meta.task import Task, TaskFamily
from lopt.meta.unroll import Networks, second_order_step
from lopt.progress import progress
from lopt.rules import LearnedRule, save_rule
from lopt.rules.base import Rule

CHECKPOINT = "checkpoint.safetensors"
RULE = "rule.safetensors"
VALIDATION_SEED = 7_919


@dataclass(frozen=True)
class Weighted:
    """A task family and how often it is drawn, relative to the others."""

    family: TaskFamily
    weight: float = 1.0


class Trainer:
    """Meta-trains a learned rule on task families; writes its run folder as it goes.

    out: the run folder, which gets checkpoint.safetensors, rule.safetensors (the best by validation),
    metrics.jsonl and tensorboard/. `provenance` is written into the rule file.
    """

    def __init__(
        self, rule: LearnedRule, families: Sequence[Weighted], validation: Sequence[Task], config: MetaConfig,
        out: Path, seed: int = 0, provenance: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.rule, self.families, self.validation = rule, list(families), list(validation)
        self.config, self.out, self.provenance = config, Path(out), provenance or {}
        self.generator = Generator().manual_seed(seed)
        self.horizons = Horizons(
            config.shortest_horizon, config.longest_horizon, config.truncation, config.known_horizon
        )
        self.estimator = TruncatedBackprop(
            config.truncation, config.outer_loss, config.second_order, config.rematerialise
        )
        self.optimizer = torch.optim.Adam(rule.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
        self.average = {name: p.detach().clone() for name, p in rule.named_parameters()}
        self.step = 0
        self.best: float | None = None
        self.counts = {"diverged": 0, "skipped": 0, "restarts": 0}
        self.cohorts: list[Cohort] = []
        self._stop = False

    def run(self) -> None:
        """Train until `config.steps`, or until SIGTERM, after which the run can be resumed."""
        log = RunLog(self.out, self.step)
        previous = signal.signal(signal.SIGTERM, self._request_stop)
        bar = progress(self.config.steps, "meta-training", initial=self.step)
        try:
            if not self.cohorts:
                self.cohorts = [self._new_cohort() for _ in range(self.config.cohorts)]
            while self.step < self.config.steps and not self._stop:
                log.write(self.step, scalars := self._outer_step())
                self.step += 1
                bar.update()
                bar.set_postfix(outer=f"{scalars['outer_loss']:.3f}", best=self.best)
                self._periodic(log)
        finally:
            bar.close()
            log.close()
            signal.signal(signal.SIGTERM, previous)

    def _request_stop(self, *_: Any) -> None:
        self._stop = True

    def _periodic(self, log: RunLog) -> None:
        last = self.step == self.config.steps or self._stop
        if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
            self._validate(log)
        if self.step % self.config.checkpoint_every == 0 or last:
            checkpoint.write(self.out / CHECKPOINT, self.tree())

    def _outer_step(self) -> dict[str, float]:
        """One truncation of the cohort whose turn it is, and one step of the outer Adam."""
        start = time.perf_counter()
        cohort = self.cohorts[self.step % len(self.cohorts)]
        estimate = self.estimator(self.rule, cohort, self.generator)
        norm = self._apply(estimate)
        self._advance(cohort, estimate)
        if cohort.turns >= self.config.cohort_turns:
            self.cohorts[self.step % len(self.cohorts)] = self._new_cohort()
        seconds = time.perf_counter() - start
        return {
            "outer_loss": estimate.outer_loss,
            f"outer_loss/{self.families[cohort.origin['family']].family.name}": estimate.outer_loss,
            "gradient_norm": norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "inner_steps_per_second": self.config.truncation * len(cohort.ages) / seconds,
            **self.counts,
            **self.rule.gauges(),
        }

    def _apply(self, estimate: Estimate) -> float:
        """Clip, step and average; returns the norm before clipping. A skipped meta-gradient changes nothing."""
        if estimate.skipped:
            self.counts["skipped"] += 1
            return math.nan
        named = dict(self.rule.named_parameters())
        for name, gradient in estimate.gradient.items():
            named[name].grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(named.values(), self.config.clip).item()
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate * self._schedule()
        self.optimizer.step()
        self.optimizer.zero_grad()
        # The average begins as a plain mean, so that it is not held at the first meta-parameters.
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        for name, value in self.average.items():
            value.lerp_(named[name].detach(), 1 - decay)
        return norm

    def _schedule(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        if self.step < self.config.warmup:
            return (self.step + 1) / self.config.warmup
        left = max(self.config.steps - self.config.warmup, 1)
        return 0.5 + 0.5 * math.cos(math.pi * (self.step - self.config.warmup) / left)

    def _advance(self, cohort: Cohort, estimate: Estimate) -> None:
        """Take over the trained networks; restart those that diverged or reached their horizon."""
        cohort.networks = estimate.networks
        first = torch.isnan(cohort.initial)
        cohort.initial = torch.where(first, estimate.losses[0].cpu(), cohort.initial)
        cohort.ages = cohort.ages + self.config.truncation
        cohort.turns += 1
        due = estimate.diverged | (cohort.ages >= cohort.horizons)
        self.counts["diverged"] += int(estimate.diverged.sum())
        self.counts["restarts"] += int(due.sum())
        cohort.restart(due, self.rule.on(cohort.task.graph), self.horizons, self.generator)

    def _new_cohort(self) -> Cohort:
        weights = torch.tensor([weighted.weight for weighted in self.families])
        index = int(torch.multinomial(weights, 1, generator=self.generator))
        spec = self.families[index].family.sample_spec(self.generator)
        task = self.families[index].family.build(spec)
        origin = {"family": index, "spec": spec}
        rule = self.rule.on(task.graph)
        return Cohort.start(task, origin, rule, self.config.networks, self.horizons, self.generator)

    def _validate(self, log: RunLog) -> None:
        """Score the averaged meta-parameters; keep them if they are the best so far."""
        rule = LearnedRule.from_description(self.rule.describe())
        rule.load_state_dict({**self.rule.state_dict(), **self.average})
        scores = {task.name: validation_score(rule, task, self.config) for task in self.validation}
        score = sum(scores.values()) / max(len(scores), 1)
        log.write(self.step, {"validation": score, **{f"validation/{name}": s for name, s in scores.items()}})
        if self.best is None or score < self.best:
            self.best = score
            provenance = {**self.provenance, "outer_steps": self.step, "validation": score}
            save_rule(rule, self.out / RULE, provenance)

    def tree(self) -> dict[str, Any]:
        """All state of the run, as nested dicts of tensors and JSON-able values."""
        outer = self.optimizer.state_dict()["state"]
        return {
            "step": self.step,
            "best": self.best,
            "counts": self.counts,
            "generator": self.generator.get_state(),
            "rule": self.rule.state_dict(),
            "average": self.average,
            "optimizer": {str(index): value for index, value in outer.items()},
            "cohorts": [_cohort_tree(cohort) for cohort in self.cohorts],
        }

    def load_tree(self, tree: dict[str, Any]) -> None:
        """Continue from what `tree` returned."""
        self.step, self.best, self.counts = tree["step"], tree["best"], tree["counts"]
        self.generator.set_state(tree["generator"])
        self.rule.load_state_dict(tree["rule"])
        self.average = {name: value.to(self.average[name]) for name, value in tree["average"].items()}
        state = self.optimizer.state_dict()
        state["state"] = {int(index): value for index, value in tree["optimizer"].items()}
        self.optimizer.load_state_dict(state)
        self.cohorts = [self._restore_cohort(saved) for saved in tree["cohorts"]]

    def _restore_cohort(self, saved: dict[str, Any]) -> Cohort:
        origin = saved["origin"]
        task = self.families[origin["family"]].family.build(origin["spec"])
        networks = Networks(saved["params"], saved["state"])
        return Cohort(
            task, origin, networks, saved["ages"], saved["horizons"], saved["initial"], saved["turns"]
        )


def _cohort_tree(cohort: Cohort) -> dict[str, Any]:
    return {
        "origin": cohort.origin,
        "params": cohort.networks.params,
        "state": cohort.networks.state,
        "ages": cohort.ages,
        "horizons": cohort.horizons,
        "initial": cohort.initial,
        "turns": cohort.turns,
    }


def validation_score(rule: Rule, task: Task, config: MetaConfig) -> float:
    """Mean over networks and steps of the log loss relative to the first; every validation runs the same networks.

    A non-finite or diverged loss counts as the limit.
    """
    generator = Generator().manual_seed(VALIDATION_SEED)
    count = config.validation_networks
    bound = rule.on(task.graph)
    params = task.init(count, generator)
    told = torch.full((count,), float(config.validation_steps), device=next(iter(params.values())).device)
    step = second_order_step(bound, task)
    losses: list[Tensor] = []
    with torch.no_grad():
        networks = Networks(params, torch.vmap(bound.init)(params, told))
        for _ in range(config.validation_steps):
            loss, networks = step(networks, task.sample("train", count, generator))
            losses.append(loss)
    ratio = torch.stack(losses) / losses[0].clamp(min=1e-8)
    ratio = torch.where(torch.isfinite(ratio), ratio, LIMIT).clamp(max=LIMIT)
    return torch.log(ratio + 1e-3).mean().item()


def resume(trainer: Trainer) -> Trainer:
    """Load the checkpoint of the trainer's run folder into it."""
    trainer.load_tree(checkpoint.load(trainer.out / CHECKPOINT))
    return trainer
