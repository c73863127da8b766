"""What defines a learned rule but for its meta-parameters, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from lopt.config import Decay, NonNegative, Positive, Settings, Several, unknown, wrong
from lopt.graph.tensor_classes import CLASSES
from lopt.metanets import METANETS
from lopt.rules.constants import CONSTANTS
from lopt.rules.directions import DIRECTIONS
from lopt.rules.forms import FORMS
from lopt.rules.whitening import Whitening


def _known(mapping: dict[str, Any], known: Any) -> dict[str, Any]:
    for key in mapping:
        if key not in known:
            raise unknown(key, known)
    return mapping


class LearnedRuleConfig(Settings):
    """Everything that defines a learned rule but for its meta-parameters.

    Short forms: `metanet: mlp` for a metanet with its default options, and a list of directions, of which the first
    has weight 1 and the others 0.
    """

    metanet: Annotated[Settings, PlainValidator(METANETS.choose)] = Field(
        default_factory=lambda: METANETS.choose({})
    )
    """One of `lopt.metanets.METANETS`: its name and the options of its constructor."""
    inputs: Literal["ratios", "log_sign"] = "ratios"
    """What the metanet reads: "ratios" of scalars that no scale shows in, and a context of time, horizon and sizes for
    each tensor; "log_sign", as Neural Graphs has it: logarithm and sign of parameter, gradient and momenta, no context
    (`lopt.features.log_sign`)."""
    initial: Literal["base", "torch"] = "base"
    """How the metanet's maps begin: "base" with heads at zero, so that the fresh rule is its base optimizer; "torch",
    heads too, as `torch.nn.Linear` does."""
    rate: Annotated[float, Field(gt=0, le=1e3)] = 5e-3
    """Learning rate of the base optimizer that the fresh rule is; meta-trained from there."""
    learned_rate: bool = True
    """Whether it is; else it stays."""
    decays: Annotated[Several[Decay], Field(min_length=1, max_length=16)] = (0.9, 0.99, 0.999)
    """Decays of the momenta, fastest first."""
    second_decay: Decay = 0.999
    """Decay of the second moment."""
    directions: Annotated[
        dict[str, Annotated[float, Field(ge=-1e3, le=1e3)]],
        Field(min_length=1),
        AfterValidator(lambda found: _known(found, DIRECTIONS)),
    ] = {"adam": 1.0, "slow": 0.0, "gradient": 0.0, "factored": 0.0, "momentum": 0.0, "parameter": 0.0}  # noqa: RUF012
    """Base directions with their weights in the fresh rule; the order is that of the metanet's outputs."""
    update_form: Literal["mixture", "orthogonal", "preconditioned", "magnitude", "momentum"] = "mixture"
    """How raw outputs become a step: a name in `lopt.rules.forms.FORMS`."""
    whitening: Whitening | None = None
    """How update forms that orthogonalise whiten what they orthogonalise, if they do (`lopt.rules.whitening`), in the
    place of a conditioner of theirs."""
    factored: bool = True
    """Whether scalars see the factored second moments of their tensors (a metanet of the graph can do without)."""
    anneal: bool = True
    """Whether the base learning rate falls: along half a cosine where the horizon is known, else see `fade`."""
    warm_up: Decay = 0.0
    """Share of a known horizon over which it first rises along half a cosine."""
    fade: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Where the horizon is unknown the base learning rate rises for fade / 5 steps and falls as 1 / sqrt(1 + t / fade);
    0: it stays."""
    scales: Annotated[dict[str, Positive], AfterValidator(lambda found: _known(found, CLASSES))] = {}  # noqa: RUF012
    """Factors on the base learning rate by class of tensor (`tensor_classes.CLASSES`); 1 for those not named."""
    widest: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Rows or columns of a hidden matrix above which its step shrinks with their root; 0: never."""
    widest_output: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Inputs of an output layer above which its step shrinks in proportion; 0: never."""
    relative: bool = False
    """Whether tensors with smaller weights than PyTorch draws take smaller steps (`scales.relative_rates`)."""
    weight_decay: NonNegative = 0.0
    """Decay of all weights but vectors, as a share of the base learning rate; it anneals with the steps."""
    decay_horizon: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Horizon at which half of the weight decay acts (`decay_share`); 0: all of it at any."""
    decay_below: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Where a tensor's gradient is c > this many times as long as the root of its second moment says, (this / c)^2 of
    its weight decay acts; 0: all of it always. Gradients fall as training data are learned by heart, and that is when a
    decay is worth what it costs."""
    max_step: Positive = 0.5
    """Bound on the rms of a tensor's step, relative to the rms of the tensor (taken as at least 0.1)."""
    caution: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Where a tensor's gradient is c > this many times as long as the root of its second moment says, the tensor's step
    is (this / c)^2 times itself; 0: never. Else one spike of the loss makes steps so long that they lift it further."""
    pace: Annotated[float, Field(ge=0, le=10)] = 0.0
    """How much longer a tensor's steps become while its gradient agrees with the steps before it, and shorter where it
    opposes them: as a logarithm, over a whole horizon of nothing but agreement; 0: never."""
    constants: Several[str] = ()
    """Which of these constants are meta-learned and follow the horizon, by name in `lopt.rules.constants.CONSTANTS`."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """Short forms, and those of older rule files: `metanet_options`, and `weights` beside a list of `directions`.

        `options` are those of the rule and of its metanet, mixed, as `lopt.make_rule` takes them.
        """
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        mixed, own = values.pop("options", None), values.pop("metanet_options", None)
        for options, keys in ((mixed, ("options",)), (own, ("metanet_options",))):
            if not isinstance(options or {}, Mapping):
                raise wrong("a section", options, *keys)
        if mixed:
            values |= {
                key: value for key, value in mixed.items() if key in cls.model_fields or key == "weights"
            }
        own = {**(own or {}), **{key: value for key, value in (mixed or {}).items() if key not in values}}
        if own:
            name = values.get("metanet", "axisnet")
            values["metanet"] = {**(name if isinstance(name, Mapping) else {"name": name}), **own}
        weights = values.pop("weights", None)
        directions = values.get(
            "directions", list(cls.model_fields["directions"].default) if weights else None
        )
        if isinstance(directions, (list, tuple)):
            weights = weights or (1.0, *[0.0] * (len(directions) - 1))
            if not isinstance(weights, (list, tuple)) or len(weights) != len(directions):
                raise wrong(f"as many numbers as directions ({len(directions)})", weights, "weights")
            if not all(isinstance(name, str) for name in directions) or len({*directions}) < len(directions):
                raise wrong("distinct names", directions, "directions")
            values["directions"] = dict(zip(directions, weights, strict=True))
        return values

    @model_validator(mode="after")
    def _fit(self) -> LearnedRuleConfig:
        if self.inputs == "log_sign":
            if self.factored:
                hint = ": no factored moment is among them"
                raise wrong("false beside inputs: log_sign", True, "factored", hint=hint)
            if not METANETS[self.metanet.name].sees_scalars:  # type: ignore[attr-defined]
                hint = ": there is no context for it to read"
                raise wrong(
                    "a metanet that sees scalars, beside inputs: log_sign",
                    self.metanet.name,  # type: ignore[attr-defined]
                    "metanet",
                    hint=hint,
                )
        if "slow" in self.directions and len(self.decays) < 2:
            raise wrong("at least 2 of them for the direction slow", self.decays, "decays")
        matrices = {"orthogonal", "grafted"} & {*self.directions}
        if self.whitening and (matrices or not FORMS[self.update_form].orthogonal):
            expected = "one that orthogonalises, of directions that do not (or no whitening)"
            raise wrong(expected, self.update_form, "update_form")
        for index, name in enumerate(self.constants):
            if name not in CONSTANTS or name in self.constants[:index]:
                raise wrong(f"distinct names out of {', '.join(CONSTANTS)}", name, "constants", index)
        # From nothing no logarithm and no logit can move them.
        off = {
            "momentum_decay": not self.decays[0] or FORMS[self.update_form].learns_decay,
            "second_decay": not self.second_decay,
            "warm_up": not (self.anneal and self.warm_up),
            "cool_down": not self.anneal,
            "weight_decay": not self.weight_decay,
            "relative": not self.relative,
            "pace": not self.pace,
            "headway": not self.pace,
            "whitening": not self.whitening,
        }
        silent = [name for name in self.constants if off.get(name)]
        if silent:
            raise wrong(
                "names of constants that are not off, nor learned by the update form", silent, "constants"
            )
        return self
