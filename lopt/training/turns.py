"""What one outer step gathers: a row for each cohort whose turn it is, from whichever process computed it.

Shapes: S cohorts in the step, M meta-parameters (scalars), G classes of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lopt.graph.tensor_classes import CLASSES
from lopt.rules.base import Rule
from lopt.training.estimators import Estimate
from lopt.training.gauges import named_gauges
from lopt.training.ranks import Ranks

FIGURES = (
    "outer_loss", "skipped", "diverged", "restarts", "inner_steps", "family", "clipped", "dropped", "seconds",
)  # fmt: skip


@dataclass
class Turns:
    """The meta-gradients (S, M) and figures (S, 9) of an outer step, and its step gauges (S, 3, G)."""

    gradients: Tensor
    figures: Tensor
    gauges: Tensor

    @classmethod
    def blank(cls, rule: Rule, count: int) -> Turns:
        """Zeros, to be filled in by the processes and summed."""
        size = sum(p.numel() for p in rule.parameters())
        # In float64, in which every float32 and every count is exact.
        shapes = ((count, size), (count, len(FIGURES)), (count, 3, len(CLASSES)))
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def fill(
        self, row: int, estimate: Estimate, restarts: int, family: int, gauges: Tensor, seconds: float
    ) -> None:
        """What this process found for one of the cohorts."""
        self.gradients[row] = torch.cat(
            [value.flatten().double().cpu() for value in estimate.gradient.values()]
        )
        figures = (
            estimate.outer_loss, estimate.skipped, int(estimate.diverged.sum()), restarts,
            (len(estimate.losses) - 1) * len(estimate.diverged), family, estimate.clipped, estimate.dropped, seconds,
        )  # fmt: skip
        self.figures[row] = torch.tensor(figures, dtype=torch.float64)
        self.gauges[row] = gauges

    def shared(self, ranks: Ranks) -> Turns:
        """Every process's rows. Rows are summed with zeros, so the result is the same for any number of them."""
        for values in (self.gradients, self.figures, self.gauges):
            ranks.sum(values)
        return self

    def column(self, name: str) -> Tensor:
        """(S,)."""
        return self.figures[:, FIGURES.index(name)]

    def gradient(self, rule: Rule) -> dict[str, Tensor] | None:
        """The mean over the cohorts whose meta-gradient was finite; None if none was."""
        usable = self.column("skipped") == 0
        if not usable.any():
            return None
        named = dict(rule.named_parameters())
        parts = self.gradients[usable].mean(0).split([p.numel() for p in named.values()])
        return {
            name: part.reshape(p.shape).to(p) for (name, p), part in zip(named.items(), parts, strict=True)
        }

    def scalars(self, families: list[str]) -> dict[str, float]:
        """Figures to log: outer losses over all and by family, what each family's turns took, and the gauges."""
        losses, owners = self.column("outer_loss"), self.column("family").long()
        by_family: dict[str, list[float]] = {}
        seconds: dict[str, float] = {}
        for loss, owner, time in zip(
            losses.tolist(), owners.tolist(), self.column("seconds").tolist(), strict=True
        ):
            name = families[owner]
            by_family.setdefault(name, []).append(loss)
            seconds[f"seconds/{name}"] = seconds.get(f"seconds/{name}", 0.0) + time
        means = {f"outer_loss/{name}": sum(its) / len(its) for name, its in by_family.items()}
        shares = {f"{name}_share": self.column(name).mean().item() for name in ("clipped", "dropped")}
        gauges = named_gauges(self.gauges.sum(0))
        return {"outer_loss": losses.mean().item(), **means, **seconds, **shares, **gauges}
