"""Settings of a meta-training run, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lopt.errors import ConfigError


@dataclass(frozen=True)
class MetaConfig:
    """How to meta-train. One outer step is one truncation of `cohorts_per_step` cohorts; cohorts take turns."""

    steps: int = 300
    """Outer steps."""
    cohorts: int = 4
    """Task architectures in training at any time."""
    cohorts_per_step: int = 1
    """Cohorts whose meta-gradients are averaged in one outer step; processes share them out."""
    networks: int = 8
    """Networks in each cohort, trained side by side."""
    cohort_turns: int = 50
    """Truncations after which a cohort makes room for one of another architecture. Its networks end there, whatever
    their horizons: none lives longer than `longest_life`."""
    truncation: int = 20
    """Inner steps that one meta-gradient looks through."""
    shortest_horizon: int = 20
    """Horizons are log-uniform from here..."""
    longest_horizon: int = 300
    """...to here. Above `longest_life` the rule is told of horizons whose first part alone it sees."""
    known_horizon: float = 0.5
    """Share of the networks whose horizon is told to the rule."""
    reparametrise: float = 0.0
    """Task augmentation: standard deviation of the log of the units in which the rule sees a network's tensors."""
    rescale_loss: float = 0.0
    """Task augmentation: standard deviation of the log of a network's factor on its loss."""
    estimator: Literal["backprop", "es", "pes", "nres", "lives", "mixture"] = "backprop"
    """Of the meta-gradient: truncated backpropagation; evolution strategies, plain, persistent, with noise reused, or
    on whole lives at once, where an outer step is a life of `cohorts_per_step` cohorts; backprop with PES."""
    sigma: float = 0.01
    """Standard deviation of the perturbations of es, pes, nres, lives and mixture."""
    fitness: Literal["difference", "sign", "rank"] = "difference"
    """What nres and lives make of the two losses of a pair: their difference, its sign, or its rank in the cohort."""
    final_batches: int = 1
    """Batches that the last loss of a life is measured on, for lives."""
    pes_share: float = 0.5
    """Weight of PES in the mixture."""
    second_order: bool = True
    """Differentiate through the inner gradients. False is cheaper and biased."""
    rematerialise: bool = False
    """Keep only the networks between inner steps: much less memory, a third more time."""
    compile: bool = False
    """Compile inner steps: up to twice as fast, after half a minute for each architecture that cohorts come to. It
    pays if few architectures are drawn and `cohort_turns` is in the hundreds, or on a GPU."""
    autocast: bool = False
    """Let the inner networks compute in bfloat16; faster on GPUs, slower on most CPUs."""
    outer_loss: Literal["mean", "log", "final", "best"] = "mean"
    """What to lower: mean relative loss over the truncation, its logarithm, the last one or the best one alone."""
    outer_data: Literal["train", "validation"] = "train"
    """Split of the batches that the outer loss is measured on."""
    relative_to: Literal["initial", "reference"] = "initial"
    """What losses are divided by: the first one, or also the curve of Adam at the best of five learning rates on the
    same task; "log" is then the log-ratio to Adam."""
    learning_rate: float = 3e-3
    """Peak learning rate of the outer Adam."""
    warmup: int = 20
    """Outer steps of linear warm-up; a cosine to zero follows."""
    clip: float = 0.2
    """Limit on the norm of the meta-gradient."""
    network_clip: float = 1.0
    """Limit on the norm of a single network's meta-gradient, before the mean over networks is taken; for the
    estimators that backpropagate."""
    ema: float = 0.9
    """Decay of the average of the meta-parameters that is validated and kept; 0 keeps the last ones."""
    validate_every: int = 50
    """Outer steps between validations; each may choose the rule that is kept."""
    validation_steps: int = 300
    """Inner steps of a validation run."""
    validation_networks: int = 4
    """Networks trained for each validation task."""
    checkpoint_every: int = 25
    """Outer steps between checkpoints."""

    def __post_init__(self) -> None:
        counts = (
            "steps",
            "cohorts",
            "cohorts_per_step",
            "networks",
            "cohort_turns",
            "truncation",
            "final_batches",
            "shortest_horizon",
            "validate_every",
            "validation_steps",
            "validation_networks",
            "checkpoint_every",
        )
        for name in counts:
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("cohorts_per_step", self.cohorts_per_step <= self.cohorts, "no higher than cohorts")
        self._check("reparametrise", self.reparametrise >= 0, "at least 0")
        self._check("rescale_loss", self.rescale_loss >= 0, "at least 0")
        self._check("sigma", self.sigma > 0, "above 0")
        self._check("pes_share", 0 <= self.pes_share <= 1, "from 0 to 1")
        self._check(
            "longest_horizon", self.longest_horizon >= self.shortest_horizon, "at least shortest_horizon"
        )
        self._check("known_horizon", 0 <= self.known_horizon <= 1, "from 0 to 1")
        self._check("learning_rate", self.learning_rate > 0, "above 0")
        self._check("warmup", self.warmup >= 0, "at least 0")
        self._check("clip", self.clip > 0, "above 0")
        self._check("network_clip", self.network_clip > 0, "above 0")
        self._check("ema", 0 <= self.ema < 1, "from 0 up to but not 1")

        if self.compile and self.rematerialise:
            raise ConfigError(
                "meta.rematerialise: expected false beside meta.compile, which finds out itself what to keep"
            )

    @property
    def longest_life(self) -> int:
        """Inner steps after which every network has ended: no cohort has more turns than the run gives its slot."""
        if self.estimator == "lives":
            return self.longest_horizon
        turns = -(-self.steps * self.cohorts_per_step // self.cohorts)
        return min(self.cohort_turns, turns) * self.truncation

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ConfigError(f"meta.{name}: expected a number {expected}, found {getattr(self, name)!r}")
