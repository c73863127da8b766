"""Settings of a meta-training run, checked when they are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, model_validator

from lopt.config import Count, Decay, NonNegative, Pair, Positive, Settings, Share, wrong
from lopt.training.estimators import ESTIMATORS, Estimator


class MetaConfig(Settings):
    """How to meta-train. One outer step is one truncation of `cohorts_per_step` cohorts; cohorts take turns."""

    steps: Count = 300
    """Outer steps."""
    cohorts: Annotated[int, Field(ge=1, le=1000)] = 4
    """Task architectures in training at any time."""
    cohorts_per_step: Annotated[int, Field(ge=1, le=1000)] = 1
    """Cohorts whose meta-gradients are averaged in one outer step; processes share them out."""
    architectures: Annotated[int, Field(ge=0, le=1000)] = 0
    """How many each family is held to, drawn once for the whole run; 0: every cohort draws a new one. Few ones are
    compiled once and stay compiled."""
    networks: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Networks in each cohort, trained side by side."""
    cohort_turns: Count = 50
    """Truncations after which a cohort makes room for one of another architecture. Its networks end there, whatever
    their horizons: none lives longer than `longest_life`."""
    truncation: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Inner steps that one meta-gradient looks through."""
    shortest_horizon: Count = 20
    """Horizons are log-uniform from here..."""
    longest_horizon: Count = 300
    """...to here. Above `longest_life` the rule is told of horizons whose first part alone it sees."""
    known_horizon: Share = 0.5
    """Share of the networks whose horizon is told to the rule."""
    estimator: Annotated[Settings, PlainValidator(ESTIMATORS.choose)] = Field(
        default_factory=lambda: ESTIMATORS.choose({})
    )
    """Of the meta-gradient: the name of one of `lopt.training.estimators.ESTIMATORS`, or a section with it and options
    of its own, {name: pes, sigma: 0.02}."""
    compile: bool = False
    """Compile inner steps: two to three times as fast, after half a minute for each architecture that cohorts come to,
    or by evolution strategies a few seconds for one that an earlier run has compiled on the same machine. It pays with
    few `architectures`, where `cohort_turns` is in the hundreds, or on a GPU."""
    outer_loss: Literal["mean", "log", "final", "best", "plain"] = "mean"
    """What to lower: mean relative loss over the truncation, its logarithm, the last one or the best one alone; or the
    mean loss as it is."""
    outer_data: Literal["train", "validation"] = "train"
    """Split of the batches that the outer loss is measured on."""
    learning_rate: Annotated[float, Field(gt=0, le=1e3)] = 3e-3
    """Peak learning rate of the outer Adam."""
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    """Outer steps of linear warm-up; a cosine to zero follows."""
    betas: Pair[Decay] = (0.9, 0.99)
    """Decays of the outer Adam's moments."""
    weight_decay: NonNegative = 0.0
    """Of the meta-parameters, as a part of the meta-gradient that no clip sees."""
    clip: Positive = 0.2
    """Limit on the norm of the meta-gradient."""
    ema: Decay = 0.9
    """Decay of the average of the meta-parameters that is validated and kept; 0 keeps the last ones."""
    validate_every: Count = 50
    """Outer steps between validations; each may choose the rule that is kept: by the mean log relative loss of whole
    runs, or of their last twenty steps if `outer_loss` is "final"."""
    validation_steps: Count = 300
    """Inner steps of a validation run."""
    validation_networks: Annotated[int, Field(ge=1, le=10_000)] = 4
    """Networks trained for each validation task."""
    checkpoint_every: Count = 25
    """Outer steps between checkpoints."""

    @model_validator(mode="after")
    def _fit(self) -> MetaConfig:
        if self.cohorts_per_step > self.cohorts:
            raise wrong("a number no higher than cohorts", self.cohorts_per_step, "cohorts_per_step")
        if self.longest_horizon < self.shortest_horizon:
            raise wrong("a number of at least shortest_horizon", self.longest_horizon, "longest_horizon")
        if self.compile and getattr(self.estimator, "rematerialise", False):
            hint = ": that finds out itself what to keep"
            raise wrong("false beside meta.compile", True, "estimator", "rematerialise", hint=hint)
        return self

    @property
    def whole_lives(self) -> bool:
        """Whether each truncation is a whole life of its cohort."""
        return ESTIMATORS[self.estimator.name].whole_lives  # type: ignore[attr-defined]

    @property
    def longest_life(self) -> int:
        """Inner steps after which every network has ended: no cohort has more turns than the run gives its slot."""
        if self.whole_lives:
            return self.longest_horizon
        turns = -(-self.steps * self.cohorts_per_step // self.cohorts)
        return min(self.cohort_turns, turns) * self.truncation

    def make_estimator(self) -> Estimator:
        """The estimator that the config names."""
        estimator: Estimator = ESTIMATORS.make(
            self.estimator,
            truncation=self.truncation,
            outer_loss=self.outer_loss,
            outer_data=self.outer_data,
            compiled=self.compile,
        )
        return estimator
